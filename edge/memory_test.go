package edge

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
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

// TestAliasMemory: the names that a client's aliases stand for take a bounded amount of memory, also where it may not publish there.
func TestAliasMemory(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"mine"}}) })
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	send := func(alias, size int) packets.Packet {
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1,
			TopicName: strings.Repeat("n", size), Payload: []byte("x"),
		}
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = uint16(alias), true
		if err := c.Send(pk); err != nil {
			t.Fatal(err)
		}
		got, err := c.Recv(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 3 { // one that is replaced counts once
		for alias := range aliasMaximum {
			if got := send(alias+1, maxAliasBytes/aliasMaximum); got.ReasonCode != codeNotAuthorized {
				t.Fatalf("alias %d: %v", alias+1, got)
			}
		}
	}
	if got := send(1, maxAliasBytes/aliasMaximum+1); got.FixedHeader.Type != packets.Disconnect || got.ReasonCode != codeQuota {
		t.Errorf("one byte more: %v", got)
	}
}

// TestUnfinishedConnects: what peers send that never finish their CONNECT takes a bounded amount of memory for all of them together.
func TestUnfinishedConnects(t *testing.T) {
	n := min(halfOpen(t), 3000)
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients = 10_000 })
	by := newBystander(t, b)
	before := memory()
	packet := make([]byte, 70_000) // of 72 KiB
	copy(packet, "\x10\xfc\xbf\x04\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab")
	for i := range n {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		_, _ = c.Write(packet) // it may be closed meanwhile
	}
	refused := func() float64 { return b.metric(t, "tidegate_refused_connections_total") }
	eventually(t, "most of them are closed", func() bool { return refused() > float64(n)/2 })
	if used := memory() - before; used > 80<<20 {
		t.Errorf("%d connections that never said who they are hold %d MiB", n, used>>20)
	}
	by.works()
	connect(t, b.addr, rawOptions{ID: "another", V: 5, Clean: true})
}

// TestSessionsOfOneUser: a user cannot end the sessions of others, and what waits in them, by making many.
func TestSessionsOfOneUser(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients, o.ACL = 100, everybody{} })
	ann := connect(t, b.addr, rawOptions{ID: "press-1", V: 5, Clean: true, Expiry: 3600, User: "ann", Pass: "x"})
	subscribe(t, ann, "cmd/#", 1)
	ann.Disconnect()
	eventually(t, "ann is away", func() bool { return b.Clients() == 0 })
	if _, err := b.Publish(msg("cmd/x", "stop")); err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		connect(t, b.addr, rawOptions{ID: fmt.Sprint("eve", i), V: 5, Clean: true, Expiry: 3600, User: "eve", Pass: "x"}).Disconnect()
	}
	again := connect(t, b.addr, rawOptions{ID: "press-1", V: 5, Expiry: 3600, User: "ann", Pass: "x"})
	if pk, err := again.Recv(30 * time.Second); err != nil || pk.TopicName != "cmd/x" {
		t.Errorf("session present %v; the command is lost: %v", again.Connack.SessionPresent, err)
	}
	if n := b.Sessions(); n > 201 {
		t.Errorf("%d sessions", n)
	}
}
