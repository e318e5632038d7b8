package external

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/bridges"
	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// bus is a Bus that takes everything.
type bus struct{ *disk }

func (bus) Subscribe(string, message.Handler) (func(), error) { return func() {}, nil }
func (bus) Retained(string) []message.Message                 { return nil }

func value(topic, payload string, qos message.QoS) message.Message {
	return message.Message{
		Topic: topic, Payload: []byte(payload), QoS: qos, ContentType: "text/plain", Source: message.Source{Protocol: message.OPCUA, Client: "press"},
		Properties: []message.Property{{Key: "unit", Value: "C"}, {Key: "tg-via", Value: "forged"}},
	}
}

// sent are the payloads that arrived at the broker on the topics of the test.
func (p *peer) sent() (list []string) {
	for _, r := range p.broker.Received() {
		if strings.HasPrefix(r.Topic, "plant/") {
			list = append(list, string(r.Payload))
		}
	}
	return list
}

// TestShare: what another bridge publishes goes to the bus and to the broker, with the mark of the group.
func TestShare(t *testing.T) {
	p := attached(t, nil)
	out := p.Share(bus{p.disk})
	for i := range 3 {
		if _, err := out.Publish(value("plant/x", fmt.Sprint(i), message.QoS(i))); err != nil {
			t.Fatal(err)
		}
	}
	p.disk.refuseWith(message.ErrNotAllowed)
	if _, err := out.Publish(value("plant/x", "refused", 1)); !errors.Is(err, message.ErrNotAllowed) {
		t.Error(err)
	}
	wait(t, "three messages", func() bool { return len(p.sent()) == 3 })
	if n, _ := p.disk.count(); n != 3 {
		t.Errorf("%d messages on the bus", n)
	}
	for i, r := range p.broker.Received() {
		if string(r.Payload) != fmt.Sprint(i) || r.QoS != byte(min(i, 1)) || r.ContentType != "text/plain" || len(r.Properties) != 3 ||
			r.Property("tg-via") != "tidegate" || r.Property("tg-src") != "press" || r.Property("unit") != "C" {
			t.Errorf("message %d arrived as %+v", i, r)
		}
	}
}

// TestWaitsForTheBroker: what is published while the broker is away, or has no answer yet, arrives when it is back, in order; QoS 0
// does not wait.
func TestWaitsForTheBroker(t *testing.T) {
	p := attached(t, nil)
	out := p.Share(bus{p.disk})
	p.broker.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }})
	publish := func(payload string, qos message.QoS) {
		t.Helper()
		if _, err := out.Publish(value("plant/x", payload, qos)); err != nil {
			t.Fatal(err)
		}
	}
	publish("a", 1)
	publish("b", 1)
	wait(t, "two messages", func() bool { return len(p.sent()) == 2 })
	p.broker.Down()
	wait(t, "the bridge to be down", func() bool { return !p.Status().Up })
	publish("c", 1)
	publish("never", 0)
	p.broker.SetScript(testpeer.Script{})
	if err := p.broker.Up(); err != nil {
		t.Fatal(err)
	}
	wait(t, "all messages", func() bool { return len(p.sent()) == 5 })
	if got := p.sent(); !slices.Equal(got, []string{"a", "b", "a", "b", "c"}) {
		t.Errorf("arrived: %v", got)
	}
	all := p.broker.Received()
	if first, again := all[0], all[2]; !again.Dup || again.ID != first.ID {
		t.Errorf("sent again as %+v, first as %+v", again, first) // [MQTT-3.3.1-1] [MQTT-4.4.0-1]
	}
	wait(t, "everything to be acknowledged", func() bool { return p.out.pending() == 0 })
	if n := p.figures.dropped.Load(); n != 1 {
		t.Errorf("%d dropped", n)
	}
}

// TestOutboxIsBounded: the oldest makes room.
func TestOutboxIsBounded(t *testing.T) {
	var dropped []string
	q := newOutbox(3*sizeOf(&message.Message{Topic: "plant/x", Payload: []byte("1")}), func(o *outgoing, err error) {
		if errors.Is(err, errDropped) {
			dropped = append(dropped, string(o.m.Payload))
		}
	})
	for i := range 5 {
		q.forward(message.Message{Topic: "plant/x", Payload: fmt.Append(nil, i), QoS: 1})
	}
	if !slices.Equal(dropped, []string{"0", "1"}) {
		t.Errorf("dropped %v", dropped)
	}
	q.begin(false)
	for _, want := range []string{"2", "3", "4"} {
		if o := q.next(10); o == nil || string(o.m.Payload) != want || o.id == 0 {
			t.Errorf("next is %+v, want %s", o, want)
		}
	}
	if q.bytes != 0 || q.next(10) != nil {
		t.Errorf("%d bytes left", q.bytes)
	}
	q.end()
	if len(dropped) != 5 {
		t.Errorf("dropped at the end: %v", dropped)
	}
}

// TestDeliver: a command is done when the broker has acknowledged it, and its answers have the words of the gateway.
func TestDeliver(t *testing.T) {
	p := attached(t, nil)
	var code atomic.Int32
	p.broker.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Code: byte(code.Load())} }})
	for _, c := range []struct {
		code byte
		want error
	}{
		{0, nil}, {0x87, message.ErrNotAllowed}, {0x90, message.ErrInvalid}, {0x97, message.ErrBusy}, {0x80, message.ErrBusy},
	} {
		code.Store(int32(c.code))
		if err := p.Deliver(t.Context(), value("cmd/x", "open", 1)); !errors.Is(err, c.want) {
			t.Errorf("%#x: %v, want %v", c.code, err, c.want)
		}
	}
	if err := answerError(0x10); !errors.Is(err, message.ErrNoMatch) {
		t.Error(err)
	}
	if err := p.Deliver(t.Context(), value("cmd/+", "open", 1)); !errors.Is(err, message.ErrInvalid) {
		t.Error(err)
	}
	old := value("cmd/x", "open", 1)
	old.Expires = time.Now().Add(-time.Second)
	if err := p.Deliver(t.Context(), old); !errors.Is(err, errExpired) {
		t.Error(err)
	}
	// No answer: not done, and given back when the connection ends.
	p.broker.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }})
	lost := make(chan error, 1)
	go func() { lost <- p.Deliver(context.Background(), value("cmd/y", "open", 1)) }()
	wait(t, "the command to be sent", func() bool {
		return slices.ContainsFunc(p.broker.Received(), func(r testpeer.Received) bool { return r.Topic == "cmd/y" })
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(message.ErrBusy)
	if err := p.Deliver(ctx, value("cmd/z", "open", 1)); !errors.Is(err, message.ErrBusy) {
		t.Error(err)
	}
	p.broker.Down()
	if err := <-lost; !errors.Is(err, message.ErrBusy) {
		t.Error(err)
	}
	wait(t, "the bridge to be down", func() bool { return !p.Status().Up })
	if err := p.Deliver(t.Context(), value("cmd/x", "open", 1)); !errors.Is(err, message.ErrBusy) {
		t.Error(err)
	}
}

// TestStates: what the gateway says of itself begins every connection, and offline ends an orderly one; the will is for the others.
func TestStates(t *testing.T) {
	p := attached(t, nil)
	state := func(s string) message.Message {
		return message.Message{Topic: "tidegate/gw/status", Payload: []byte(s), QoS: 1, Retain: true, Source: message.Source{Protocol: message.Self}}
	}
	last := func(n int) string {
		var list []string
		for _, r := range p.broker.Received() {
			if r.Topic == "tidegate/gw/status" && r.Retain {
				list = append(list, string(r.Payload))
			}
		}
		return strings.Join(list[max(0, len(list)-n):], " ")
	}
	p.Tell(state("online"))
	wait(t, "online", func() bool { return last(9) == "online" })
	p.broker.DropAll()
	wait(t, "online on the next connection", func() bool { return last(9) == "online online" })
	if wills := p.broker.Wills(); len(wills) != 1 || wills[0].Topic != "tidegate/gw/status" || string(wills[0].Payload) != "offline" || !wills[0].Retain {
		t.Errorf("wills: %+v", wills)
	}
	wait(t, "the bridge to be up", func() bool { return p.Status().Up })
	p.stop()
	if last(1) != "offline" || len(p.broker.Wills()) != 1 {
		t.Errorf("at the end %s; wills %+v", last(3), p.broker.Wills())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.statuses) < 4 || p.statuses[len(p.statuses)-1].Up {
		t.Errorf("statuses: %+v", p.statuses)
	}
}

// TestServers: the next server is tried where one does not answer, and a refusal is told in words.
func TestServers(t *testing.T) {
	dead := listen(t)
	dead.Down()
	p := start(t, listen(t), func(c *config.External, _ *Options) { c.Servers = []string{dead.URL(), c.Servers[0]} })
	wait(t, "the second server", func() bool { return p.Status().Up })
	c := p.broker.Connects()[0]
	if c.Version != 5 || c.Clean || c.SessionExpiry != 3600 || c.ReceiveMaximum != 8 || c.Client != "gw-broker" || c.KeepAlive != 30 {
		t.Errorf("connect: %+v", c)
	}
	if !p.broker.Subscribed("$share/tidegate/plant/#") {
		t.Error("no shared subscription")
	}
	p.broker.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{Code: 0x86, Reason: "no"} }})
	p.broker.DropAll()
	wait(t, "the refusal", func() bool {
		s := p.Status()
		return !s.Up && strings.Contains(s.LastError, "bad user name or password: no")
	})
	p.broker.SetScript(testpeer.Script{})
	wait(t, "the server again", func() bool { return p.Status().Up })
}

// TestLastingRefusals: the same CONNECT is not repeated all the time where it will be refused again.
func TestLastingRefusals(t *testing.T) {
	p := defaultPace()
	for code, slow := range map[byte]bool{0x86: true, 0x87: true, 0x8E: true, 0x88: false, 0x97: false, 0x9A: false} {
		if d := p.wait(0, fmt.Errorf("x: %w", &refusal{code: code})); (d >= p.slow) != slow {
			t.Errorf("%#x: waits %v", code, d)
		}
	}
	for failures := range 100 {
		if d := p.wait(failures, errors.New("x")); d > p.limit {
			t.Errorf("waits %v after %d failures", d, failures)
		}
	}
}

var _ bridges.Bus = bus{}
