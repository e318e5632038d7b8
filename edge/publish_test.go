package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
	"tidegate/message"
)

func msg(topic, payload string) message.Message {
	return message.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Source: message.Source{Protocol: message.OPCUA}}
}

func TestPublishFromBridge(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"ok"}, Subscribe: []string{"#"}})
	})
	b.disk.hold()
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "#", 1)
	ticket, err := b.Publish(msg("plant/x", "1"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c, packets.Publish)
	if ticket.Durable() {
		t.Error("durable before the disk")
	}
	b.disk.sync(1)
	if err := ticket.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if m := b.disk.messages()[0]; m.ID.IsZero() || m.Received.IsZero() {
		t.Errorf("ingested %+v", m)
	}
	from := func(p message.Protocol, topic string) error {
		m := msg(topic, "x")
		m.Source.Protocol = p
		_, err := b.Publish(m)
		return err
	}
	for _, tt := range []struct {
		protocol message.Protocol
		topic    string
		want     error
	}{
		{message.OPCUA, "a/#", message.ErrInvalid},
		{message.OPCUA, "tidegate/x", message.ErrNotAllowed},
		{message.Self, "tidegate/x", nil},
		{message.CoAP, "plant/x", message.ErrNotAllowed},
		{message.HTTP, "plant/x", message.ErrNotAllowed},
		{message.CoAP, "ok", nil},
	} {
		if err := from(tt.protocol, tt.topic); !errors.Is(err, tt.want) {
			t.Errorf("%s %s: %v, want %v", tt.protocol, tt.topic, err, tt.want)
		}
	}
	if n := b.metric(t, "tidegate_refused_messages_total", "protocol", "coap", "reason", "not_allowed"); n != 1 {
		t.Errorf("counted %v", n)
	}
	if n := b.metric(t, "tidegate_ingested_messages_total", "protocol", "coap"); n != 1 {
		t.Errorf("counted %v", n)
	}
	b.disk.refuseWith(message.ErrBusy)
	if err := from(message.OPCUA, "plant/x"); !errors.Is(err, message.ErrBusy) {
		t.Error(err)
	}
}

// TestBusAlone: without listeners a Broker is the bus of the bridges, and what is taken without the local subscribers reaches none.
func TestBusAlone(t *testing.T) {
	model := startBroker(t, nil)
	o := model.o
	o.Listeners, o.Metrics = nil, nil
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	got := make(chan string, 10)
	if _, err := b.Subscribe("#", func(_ context.Context, m message.Message) error { got <- m.Topic; return nil }); err != nil {
		t.Fatal(err)
	}
	for i, take := range []message.Ingest{b.Take, b.Publish} {
		if _, err := take(msg(fmt.Sprint("plant/", i), "x")); err != nil {
			t.Error(err)
		}
		if _, err := take(msg("tidegate/x", "x")); !errors.Is(err, message.ErrNotAllowed) {
			t.Error(err)
		}
	}
	if topic := <-got; topic != "plant/1" {
		t.Errorf("the subscriber got %s first", topic)
	}
	if n := model.disk.n.Load(); n != 2 {
		t.Errorf("%d messages were taken", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDeliver(t *testing.T) {
	b := startBroker(t, nil)
	if err := b.Deliver(t.Context(), msg("cmd/x", "1")); !errors.Is(err, message.ErrNoMatch) {
		t.Errorf("nobody subscribed: %v", err)
	}
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4})
	subscribe(t, c, "cmd/#", 1)
	c.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == 0 })
	if err := b.Deliver(t.Context(), msg("cmd/x", "1")); err != nil {
		t.Error(err)
	}
	c = connect(t, b.addr, rawOptions{ID: "c", V: 4})
	if pk := expect(t, c, packets.Publish); pk.TopicName != "cmd/x" {
		t.Errorf("got %s", pk.TopicName)
	}
	if err := b.Deliver(t.Context(), msg("cmd/#", "1")); !errors.Is(err, message.ErrInvalid) {
		t.Errorf("bad topic: %v", err)
	}
	if n := b.disk.n.Load(); n != 0 {
		t.Errorf("%d ingested: a command went up again", n)
	}
}

func TestSubscribeOfProcess(t *testing.T) {
	b := startBroker(t, nil)
	var mu sync.Mutex
	var got []string
	cancel, err := b.Subscribe("h/+", func(_ context.Context, m message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, string(m.Payload))
		return errors.New("noted")
	})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	for i := range 100 {
		_ = c.Publish(1, "h/x", 1, []byte(fmt.Sprint(i)))
		expect(t, c, packets.Puback)
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(got) }
	eventually(t, "100 messages", func() bool { return count() == 100 })
	for i, p := range got {
		if p != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, p)
		}
	}
	cancel()
	cancel()
	if err := b.Deliver(t.Context(), msg("h/x", "1")); !errors.Is(err, message.ErrNoMatch) {
		t.Errorf("after cancel: %v", err)
	}
	if _, err := b.Subscribe("a/#/b", nil); !errors.Is(err, message.ErrInvalid) {
		t.Errorf("bad filter: %v", err)
	}
}

// A handler that does not return holds up nobody but itself.
func TestStuckHandler(t *testing.T) {
	b := startBroker(t, nil)
	entered := make(chan struct{}, 1)
	_, err := b.Subscribe("h", func(ctx context.Context, _ message.Message) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "h", 0)
	var last error
	for i := range 1100 {
		last = b.Deliver(t.Context(), msg("h", "x"))
		if i == 0 {
			<-entered
		}
	}
	// What is offered again and again until it is taken reaches the others once.
	if !errors.Is(last, message.ErrBusy) {
		t.Errorf("queue full: %v", last)
	}
	if got, _ := collectAny(c, 1024+1, time.Minute); got != 1024+1 {
		t.Errorf("the other subscriber got %d", got)
	}
	_ = c.Publish(0, "h", 0, nil)
	if got, _ := collectAny(c, 1, time.Minute); got != 1 {
		t.Error("the other subscriber gets nothing more")
	}
	if got, _ := collectAny(c, 1, 50*time.Millisecond); got != 0 {
		t.Error("the other subscriber got what was not taken")
	}
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "handler"); n != 1 {
		t.Errorf("dropped %v", n)
	}
}

// collectAny counts PUBLISH packets.
func collectAny(c *rawClient, n int, idle time.Duration) (got int, err error) {
	for got < n {
		pk, err := c.Recv(idle)
		if err != nil {
			return got, err
		}
		if pk.FixedHeader.Type == packets.Publish {
			got++
		}
	}
	return got, nil
}
