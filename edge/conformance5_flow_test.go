package edge

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// A client gets as many unacknowledged messages as its Receive Maximum allows [MQTT-3.3.4-9] [MQTT-4.9.0-1] [MQTT-4.9.0-2], and
// meanwhile everything else [MQTT-3.3.4-10] [MQTT-4.9.0-3]. An acknowledgement makes room for one, also one that says no
// [MQTT-4.4.0-2].
func TestConformance5FlowControlOfClient(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, RM: 2})
	subscribe(t, c, "flow", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	for i := range 6 {
		handOver(t, p, toPublish("flow", fmt.Sprint(i), byte(1+i%2)))
	}
	first, second := expect(t, c, packets.Publish), expect(t, c, packets.Publish)
	silent(t, c, 200*time.Millisecond)
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	expect(t, c, packets.Pingresp)
	subscribe(t, c, "zero", 0)
	handOver(t, c, toPublish("elsewhere", "x", 2))
	_ = c.Ack(packets.Puback, first.PacketID)
	third := expect(t, c, packets.Publish)
	_ = c.Ack(packets.Pubrec, second.PacketID) // makes no room yet
	expect(t, c, packets.Pubrel)
	silent(t, c, 100*time.Millisecond)
	_ = c.Ack(packets.Pubcomp, second.PacketID)
	fourth := expect(t, c, packets.Publish)
	// A PUBACK and a PUBREC of 0x80 or more: no PUBREL, nothing comes again.
	_ = c.Raw([]byte{0x40, 3, byte(third.PacketID >> 8), byte(third.PacketID), codeQuota})
	fifth := expect(t, c, packets.Publish)
	_ = c.Raw([]byte{0x50, 3, byte(fourth.PacketID >> 8), byte(fourth.PacketID), codeQuota})
	sixth := expect(t, c, packets.Publish)
	wantSaid(t, []packets.Packet{first, second, third, fourth, fifth, sixth}, "flow=0/1", "flow=1/2", "flow=2/1", "flow=3/2", "flow=4/1", "flow=5/2")
	// Identifiers of messages that are under way at once differ: [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1].
	for _, pair := range [][2]packets.Packet{{first, second}, {second, third}, {third, fourth}, {fourth, fifth}, {fifth, sixth}} {
		if pair[0].PacketID == pair[1].PacketID {
			t.Errorf("%s and %s both came under %d", pair[0].Payload, pair[1].Payload, pair[0].PacketID)
		}
	}
}

// A client that exceeds what the CONNACK granted is told so [MQTT-3.3.4-7] [MQTT-4.13.1-1]; one that uses all of it is served.
func TestConformance5FlowControlOfServer(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	granted := int(c.Connack.Properties.ReceiveMaximum)
	if granted == 0 {
		granted = 65535
	}
	publish := func(id int) []byte { return []byte{0x34, 6, 0, 1, 'f', byte(id >> 8), byte(id), 0} }
	for round := range 2 {
		go func() {
			for id := range granted {
				_ = c.Raw(publish(id + 1))
			}
		}()
		for range granted {
			if pk := expect(t, c, packets.Pubrec); pk.ReasonCode != codeSuccess {
				t.Fatalf("PUBREC %#x", pk.ReasonCode)
			}
		}
		if round == 0 {
			for id := range granted {
				_ = c.Ack(packets.Pubrel, uint16(id+1))
				expect(t, c, packets.Pubcomp)
			}
		}
	}
	_ = c.Raw(publish(granted + 1))
	if before := closed(t, c); len(before) != 1 || before[0].FixedHeader.Type != packets.Disconnect || before[0].ReasonCode != codeReceiveMaximum {
		t.Errorf("got %v", before)
	}
}

// Every alias that the CONNACK granted may be used [MQTT-3.3.2-12], set anew, and by each QoS. None lives longer than its connection
// [MQTT-3.3.2-7].
func TestConformance5TopicAliasOfClient(t *testing.T) {
	b := startBroker(t, nil)
	o := kept("c", 5)
	c := connect(t, b.addr, o)
	subscribe(t, c, "alias/#", 2)
	most := c.Connack.Properties.TopicAliasMaximum
	publish := func(topic string, alias uint16, qos byte) packets.Packet {
		pk := toPublish(topic, "x", qos)
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = alias, true
		return pk
	}
	for alias := uint16(1); alias <= most; alias++ {
		for i, topic := range []string{"alias/a", "", "alias/b", ""} {
			handOver(t, c, publish(topic, alias, byte(i%3)))
			wantSaid(t, take(t, c, 1), fmt.Sprintf("alias/%c=x/%d", "aabb"[i], i%3))
		}
	}
	// Above the maximum, and 0 [MQTT-3.3.2-8] [MQTT-3.3.2-9] [MQTT-3.2.2-17].
	for _, alias := range []uint16{most + 1, 65535, 0} {
		c = connect(t, b.addr, o)
		_ = c.Raw([]byte{0x30, 7, 0, 1, 'a', 3, 0x23, byte(alias >> 8), byte(alias)})
		if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeTopicAlias {
			t.Errorf("alias %d of %d: got %v", alias, most, before)
		}
	}
	c = connect(t, b.addr, o)
	if !c.Connack.SessionPresent {
		t.Error("no session")
	}
	handOver(t, c, toPublish("alias/a", "the session is there", 1))
	wantSaid(t, take(t, c, 1), "alias/a=the session is there/1")
	_ = c.Send(publish("", 1, 1))
	if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeProtocolError && before[0].ReasonCode != codeTopicAlias {
		t.Errorf("an alias of an earlier connection: got %v", before)
	}
	if before := len(b.disk.messages()); before != int(most)*4+1 {
		t.Errorf("%d messages taken, want %d", before, int(most)*4+1)
	}
}

// A client gets aliases up to its Topic Alias Maximum [MQTT-3.1.2-26] [MQTT-3.3.2-8] [MQTT-3.3.2-11], and none where it allowed none
// [MQTT-3.1.2-27]. None outlives its connection [MQTT-3.3.2-7].
func TestConformance5TopicAliasOfServer(t *testing.T) {
	b := startBroker(t, nil)
	for _, most := range []uint16{1, 0, 3} {
		for connection := range 2 {
			o := kept(fmt.Sprint("most ", most), 5)
			o.AliasMax = most
			c := connect(t, b.addr, o)
			if connection == 0 {
				subscribe(t, c, "to/#", 2)
			}
			topics := map[uint16]string{}
			short := 0
			for _, topic := range []string{"to/a", "to/a", "to/b", "to/c", "to/a", "to/d"} {
				for qos := range byte(3) {
					handOver(t, c, toPublish(topic, "x", qos))
					pk := take(t, c, 1)[0]
					alias := pk.Properties.TopicAlias
					if alias > most || pk.Properties.TopicAliasFlag && alias == 0 || pk.FixedHeader.Qos != qos {
						t.Fatalf("alias %d of %d", alias, most)
					}
					if pk.TopicName == "" {
						short++
						pk.TopicName = topics[alias]
					} else if alias > 0 {
						topics[alias] = pk.TopicName
					}
					if pk.TopicName != topic {
						t.Errorf("%s came as %q", topic, pk.TopicName)
					}
				}
			}
			if (short > 0) != (most > 0) {
				t.Errorf("%d messages came by an alias, at most %d aliases are allowed", short, most)
			}
			away(t, b, c)
		}
	}
}

// A packet as large as the CONNACK allows is taken, a larger one ends the connection by its own code [MQTT-3.2.2-15]
// [MQTT-4.13.1-1].
func TestConformance5MaximumPacketSizeOfServer(t *testing.T) {
	const most = 500
	b := startBroker(t, func(o *Options) { o.Broker.MaxPacket = config.Size(most) })
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	if n := c.Connack.Properties.MaximumPacketSize; n != most {
		t.Errorf("announced %d", n)
	}
	publish := func(size int) []byte { // of so many bytes: three of fixed header, six of topic, identifier and properties
		return append([]byte{0x32, byte((size-3)&0x7f) | 0x80, byte((size - 3) >> 7), 0, 1, 'a', 0, 1, 0}, bytes.Repeat([]byte{'.'}, size-9)...)
	}
	_ = c.Raw(publish(most))
	if ack := expect(t, c, packets.Puback); ack.ReasonCode != codeSuccess {
		t.Errorf("PUBACK %#x", ack.ReasonCode)
	}
	_ = c.Raw(publish(most + 1))
	if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeTooLarge {
		t.Errorf("got %v", before)
	}
}

// A client gets what is as large as it allowed, and of what is larger nothing [MQTT-3.1.2-24]: that is as if it had come
// [MQTT-3.1.2-25], for itself alone.
func TestConformance5MaximumPacketSizeOfClient(t *testing.T) {
	b := startBroker(t, nil)
	o := kept("c", 5)
	o.RM = 1
	o.Mod = func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 64 }
	c := connect(t, b.addr, o)
	subscribe(t, c, "size", 2)
	other := connect(t, b.addr, rawOptions{ID: "other", V: 5, Clean: true})
	subscribe(t, other, "size", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	for qos := range byte(3) {
		// Two bytes of fixed header, six of topic, two of identifier, one of properties, and the payload.
		exact := 64 - 9 - 2*int(min(qos, 1))
		for _, n := range []int{exact, exact + 1, 1000, 1} {
			handOver(t, p, toPublish("size", string(bytes.Repeat([]byte{'.'}, n)), qos))
			if got := take(t, other, 1)[0]; len(got.Payload) != n {
				t.Errorf("another client got %d bytes, want %d", len(got.Payload), n)
			}
			if n == exact || n == 1 {
				if got := take(t, c, 1)[0]; len(got.Payload) != n || got.FixedHeader.Qos != qos {
					t.Errorf("QoS %d: got %d bytes, want %d", qos, len(got.Payload), n)
				}
			}
		}
	}
	away(t, b, c)
	c = connect(t, b.addr, o)
	silent(t, c, 50*time.Millisecond) // nothing waits to come again
}
