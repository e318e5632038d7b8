package edge

// What the specifications ask of a server, over the wire and in both versions. docs/conformance.md says which test stands for
// which statement. In this file and its neighbours a tag is of MQTT 5 unless "of 3.1.1" follows it; in conformance3_test.go all
// are of 3.1.1.

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// A client connects again, subscribes and gets what it publishes with each QoS, by the handshake that belongs to it.
func TestConformanceBasic(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		o := rawOptions{ID: "basic", V: v, Clean: true} // over TCP [MQTT-4.2.0-1]; [MQTT-7.1.1-1] of 3.1.1
		connect(t, b.addr, o).Disconnect()
		// The CONNACK is first, says success and of a clean start that there was no session: [MQTT-3.1.4-5] [MQTT-3.2.0-1]
		// [MQTT-3.2.2-2]; [MQTT-3.1.4-4] [MQTT-3.2.0-1] [MQTT-3.2.2-1] of 3.1.1.
		c := connect(t, b.addr, o)
		if c.Connack.SessionPresent {
			t.Error("session present after a clean start")
		}
		// One answer under the same identifier: [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-2.2.1-6]; [MQTT-3.8.4-1] [MQTT-3.8.4-2]
		// [MQTT-2.3.1-7] of 3.1.1.
		if ack := request(t, c, packets.Subscribe, 77, packets.Subscription{Filter: "basic", Qos: 2}); fmt.Sprint(ack.ReasonCodes) != "[2]" {
			t.Errorf("granted %v", ack.ReasonCodes)
		}
		// Each QoS by its own answer and identifier: [MQTT-3.3.4-1] [MQTT-2.2.1-5] [MQTT-4.3.2-4] [MQTT-4.3.3-8] [MQTT-4.3.3-11];
		// [MQTT-3.3.4-1] [MQTT-2.3.1-6] [MQTT-4.3.2-2] [MQTT-4.3.3-2] of 3.1.1.
		for qos := range byte(3) {
			if code := handOver(t, c, toPublish("basic", fmt.Sprint("QoS ", qos), qos)); code != codeSuccess {
				t.Errorf("QoS %d: %#x", qos, code)
			}
		}
		got := take(t, c, 3)
		wantSaid(t, got, "basic=QoS 0/0", "basic=QoS 1/1", "basic=QoS 2/2")
		// Fresh messages carry no DUP, and an identifier where they need one: [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]
		// [MQTT-2.2.1-2] [MQTT-2.2.1-4]; [MQTT-4.3.1-1] [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-2.3.1-5] [MQTT-2.3.1-4] of 3.1.1.
		for _, pk := range got {
			if pk.FixedHeader.Dup || (pk.PacketID != 0) != (pk.FixedHeader.Qos > 0) {
				t.Errorf("message with QoS %d: DUP %v, identifier %d", pk.FixedHeader.Qos, pk.FixedHeader.Dup, pk.PacketID)
			}
		}
		// A ping is answered [MQTT-3.12.4-1]; [MQTT-3.12.4-1] of 3.1.1.
		_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, c, packets.Pingresp)
		// A second CONNECT ends the connection [MQTT-3.1.0-2]; [MQTT-3.1.0-2] of 3.1.1.
		_ = c.Raw(connectBytes(v, 2, nil, "basic"))
		for _, pk := range closed(t, c) {
			if v == 4 || pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != codeProtocolError {
				t.Errorf("a second CONNECT is answered by %s %#x", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode)
			}
		}
	})
}

// What is not MQTT, or not as its first packet, is not let in.
func TestConformanceFirstPacket(t *testing.T) {
	b := startBroker(t, nil)
	// [MQTT-3.1.0-1]; [MQTT-3.1.0-1] of 3.1.1.
	for name, first := range map[string][]byte{"PINGREQ": {0xc0, 0}, "PUBLISH": {0x30, 4, 0, 1, 'a', 'x'}, "AUTH": {0xf0, 0}} {
		if got := answerTo(t, b.addr, first...); len(got) > 0 {
			t.Errorf("%s comes first: answered by %x", name, got)
		}
	}
	// A name that is none [MQTT-3.1.2-1]; [MQTT-3.1.2-1] of 3.1.1.
	for _, v := range []byte{4, 5} {
		bytes := connectBytes(v, 2, nil, "c")
		copy(bytes[4:], "MQTX")
		if got := answerTo(t, b.addr, bytes...); len(got) > 0 && (len(got) < 4 || got[0] != 0x20 || got[3] == 0) {
			t.Errorf("version %d with a wrong name: answered by %x", v, got)
		}
	}
	// Levels that are not spoken [MQTT-3.1.2-2]; [MQTT-3.1.2-2] of 3.1.1. No session, and an end: [MQTT-3.2.2-6] [MQTT-3.2.2-7]
	// [MQTT-4.13.2-1]; [MQTT-3.2.2-4] [MQTT-3.2.2-5] of 3.1.1.
	for _, level := range []byte{0, 3, 6, 0x84} {
		bytes := connectBytes(4, 2, nil, "c")
		bytes[8] = level
		if got := answerTo(t, b.addr, bytes...); fmt.Sprintf("%x", got) != "20020001" {
			t.Errorf("level %d: answered by %x", level, got)
		}
	}
	eventually(t, "nobody is in", func() bool { return b.Clients() == 0 && b.Sessions() == 0 })
}

// A silent client is closed as if the network had failed, its will is published; who asked for no keep alive stays.
func TestConformanceKeepAlive(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		t.Parallel()
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true, KeepAlive: 0})
		subscribe(t, s, "/keep", 2)
		start := time.Now()
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true, KeepAlive: 2, Mod: withWill("/keep", "silent", 2)})
		// One and a half times the keep alive, from the last packet: [MQTT-3.1.2-22] [MQTT-3.2.2-22]; [MQTT-3.1.2-24] of 3.1.1.
		time.Sleep(time.Second)
		due := 3 * time.Second
		if time.Since(start) < 2*time.Second { // else this machine is too slow to say something in time
			_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			expect(t, c, packets.Pingresp)
			due += time.Second
		}
		wantSaid(t, take(t, s, 1), "/keep=silent/2")
		if d := time.Since(start); d < due {
			t.Errorf("closed %v after its CONNECT, want %v or more", d, due)
		}
		for _, pk := range closed(t, c) {
			if v == 4 || pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode < codeUnspecified {
				t.Errorf("before the end: %s %#x", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode)
			}
		}
		_ = s.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, s, packets.Pingresp)
	})
}

// A filter that begins with a wildcard selects no topic that begins with $ [MQTT-4.7.2-1]; [MQTT-4.7.2-1] of 3.1.1. Nothing else
// is special about it.
func TestConformanceDollarTopics(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		wild := connect(t, b.addr, rawOptions{ID: "wild", V: v, Clean: true})
		for _, filter := range []string{"#", "+/#", "+/b", "+/+"} {
			subscribe(t, wild, filter, 1)
		}
		named := connect(t, b.addr, rawOptions{ID: "named", V: v, Clean: true})
		subscribe(t, named, "$a/+", 1)
		if err := b.Deliver(t.Context(), msg("$a/b", "hidden")); err != nil {
			t.Fatal(err)
		}
		wantSaid(t, take(t, named, 1), "$a/b=hidden/1")
		// From a device as well, which is told nothing else but that it is not allowed.
		if code := handOver(t, wild, toPublish("$a/b", "from a device", 1)); v == 5 && code != codeNotAuthorized {
			t.Errorf("a device published below $: %#x", code)
		}
		if err := b.Deliver(t.Context(), msg("a/b", "seen")); err != nil {
			t.Fatal(err)
		}
		wantSaid(t, take(t, wild, 1), "a/b=seen/1")
		silent(t, wild, 50*time.Millisecond)
	})
}

// Of three subscriptions one is removed, by a name that is compared as it stands, and nothing new comes through it.
func TestConformanceUnsubscribe(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		s := connect(t, b.addr, rawOptions{ID: "s", V: v, Clean: true})
		for _, filter := range []string{"u", "u/b", "x/+"} {
			subscribe(t, s, filter, 2)
		}
		p := connect(t, b.addr, rawOptions{ID: "p", V: v, Clean: true})
		handOver(t, p, toPublish("u", "under way", 2))
		open := expect(t, s, packets.Publish)
		// Two filters of which one is none: one answer, under the same identifier, a code for each in their order. The other is
		// spelt as a topic that x/+ selects, and is not it. [MQTT-3.10.4-1] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.10.4-6]
		// [MQTT-3.11.3-1] [MQTT-3.11.3-2] [MQTT-2.2.1-6]; [MQTT-3.10.4-1] [MQTT-3.10.4-4] [MQTT-3.10.4-6] [MQTT-2.3.1-7] of 3.1.1.
		ack := request(t, s, packets.Unsubscribe, 9, packets.Subscription{Filter: "x/y"}, packets.Subscription{Filter: "u"})
		if want := map[byte]string{4: "[]", 5: "[17 0]"}[v]; fmt.Sprint(ack.ReasonCodes) != want {
			t.Errorf("UNSUBACK %v, want %s", ack.ReasonCodes, want)
		}
		// Also where nothing was removed [MQTT-3.10.4-5]; [MQTT-3.10.4-5] of 3.1.1.
		request(t, s, packets.Unsubscribe, 10, packets.Subscription{Filter: "never"})
		// What was on its way is brought to its end [MQTT-3.10.4-3]; [MQTT-3.10.4-3] of 3.1.1.
		_ = s.Ack(packets.Pubrec, open.PacketID)
		expect(t, s, packets.Pubrel)
		_ = s.Ack(packets.Pubcomp, open.PacketID)
		// Nothing more comes through it [MQTT-3.10.4-2]; [MQTT-3.10.4-2] of 3.1.1.
		for _, topic := range []string{"u", "u/b", "x/y"} {
			handOver(t, p, toPublish(topic, "after", 1))
		}
		wantSaid(t, take(t, s, 2), "u/b=after/1", "x/y=after/1")
		silent(t, s, 50*time.Millisecond)
	})
}

// One SUBACK answers many filters, each by its own code and in their order; one that is refused does not touch the others.
func TestConformanceSubscribeFailure(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{
			User: "*", Publish: []string{"#"}, Subscribe: []string{"#"}, DenySubscribe: []string{"nobody/may"},
		})
	})
	for _, v := range []byte{4, 5} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
		// [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.9.3-2]; [MQTT-3.8.4-4] [MQTT-3.8.4-5] [MQTT-3.9.3-1]
		// [MQTT-3.9.3-2] of 3.1.1. Filters that are none: [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.8.2-1]
		// [MQTT-4.8.2-2]; [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] of 3.1.1.
		filters := []packets.Subscription{
			{Filter: "s/0", Qos: 0},
			{Filter: "nobody/may", Qos: 2},
			{Filter: "s/2", Qos: 2},
			{Filter: "s/1", Qos: 1},
			{Filter: "a#"},
			{Filter: "a/#/b"},
			{Filter: "a+/b"},
			{Filter: ""},
			{Filter: "$share//a"},
			{Filter: "$share/g"},
			{Filter: "$share/g+/a"},
		}
		ack := request(t, c, packets.Subscribe, 5, filters...)
		want := map[byte]string{4: "[0 128 2 1 128 128 128 128 128 128 128]", 5: "[0 135 2 1 143 143 143 143 143 143 143]"}[v]
		if got := fmt.Sprint(ack.ReasonCodes); got != want {
			t.Errorf("version %d: %s, want %s", v, got, want)
		}
		// The lower of both QoS [MQTT-3.8.4-8]; [MQTT-3.8.4-6] of 3.1.1.
		for _, topic := range []string{"s/0", "nobody/may", "s/2", "s/1"} {
			handOver(t, c, toPublish(topic, "x", 2))
		}
		wantSaid(t, take(t, c, 3), "s/0=x/0", "s/1=x/1", "s/2=x/2")
		c.Disconnect()
	}
}
