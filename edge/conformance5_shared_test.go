package edge

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Each message goes to one member of a shared subscription, beside the ordinary subscriptions, and to one of every group
// [MQTT-4.8.2-1], with the QoS of that member [MQTT-4.8.2-3].
func TestConformance5SharedSubscriptions(t *testing.T) {
	b := startBroker(t, nil)
	const n = 20
	var members []*rawClient
	for i := range 3 { // QoS 0, 1, 2
		c := connect(t, b.addr, rawOptions{ID: fmt.Sprint("m", i), V: 5, Clean: true})
		ack := request(t, c, packets.Subscribe, 1, packets.Subscription{Filter: "$share/name/job/+", Qos: byte(i)}, packets.Subscription{Filter: "all", Qos: 1})
		if got := fmt.Sprint(ack.ReasonCodes); got != fmt.Sprintf("[%d 1]", i) {
			t.Errorf("granted %s", got)
		}
		members = append(members, c)
	}
	alone := connect(t, b.addr, rawOptions{ID: "alone", V: 5, Clean: true})
	subscribe(t, alone, "$share/other/job/#", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	for i := range n {
		handOver(t, p, toPublish("job/x", fmt.Sprint(i), 2))
	}
	handOver(t, p, toPublish("all", "mark", 2))
	if got := take(t, alone, n); len(got) != n {
		t.Errorf("the other group got %d", len(got))
	}
	total := map[string]int{}
	for qos, c := range members {
		for {
			pk := take(t, c, 1)[0]
			if pk.TopicName == "all" {
				break
			}
			total[string(pk.Payload)]++
			if pk.FixedHeader.Qos != byte(qos) {
				t.Errorf("a member with QoS %d got QoS %d", qos, pk.FixedHeader.Qos)
			}
		}
		silent(t, c, 20*time.Millisecond)
	}
	for i := range n {
		if k := total[fmt.Sprint(i)]; k != 1 {
			t.Errorf("message %d came %d times", i, k)
		}
	}
}

// What a member refuses goes to no other [MQTT-4.8.2-6].
func TestConformance5SharedRefusal(t *testing.T) {
	b := startBroker(t, nil)
	first := connect(t, b.addr, rawOptions{ID: "first", V: 5, Clean: true})
	subscribe(t, first, "$share/g/job", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	for qos := byte(1); qos <= 2; qos++ {
		handOver(t, p, toPublish("job", "refused", qos))
	}
	one, two := expect(t, first, packets.Publish), expect(t, first, packets.Publish)
	second := connect(t, b.addr, rawOptions{ID: "second", V: 5, Clean: true})
	subscribe(t, second, "$share/g/job", 2)
	_ = first.Raw([]byte{0x40, 3, byte(one.PacketID >> 8), byte(one.PacketID), codeUnspecified})
	_ = first.Raw([]byte{0x50, 3, byte(two.PacketID >> 8), byte(two.PacketID), codeUnspecified})
	_ = first.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	expect(t, first, packets.Pingresp)
	away(t, b, first)
	handOver(t, p, toPublish("job", "mark", 2))
	wantSaid(t, take(t, second, 1), "job=mark/2")
}

// A message with QoS 2 that a member has got but not answered is brought to its end when that member is back [MQTT-4.8.2-4], and goes
// to no other when its session ends [MQTT-4.8.2-5].
func TestConformance5SharedExactlyOnce(t *testing.T) {
	b := startBroker(t, nil)
	first := connect(t, b.addr, kept("first", 5))
	subscribe(t, first, "$share/g/job", 2)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	handOver(t, p, toPublish("job", "once", 2))
	sent := expect(t, first, packets.Publish)
	second := connect(t, b.addr, rawOptions{ID: "second", V: 5, Clean: true})
	subscribe(t, second, "$share/g/job", 2)
	before := b.Clients()
	_ = first.Close()
	eventually(t, "the first is offline", func() bool { return b.Clients() < before })
	first = connect(t, b.addr, kept("first", 5))
	if pk := expect(t, first, packets.Publish); pk.PacketID != sent.PacketID || !pk.FixedHeader.Dup {
		t.Errorf("got %+v under %d, want the message under %d again", pk.FixedHeader, pk.PacketID, sent.PacketID)
	}
	goodbye(t, b, first, 0)
	handOver(t, p, toPublish("job", "mark", 2))
	wantSaid(t, take(t, second, 1), "job=mark/2")
}
