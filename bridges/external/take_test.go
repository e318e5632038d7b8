package external

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// TestAcknowledgedWhenDurable: nothing is acknowledged before the disk has it, then all of it in the order in which it came
// [MQTT-4.6.0-2].
func TestAcknowledgedWhenDurable(t *testing.T) {
	p := attached(t, nil)
	p.send(t, 1, 5)
	wait(t, "five messages to be taken", func() bool { n, _ := p.disk.count(); return n == 5 })
	if got, _ := p.acks(); len(got) > 0 {
		t.Fatalf("%v acknowledged before the disk had them", got)
	}
	p.disk.sync(2)
	wait(t, "two acknowledgements", func() bool { got, _ := p.acks(); return len(got) == 2 })
	p.disk.sync(3)
	wait(t, "all acknowledgements", func() bool { got, _ := p.acks(); return len(got) == 5 })
	if got, code := p.acks(); !slices.Equal(got, []int{1, 2, 3, 4, 5}) || code != 0 {
		t.Errorf("acknowledged %v with %#x", got, code)
	}
	m := p.disk.all()[0]
	if m.Source != (message.Source{Protocol: message.MQTT, Client: "plant/a"}) || m.ID.IsZero() || m.Received.IsZero() || m.QoS != 1 {
		t.Errorf("taken as %+v", m)
	}
}

// TestNoAnswerWhileBusy: what cannot be taken now gets no answer, and what is behind it stays behind it.
func TestNoAnswerWhileBusy(t *testing.T) {
	p := attached(t, nil)
	p.disk.sync(100)
	p.disk.refuseWith(fmt.Errorf("full: %w", message.ErrBusy))
	p.send(t, 1, 3)
	wait(t, "a second offer", func() bool { _, offers := p.disk.count(); return offers >= 2 })
	if got, _ := p.acks(); len(got) > 0 || !p.Status().Up {
		t.Errorf("acknowledged %v; %+v", got, p.Status())
	}
	p.disk.refuseWith(nil)
	wait(t, "all acknowledgements", func() bool { got, _ := p.acks(); return slices.Equal(got, []int{1, 2, 3}) })
	if n, _ := p.disk.count(); n != 3 {
		t.Errorf("%d messages taken", n)
	}
}

// TestBusyAtTheStop: what was not taken when the gateway stops is the broker's, and comes again.
func TestBusyAtTheStop(t *testing.T) {
	p := attached(t, nil)
	p.disk.sync(100)
	p.disk.refuseWith(message.ErrBusy)
	p.send(t, 1, 2)
	wait(t, "an offer", func() bool { _, offers := p.disk.count(); return offers >= 1 })
	p.stop()
	if got, _ := p.acks(); len(got) > 0 {
		t.Fatalf("acknowledged %v", got)
	}
	next := start(t, p.broker, nil)
	next.disk.sync(100)
	wait(t, "all acknowledgements", func() bool { got, _ := next.acks(); return slices.Equal(got, []int{1, 2}) })
}

// TestRefusedForGood: only what could never be taken is answered with a reason code.
func TestRefusedForGood(t *testing.T) {
	for _, c := range []struct {
		err  error
		code byte
	}{
		{message.ErrNotAllowed, 0x87}, {message.ErrInvalid, 0x90}, {message.ErrTooLarge, 0x83},
	} {
		p := attached(t, nil)
		p.disk.refuseWith(fmt.Errorf("no: %w", c.err))
		p.send(t, 1, 1)
		wait(t, "the answer", func() bool { got, _ := p.acks(); return len(got) == 1 })
		if _, code := p.acks(); code != c.code {
			t.Errorf("%v: answered with %#x, want %#x", c.err, code, c.code)
		}
	}
}

// TestTooLarge: a message above max_packet is passed over without being held in memory, and the next one is read.
func TestTooLarge(t *testing.T) {
	var refused error
	p := attached(t, func(_ *config.External, o *Options) {
		o.MaxPacket = 1000
		o.OnRefuse = func(err error) { refused = err }
	})
	p.disk.sync(10)
	for _, qos := range []byte{0, 1} {
		p.broker.Send(testpeer.Command{Topic: "plant/a", Payload: bytes.Repeat([]byte{7}, 200<<10), QoS: qos})
	}
	p.send(t, 2, 2)
	wait(t, "both answers", func() bool { got, _ := p.acks(); return slices.Equal(got, []int{7, 2}) })
	if a := p.broker.CommandAcks()[0]; a.Code != 0x83 || !errors.Is(refused, message.ErrTooLarge) {
		t.Errorf("answered with %#x; counted %v", a.Code, refused)
	}
	if n, _ := p.disk.count(); n != 1 {
		t.Errorf("%d messages taken", n)
	}
}

// TestDiskFails: a message that was taken and did not reach the disk is not acknowledged; it is handed over again, in order and
// before those behind it.
func TestDiskFails(t *testing.T) {
	for _, qos := range []int{1, 2} {
		p := attached(t, func(c *config.External, _ *Options) { c.QoS = qos })
		p.send(t, 1, 3)
		wait(t, "three messages to be taken", func() bool { n, _ := p.disk.count(); return n == 3 })
		p.disk.fail(errors.New("input/output error"))
		p.send(t, 4, 4)
		wait(t, "the messages to be handed over again", func() bool { n, _ := p.disk.count(); return n == 7 })
		if got, _ := p.acks(); len(got) > 0 {
			t.Fatalf("acknowledged %v", got)
		}
		var order []byte
		for _, m := range p.disk.all() {
			order = append(order, m.Payload...)
		}
		if !bytes.Equal(order, []byte{1, 2, 3, 1, 2, 3, 4}) && !bytes.Equal(order, []byte{1, 2, 3, 4, 1, 2, 3}) { // 4 may have been under way
			t.Errorf("taken in the order %v", order)
		}
		p.disk.sync(7)
		wait(t, "all acknowledgements", func() bool { got, _ := p.acks(); return slices.Equal(got, []int{1, 2, 3, 4}) })
		if len(p.broker.Connects()) != 1 {
			t.Error("the connection was ended")
		}
	}
}

// TestMoreThanTheReceiveMaximum: a broker that does not keep to it is read on within a bound, then not, and nothing is lost.
func TestMoreThanTheReceiveMaximum(t *testing.T) {
	const n = 3 * liveQueue
	p := attached(t, nil)
	p.disk.refuseWith(message.ErrBusy)
	p.disk.sync(2 * n)
	sent := make(chan struct{})
	go func() { // ends when all is read
		defer close(sent)
		large := make([]byte, 64<<10)
		for i := range n {
			large[0] = byte(i)
			p.broker.Send(testpeer.Command{Topic: "plant/a", Payload: bytes.Clone(large), QoS: 1})
		}
	}()
	wait(t, "an offer", func() bool { _, offers := p.disk.count(); return offers >= 1 })
	time.Sleep(50 * time.Millisecond) // most of it is there then; nothing depends on it
	p.disk.refuseWith(nil)
	wait(t, "all acknowledgements", func() bool { got, _ := p.acks(); return len(got) == n })
	<-sent
	for i, m := range p.disk.all() {
		if m.Payload[0] != byte(i) {
			t.Fatalf("message %d is %d", i, m.Payload[0])
		}
	}
	q := newInbox(2)
	q.bytes = overflowBytes
	if !q.push(arrival{id: 1}) || !q.push(arrival{}) || q.push(arrival{id: 2}) || q.push(arrival{}) {
		t.Error("the bound does not hold")
	}
	q.bytes = 0
	if !q.push(arrival{id: 2}) || q.push(arrival{}) {
		t.Error("QoS 0 has room that only QoS 1 has")
	}
}

// TestWhoTakesWhat: copies for the group and for this gateway, and what members of the group published themselves.
func TestWhoTakesWhat(t *testing.T) {
	for _, c := range []struct {
		name                string
		topic               string
		shared, local       bool
		via                 string
		published, ingested int // by Bus.Publish, by Take
		delivered           int
	}{
		{"a device's", "plant/a", true, false, "", 1, 0, 0},
		{"a member's", "plant/a", true, false, "tidegate", 0, 0, 0},
		{"a gateway's status", "tidegate/gw2/status", true, false, "", 0, 0, 0},
		{"another group's", "plant/a", true, false, "other", 1, 0, 0},
		{"the group's copy of a write", "cmd/a", true, false, "", 0, 1, 0},
		{"this gateway's copy of a write", "cmd/a", false, true, "", 0, 0, 1},
		{"one copy for both", "cmd/a", true, true, "", 1, 0, 0},
		{"a member's command, this gateway's copy", "cmd/a", false, true, "tidegate", 0, 0, 1},
		{"a member's command, one copy for both", "cmd/a", true, true, "tidegate", 0, 0, 1},
	} {
		bus, take := newDisk(), newDisk()
		s := section("mqtt://127.0.0.1:1")
		s.Local = []string{"cmd/a"}
		b, err := New(s, Options{Bus: bus, Take: take.Publish, Local: bus.deliver})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.accept(t.Context(), &arrival{m: message.Message{Topic: c.topic}, shared: c.shared, local: c.local, via: c.via}, nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(bus.taken) != c.published || len(take.taken) != c.ingested || len(bus.local) != c.delivered {
			t.Errorf("%s: published %d, ingested %d, delivered %d", c.name, len(bus.taken), len(take.taken), len(bus.local))
		}
	}
}

// TestOwnMessagesComeBack: they are acknowledged, and nothing else.
func TestOwnMessagesComeBack(t *testing.T) {
	p := attached(t, nil)
	p.send(t, 1, 1, message.Property{Key: "tg-via", Value: "tidegate"})
	p.send(t, 2, 2, message.Property{Key: "tg-src", Value: "press1"}, message.Property{Key: "unit", Value: "C"})
	p.disk.sync(1)
	wait(t, "both acknowledgements", func() bool { got, _ := p.acks(); return slices.Equal(got, []int{1, 2}) })
	if all := p.disk.all(); len(all) != 1 || all[0].Source.Client != "press1" || len(all[0].Properties) != 1 || all[0].Properties[0].Key != "unit" {
		t.Errorf("taken: %+v", all)
	}
	if n := p.figures.own.Load(); n != 1 {
		t.Errorf("counted %d", n)
	}
}
