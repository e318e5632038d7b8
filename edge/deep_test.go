package edge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/edge/session"
)

// deepTopic is a topic of very many levels that shares none with others.
func deepTopic(i int) string { return fmt.Sprint("d", i, strings.Repeat("/a", maxLevels-2)) }

// TestDeepSubscriptions: what a client's filters take is bounded, however many levels they have.
func TestDeepSubscriptions(t *testing.T) {
	b := startBroker(t, nil)
	by := newBystander(t, b)
	before := memory()
	for n := range 7 {
		c := connect(t, b.addr, rawOptions{ID: fmt.Sprint("deep", n), V: 5, Clean: true})
		refused := 0
		for i := range 100 {
			pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: uint16(i + 1)}
			for k := range 100 {
				pk.Filters = append(pk.Filters, packets.Subscription{Filter: deepTopic(n*100000 + i*100 + k)})
			}
			if err := c.Send(pk); err != nil {
				t.Fatal(err)
			}
			for _, code := range expect(t, c, packets.Suback).ReasonCodes {
				if code == codeQuota {
					refused++
				}
			}
		}
		if n < 5 && refused > 9600 || refused < 9400 {
			t.Errorf("client %d: %d were refused", n, refused)
		}
		if code := subscribe(t, c, deepTopic(999_999), 0); code != codeQuota {
			t.Errorf("another one: %#x", code)
		}
		if code := subscribe(t, c, deepTopic(n*100000), 0); code != 0 {
			t.Errorf("one that is there already: %#x", code)
		}
		if n > 0 {
			continue
		}
		for i := range 600 { // what is given back is there again
			pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 1, Filters: packets.Subscriptions{{Filter: deepTopic(i)}}}
			if err := c.Send(pk); err != nil {
				t.Fatal(err)
			}
			expect(t, c, packets.Unsuback)
		}
		if code := subscribe(t, c, deepTopic(999_999), 0); code != 0 {
			t.Errorf("another one, after some were given up: %#x", code)
		}
	}
	by.works()
	if code := subscribe(t, by.c, "plant/line/+/press/#", 0); code != 0 {
		t.Errorf("nobody else may subscribe: %#x", code)
	}
	if n := (memory() - before) >> 20; n > 150 {
		t.Errorf("%d MiB for seven clients", n)
	}
}

// TestDeepRetained: so is what retained messages take.
func TestDeepRetained(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.RetainedLimit = 100_000 })
	by := newBystander(t, b)
	before := memory()
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	const n = 50_000
	go func() {
		for i := range n {
			_ = c.Send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, TopicName: deepTopic(i), PacketID: uint16(i%60000 + 1), Payload: []byte("x"),
			})
		}
	}()
	for range n {
		if pk, err := c.Recv(time.Minute); err != nil || pk.FixedHeader.Type != packets.Puback {
			t.Fatal(pk, err)
		}
	}
	by.works()
	b.disk.mu.Lock()
	b.disk.taken = nil
	b.disk.mu.Unlock()
	if n := (memory() - before) >> 20; n > 150 {
		t.Errorf("%d MiB for retained messages", n)
	}
	if b.metric(t, "tidegate_session_drops_total", "reason", session.DropRetained) == 0 {
		t.Error("all were retained")
	}
}
