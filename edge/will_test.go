package edge

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// richWill is a will with everything a will can have.
func richWill(delay uint32) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		withWill("w", "gone", 1)(pk)
		pk.Connect.WillRetain = true
		p := &pk.Connect.WillProperties
		p.WillDelayInterval, p.MessageExpiryInterval = delay, 50
		p.ContentType, p.ResponseTopic, p.CorrelationData = "text/plain", "r", []byte("c")
		p.PayloadFormat, p.PayloadFormatFlag = 1, true
		p.User = []packets.UserProperty{{Key: "k", Val: "v"}}
	}
}

func watcher(t *testing.T, b *testBroker) *rawClient {
	t.Helper()
	s := connect(t, b.addr, rawOptions{ID: "watcher", V: 5, Clean: true})
	subscribe(t, s, "w", 1)
	return s
}

func TestWill(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(0)})
	_ = c.Close()
	pk := expect(t, s, packets.Publish)
	_ = s.Ack(packets.Puback, pk.PacketID)
	p := pk.Properties
	if string(pk.Payload) != "gone" || pk.FixedHeader.Qos != 1 || p.ContentType != "text/plain" || p.ResponseTopic != "r" ||
		string(p.CorrelationData) != "c" || p.MessageExpiryInterval == 0 || p.MessageExpiryInterval > 50 || len(p.User) != 1 || p.PayloadFormat != 1 {
		t.Errorf("got %+v", pk)
	}
	ms := b.disk.messages()
	if len(ms) != 1 || ms[0].Topic != "w" || !ms[0].Retain || ms[0].Source.Client != "c" || ms[0].ID.IsZero() {
		t.Errorf("ingested %+v", ms)
	}
	if r := b.Retained("w"); len(r) != 1 || string(r[0].Payload) != "gone" {
		t.Errorf("retained %+v", r)
	}
}

func TestWillAndDisconnect(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(0)})
	c.Disconnect()
	silent(t, s, 100*time.Millisecond)
	c = connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(0)})
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: codeWillWithDelivery})
	expect(t, s, packets.Publish)
	for _, short := range [][]byte{{0xe0, 1, codeWillWithDelivery}, {0xe0, 1, codeUnspecified}} { // MQTT 5, 3.14.2.2.1
		c = connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(0)})
		_ = c.Raw(short)
		expect(t, s, packets.Publish)
	}
	for _, plain := range [][]byte{{0xe0, 0}, {0xe0, 1, codeSuccess}} {
		c = connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(0)})
		_ = c.Raw(plain)
		silent(t, s, 100*time.Millisecond)
	}
	c = connect(t, b.addr, rawOptions{ID: "d", V: 4, Clean: true, Mod: withWill("w", "protocol error", 0)})
	_ = c.Raw([]byte{0xf0, 0})
	expect(t, s, packets.Publish)
}

func TestWillDelay(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	o := rawOptions{ID: "c", V: 5, Expiry: 60, Mod: richWill(2)}
	gone := func() {
		eventually(t, "disconnected", func() bool { return b.Clients() == 1 })
	}
	c := connect(t, b.addr, o)
	_ = c.Close()
	gone()
	c = connect(t, b.addr, o) // back in time
	silent(t, s, 3500*time.Millisecond)
	start := time.Now()
	_ = c.Close()
	pk := expect(t, s, packets.Publish)
	_ = s.Ack(packets.Puback, pk.PacketID)
	if d := time.Since(start); d < 2*time.Second {
		t.Errorf("came after %v", d)
	}
	c = connect(t, b.addr, o)
	_ = c.Close()
	gone()
	o.Clean, o.Mod = true, nil // ends the session, and with it the delay
	connect(t, b.addr, o)
	pk = expect(t, s, packets.Publish)
	_ = s.Ack(packets.Puback, pk.PacketID)
}

// The session's end ends the delay.
func TestWillDelayLongerThanSession(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: richWill(600)})
	_ = c.Close()
	expect(t, s, packets.Publish)
}

func TestWillAtTakeOver(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	next := func(c *rawClient) {
		pk := expect(t, c, packets.Publish)
		_ = c.Ack(packets.Puback, pk.PacketID)
	}
	connect(t, b.addr, rawOptions{ID: "now", V: 4, Mod: withWill("w", "x", 1)})
	connect(t, b.addr, rawOptions{ID: "now", V: 4})
	next(s)
	connect(t, b.addr, rawOptions{ID: "delayed", V: 5, Expiry: 60, Mod: richWill(1)})
	connect(t, b.addr, rawOptions{ID: "delayed", V: 5, Expiry: 60})
	silent(t, s, 100*time.Millisecond) // came back in time
	connect(t, b.addr, rawOptions{ID: "clean", V: 5, Expiry: 60, Mod: richWill(600)})
	connect(t, b.addr, rawOptions{ID: "clean", V: 5, Expiry: 60, Clean: true})
	next(s)
}

// A client that was closed because its message could not be taken is expected back: no will at once.
func TestWillAfterOwnClose(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	o := rawOptions{ID: "c", V: 4, Clean: true, Mod: withWill("w", "x", 1)}
	c := connect(t, b.addr, o)
	b.disk.refuseWith(message.ErrBusy)
	_ = c.Publish(1, "a", 1, nil)
	closed(t, c)
	b.disk.refuseWith(nil)
	silent(t, s, 100*time.Millisecond)
	eventually(t, "the will waits", func() bool {
		b.wills.mu.Lock()
		defer b.wills.mu.Unlock()
		return len(b.wills.pending) == 1
	})
	connect(t, b.addr, o)
	b.wills.mu.Lock()
	n := len(b.wills.pending)
	b.wills.mu.Unlock()
	if n != 0 {
		t.Error("the will still waits though the client is back")
	}
}

// Rules may change while a client is connected: its will is judged again when it is published.
func TestWillIsJudgedAgain(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	b.disk.refuseWith(message.ErrNotAllowed)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true, Mod: withWill("w", "x", 1)})
	_ = c.Close()
	silent(t, s, 100*time.Millisecond)
	if n := b.metric(t, "tidegate_refused_messages_total", "reason", "not_allowed"); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// A client that comes back and says so is not contradicted by the will of its old connection afterwards.
func TestWillDoesNotComeAfterTheReturn(t *testing.T) {
	b := startBroker(t, nil)
	for i := range 100 {
		o := rawOptions{ID: "c", V: 4, Clean: i%2 == 0, Mod: func(pk *packets.Packet) {
			withWill("state", "offline", 1)(pk)
			pk.Connect.WillRetain = true
		}}
		old := connect(t, b.addr, o)
		if i%4 < 2 {
			_ = old.Close() // else: taken over
		}
		c := connect(t, b.addr, o)
		_ = c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: 1, TopicName: "state", Payload: []byte("online"),
		})
		expect(t, c, packets.Puback)
		if i%4 >= 2 {
			closed(t, old)
		}
		eventually(t, "the old connection is gone", func() bool { return b.Clients() == 1 })
		if kept := b.Retained("state"); len(kept) != 1 || string(kept[0].Payload) != "online" {
			t.Fatalf("round %d: state is %q", i, kept[0].Payload)
		}
		c.Disconnect()
		eventually(t, "gone", func() bool { return b.Clients() == 0 })
	}
}

// A will that falls due while too much waits for the disk goes up later, and before its client is back at the latest.
func TestWillWhileDiskIsBehind(t *testing.T) {
	b := startBroker(t, nil)
	s := watcher(t, b)
	b.disk.hold()
	behind := func() {
		b.disk.mu.Lock()
		defer b.disk.mu.Unlock()
		b.disk.fail = func(message.Message) error { return late{message.NewTicket(b.disk, 1000)} }
	}
	waits := func() {
		t.Helper()
		eventually(t, "the will waits", func() bool { return b.wills.count() == 1 })
		silent(t, s, 50*time.Millisecond)
		b.disk.refuseWith(nil)
	}
	o := rawOptions{ID: "c", V: 4, Mod: withWill("w", "gone", 1)}
	c := connect(t, b.addr, o)
	behind()
	_ = c.Close()
	waits()
	pk := expect(t, s, packets.Publish)
	_ = s.Ack(packets.Puback, pk.PacketID)
	if n := b.disk.n.Load(); n != 1 {
		t.Errorf("%d wills taken, want 1", n)
	}
	c = connect(t, b.addr, o)
	behind()
	_ = c.Close()
	waits()
	connect(t, b.addr, o)
	if n := b.disk.n.Load(); n != 2 {
		t.Errorf("%d wills taken when the client is back, want 2", n)
	}
	if n := b.metric(t, "tidegate_refused_messages_total", "reason", "busy"); n != 0 {
		t.Errorf("%v refused", n)
	}
}

// A session that has to make room for another ends, and with it the delay of its client's will.
func TestWillOfEvictedSession(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients = 2 })
	s := watcher(t, b)
	for i := range 4 { // with the watcher's, one session too many
		c := connect(t, b.addr, rawOptions{ID: string(rune('a' + i)), V: 5, Expiry: 600, Mod: richWill(600)})
		_ = c.Close()
		eventually(t, "left", func() bool { return b.Clients() == 1 })
	}
	expect(t, s, packets.Publish)
	if got := b.disk.messages(); len(got) != 1 || got[0].Source.Client != "a" {
		t.Errorf("wills of %v", got)
	}
}
