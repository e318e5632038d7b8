package edge

import (
	"runtime"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// An orderly stop: version 5 clients are told, acknowledgements leave when their records reach the disk in time, wills are
// not published, and nothing is left running.
func TestStop(t *testing.T) {
	before := runtime.NumGoroutine()
	b := startBroker(t, nil)
	b.disk.hold()
	var clients []*rawClient
	for i, v := range []byte{4, 5} {
		c := connect(t, b.addr, rawOptions{ID: string(rune('a' + i)), V: v, Clean: true, Mod: withWill("w", "x", 0)})
		subscribe(t, c, "#", 0)
		_ = c.Publish(1, "a", 1, nil)
		expect(t, c, packets.Publish)
		if i == 1 {
			expect(t, clients[0], packets.Publish)
		}
		// The answer says that the PUBLISH was handled to its end: its acknowledgement waits in the gate.
		_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, c, packets.Pingresp)
		clients = append(clients, c)
	}
	stopped := make(chan error, 1)
	start := time.Now()
	go func() { stopped <- b.stop() }()
	silent(t, clients[0], 100*time.Millisecond)
	b.disk.sync(2)
	for i, c := range clients {
		expect(t, c, packets.Puback)
		rest := closed(t, c)
		if i == 1 && (len(rest) != 1 || rest[0].FixedHeader.Type != packets.Disconnect || rest[0].ReasonCode != codeShuttingDown) ||
			i == 0 && len(rest) != 0 {
			t.Errorf("version %d: after the acknowledgement %v", c.V, rest)
		}
		_ = c.Close()
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if n := b.disk.n.Load(); n != 2 {
		t.Errorf("%d messages: wills were published", n)
	}
	if _, err := rawDial(b.addr, rawOptions{ID: "late", V: 4}); err == nil {
		t.Error("still accepts")
	}
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+1 })
}

// The stop has a deadline, whatever the disk and the peers do.
func TestStopWithStuckDiskAndPeer(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.hold()
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Publish(1, "a", 1, nil)
	stuck := connect(t, b.addr, rawOptions{ID: "stuck", V: 4, Clean: true, RcvBuf: 4096})
	subscribe(t, stuck, "x", 1)
	for range 500 {
		m := msg("x", "")
		m.Payload = make([]byte, 16<<10)
		_, _ = b.Publish(m)
	}
	start := time.Now()
	if err := b.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	for _, pk := range closed(t, c) {
		if pk.FixedHeader.Type == packets.Puback {
			t.Error("acknowledged though not on disk")
		}
	}
}

func TestNewErrors(t *testing.T) {
	b := startBroker(t, nil)
	for _, l := range []map[string]config.Listener{
		{"x": {Listen: "mqtts://127.0.0.1:0"}},
		{"x": {Listen: "mqtt://" + b.addr}},
		{"x": {Listen: "mqtt://127.0.0.1:http:1"}},
	} {
		o := b.o
		o.Listeners = l
		o.Metrics = nil
		if got, err := New(o); err == nil {
			_ = got.Close()
			t.Errorf("%v: no error", l)
		}
	}
}

// With nothing held the stop is quick, also where clients do not close their side.
func TestStopIsQuick(t *testing.T) {
	b := startBroker(t, nil)
	for i, v := range []byte{4, 5} {
		connect(t, b.addr, rawOptions{ID: string(rune('a' + i)), V: v})
	}
	begin := time.Now()
	if err := b.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 500*time.Millisecond {
		t.Errorf("took %v", d)
	}
}
