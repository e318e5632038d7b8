package edge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// away ends a client's connection with a DISCONNECT and waits until the broker knows.
func away(t *testing.T, b *testBroker, c *rawClient) {
	t.Helper()
	before := b.Clients()
	c.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() < before })
}

// Messages with QoS 1 and 2 wait for a client whose session is kept, in order for each; those with QoS 0 do not.
func TestConformanceOfflineQueue(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		o := kept("away", v)
		c := connect(t, b.addr, o)
		// A new session [MQTT-3.1.2-6] [MQTT-3.2.2-3]; [MQTT-3.1.2-4] [MQTT-3.2.2-3] of 3.1.1.
		if c.Connack.SessionPresent {
			t.Error("session present on the first connection")
		}
		subscribe(t, c, "off/+", 2)
		away(t, b, c)
		p := connect(t, b.addr, rawOptions{ID: "p", V: v, Clean: true})
		for i := range 3 {
			for qos := range byte(3) {
				handOver(t, p, toPublish(fmt.Sprint("off/", qos), fmt.Sprint(i), qos))
			}
		}
		// It lasted as long as it had to: [MQTT-4.1.0-1]; [MQTT-4.1.0-1] [MQTT-4.1.0-2] of 3.1.1. It is resumed, with its subscriptions and what waited: [MQTT-3.1.2-5] [MQTT-3.1.2-23] [MQTT-3.2.2-3] [MQTT-4.5.0-1];
		// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.2.2-2] [MQTT-4.5.0-1] of 3.1.1.
		c = connect(t, b.addr, o)
		if !c.Connack.SessionPresent {
			t.Error("no session present")
		}
		got := take(t, c, 6)
		wantSaid(t, got, "off/1=0/1", "off/1=1/1", "off/1=2/1", "off/2=0/2", "off/2=1/2", "off/2=2/2")
		// In the order of their publisher, for each topic and QoS: [MQTT-4.6.0-5] [MQTT-4.6.0-6]; [MQTT-4.6.0-5] [MQTT-4.6.0-6] of 3.1.1.
		order := map[string]string{}
		for _, pk := range got {
			order[pk.TopicName] += string(pk.Payload)
		}
		if order["off/1"] != "012" || order["off/2"] != "012" {
			t.Errorf("order %v", order)
		}
		// A clean start ends it, with all of its state: [MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT-3.2.2-2]; [MQTT-3.1.2-6]
		// [MQTT-3.1.4-3] [MQTT-3.2.2-1] of 3.1.1.
		away(t, b, c)
		handOver(t, p, toPublish("off/1", "lost with the session", 1))
		o.Clean = true
		c = connect(t, b.addr, o)
		if c.Connack.SessionPresent {
			t.Error("session present after a clean start")
		}
		handOver(t, p, toPublish("off/1", "nobody subscribes", 1))
		subscribe(t, c, "off/1", 1)
		handOver(t, p, toPublish("off/1", "new", 1))
		wantSaid(t, take(t, c, 1), "off/1=new/1")
	})
}

// What a client left without an answer comes again when it is back, and only then: with DUP and the old identifiers, in the old
// order; what it answered by a PUBREC comes as a PUBREL.
func TestConformanceRedelivery(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		o := kept("back", v)
		c := connect(t, b.addr, o)
		subscribe(t, c, "re/#", 2)
		// By itself, so that its own identifiers meet those of the broker.
		var first []packets.Packet
		for i, qos := range []byte{1, 2, 2, 1} {
			handOver(t, c, toPublish(fmt.Sprint("re/", i), "x", qos))
			first = append(first, expect(t, c, packets.Publish))
		}
		_ = c.Ack(packets.Pubrec, first[2].PacketID)
		// [MQTT-4.3.3-4]; [MQTT-4.3.3-1] of 3.1.1.
		if rel := expect(t, c, packets.Pubrel); rel.PacketID != first[2].PacketID {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, first[2].PacketID)
		}
		silent(t, c, 100*time.Millisecond) // not while the connection is there [MQTT-4.4.0-1]
		away(t, b, c)
		c = connect(t, b.addr, o)
		// [MQTT-3.3.1-1] [MQTT-4.3.2-3] [MQTT-4.3.3-3] [MQTT-4.3.3-5] [MQTT-4.3.3-6] [MQTT-4.4.0-1]; [MQTT-2.3.1-4] [MQTT-3.3.1-1]
		// [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.4.0-1] of 3.1.1.
		for _, i := range []int{0, 1, 3} {
			pk, err := c.Recv(patience)
			for err == nil && pk.FixedHeader.Type == packets.Pubrel { // wherever it comes
				if pk.PacketID != first[2].PacketID {
					t.Errorf("PUBREL for %d, want %d", pk.PacketID, first[2].PacketID)
				}
				_ = c.Ack(packets.Pubcomp, pk.PacketID)
				pk, err = c.Recv(patience)
			}
			want := first[i]
			if err != nil || pk.FixedHeader.Type != packets.Publish || !pk.FixedHeader.Dup || pk.PacketID != want.PacketID ||
				pk.TopicName != want.TopicName || pk.FixedHeader.Qos != want.FixedHeader.Qos {
				t.Fatalf("got %+v %q under %d, want %q again under %d: %v", pk.FixedHeader, pk.TopicName, pk.PacketID, want.TopicName, want.PacketID, err)
			}
			if pk.FixedHeader.Qos == 1 {
				_ = c.Ack(packets.Puback, pk.PacketID)
				continue
			}
			_ = c.Ack(packets.Pubrec, pk.PacketID)
		}
		rel := expect(t, c, packets.Pubrel)
		if rel.PacketID != first[1].PacketID {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, first[1].PacketID)
		}
		_ = c.Ack(packets.Pubcomp, rel.PacketID)
		_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, c, packets.Pingresp)
		away(t, b, c)
		c = connect(t, b.addr, o)
		silent(t, c, 100*time.Millisecond) // all is answered
	})
}

// A repetition with QoS 2 is acknowledged again and delivered once; after its end the identifier stands for a new message. With
// QoS 1 it does so at once, whatever DUP says.
func TestConformanceRepetition(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true})
		subscribe(t, s, "rep", 0)
		c := connect(t, b.addr, kept("c", v))
		two := toPublish("rep", "two", 2)
		_ = c.Send(two)
		expect(t, c, packets.Pubrec)
		two.FixedHeader.Dup = true
		// [MQTT-4.3.3-10]; [MQTT-4.3.3-2] of 3.1.1.
		_ = c.Send(two)
		expect(t, c, packets.Pubrec)
		if comp := finish(t, c, 1); comp.ReasonCode != codeSuccess {
			t.Errorf("PUBCOMP %#x", comp.ReasonCode)
		}
		// [MQTT-4.3.3-12]; [MQTT-4.3.3-2] of 3.1.1.
		handOver(t, c, two)
		// [MQTT-4.3.2-5]; [MQTT-4.3.2-2] of 3.1.1.
		one := toPublish("rep", "one", 1)
		handOver(t, c, one)
		one.FixedHeader.Dup = true
		handOver(t, c, one)
		got := take(t, s, 4)
		wantSaid(t, got, "rep=two/0", "rep=two/0", "rep=one/0", "rep=one/0")
		// The flag of the publisher is not handed on [MQTT-3.3.1-2] [MQTT-3.3.1-3]; [MQTT-3.3.1-2] [MQTT-3.3.1-3] of 3.1.1.
		for _, pk := range got {
			if pk.FixedHeader.Dup {
				t.Error("DUP on a message that was sent once")
			}
		}
		silent(t, s, 50*time.Millisecond)
	})
}

// finish ends a QoS 2 exchange of a publisher.
func finish(t testing.TB, c *rawClient, id uint16) packets.Packet {
	t.Helper()
	_ = c.Ack(packets.Pubrel, id)
	comp := expect(t, c, packets.Pubcomp)
	if comp.PacketID != id {
		t.Errorf("PUBCOMP for %d, want %d", comp.PacketID, id)
	}
	return comp
}

// Who comes by another connection takes the session over, and the earlier connection ends.
func TestConformanceTakeOver(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		old := connect(t, b.addr, kept("same", v))
		subscribe(t, old, "same", 1)
		handOver(t, old, toPublish("same", "x", 1))
		first := expect(t, old, packets.Publish)
		fresh := connect(t, b.addr, kept("same", v))
		// [MQTT-3.1.4-3] [MQTT-3.1.3-2] [MQTT-3.14.4-1] [MQTT-3.14.4-2]; [MQTT-3.1.4-2] [MQTT-3.1.3-2] of 3.1.1.
		before := closed(t, old)
		if v == 4 && len(before) > 0 || v == 5 && (len(before) != 1 || before[0].ReasonCode != codeTakenOver) {
			t.Errorf("the earlier connection got %v", before)
		}
		if pk := expect(t, fresh, packets.Publish); pk.PacketID != first.PacketID || !pk.FixedHeader.Dup {
			t.Errorf("got %+v under %d, want the message again under %d", pk.FixedHeader, pk.PacketID, first.PacketID)
		}
	})
}

// Client identifiers of any length and script name different sessions.
func TestConformanceClientIdentifiers(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		// [MQTT-3.1.3-2] [MQTT-3.1.3-5]; [MQTT-3.1.3-2] [MQTT-3.1.3-5] of 3.1.1. No-break spaces are kept and count:
		// [MQTT-1.5.4-3]; [MQTT-1.5.3-3] of 3.1.1.
		ids := []string{"0", "abcdefghijklmnopqrstuvw", "XYZ0123456789ABCDEFGHIJ", "\ufeffabc", "abc", "gerät/水", strings.Repeat("i", 200)}
		for round := range 2 {
			for _, id := range ids {
				c := connect(t, b.addr, kept(id, v))
				if c.Connack.SessionPresent != (round == 1) {
					t.Errorf("%q, round %d: session present %v", id, round, c.Connack.SessionPresent)
				}
				c.Disconnect()
			}
			eventually(t, "all have left", func() bool { return b.Clients() == 0 })
		}
	})
}

// Topics are compared as they stand: nothing is folded, trimmed or completed.
func TestConformanceTopicsAsTheyStand(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true})
		// [MQTT-3.3.2-3] [MQTT-4.7.3-4] [MQTT-1.5.4-3]; [MQTT-3.3.2-3] [MQTT-4.7.3-4] [MQTT-1.5.3-3] of 3.1.1.
		for _, filter := range []string{"Accounts", "a b", "\ufeffc", "é", "x/", "/y", "z//z", "+/end", "all/#"} {
			subscribe(t, s, filter, 1)
		}
		for topic, matches := range map[string]bool{
			"Accounts": true, "ACCOUNTS": false, "a b": true, "ab": false, "\ufeffc": true, "c": false, "\u00e9": true, "e\u0301": false,
			"x/": true, "x": false, "/y": true, "y": false, "z//z": true, "z/z": false, "/end": true, "a/b/end": false, "all": true, "all/a/b": true,
			"ALL/a": false,
		} {
			handOver(t, s, toPublish(topic, "", 1))
			handOver(t, s, toPublish("all", "mark", 1))
			want := []string{"all=mark/1"}
			if matches {
				want = append(want, topic+"=/1")
			}
			wantSaid(t, take(t, s, len(want)), want...)
		}
	})
}
