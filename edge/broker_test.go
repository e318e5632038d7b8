package edge

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Every combination of publisher and subscriber: version, QoS.
func TestDelivery(t *testing.T) {
	b := startBroker(t, nil)
	for _, pv := range []byte{4, 5} {
		for _, sv := range []byte{4, 5} {
			for pq := range byte(3) {
				for sq := range byte(3) {
					s := connect(t, b.addr, rawOptions{ID: "sub", V: sv, Clean: true})
					p := connect(t, b.addr, rawOptions{ID: "pub", V: pv, Clean: true})
					if code := subscribe(t, s, "a/+", sq); code != sq {
						t.Fatalf("granted %d, want %d", code, sq)
					}
					if err := p.Publish(uint16(pq), "a/b", pq, []byte("hello")); err != nil {
						t.Fatal(err)
					}
					switch pq {
					case 1:
						expect(t, p, packets.Puback)
					case 2:
						rec := expect(t, p, packets.Pubrec)
						_ = p.Ack(packets.Pubrel, rec.PacketID)
						expect(t, p, packets.Pubcomp)
					}
					pk := expect(t, s, packets.Publish)
					if pk.TopicName != "a/b" || string(pk.Payload) != "hello" || pk.FixedHeader.Qos != min(pq, sq) {
						t.Fatalf("got %q %q QoS %d", pk.TopicName, pk.Payload, pk.FixedHeader.Qos)
					}
					switch pk.FixedHeader.Qos {
					case 1:
						_ = s.Ack(packets.Puback, pk.PacketID)
					case 2:
						_ = s.Ack(packets.Pubrec, pk.PacketID)
						rel := expect(t, s, packets.Pubrel)
						_ = s.Ack(packets.Pubcomp, rel.PacketID)
					}
					_ = s.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
					expect(t, s, packets.Pingresp)
				}
			}
		}
	}
	if n := b.disk.n.Load(); n != 36 {
		t.Errorf("%d messages ingested, want 36", n)
	}
}

// An acknowledgement leaves when its record is durable, which is when the gateway owns the message [MQTT-4.3.2-4] [MQTT-4.3.3-8], and meanwhile the client's next packets are read.
func TestAckWaitsForDisk(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		b := startBroker(t, nil)
		b.disk.hold()
		p := connect(t, b.addr, rawOptions{ID: "p", V: 4, Clean: true})
		const n = 100
		for i := range n {
			if err := p.Publish(uint16(i+1), "a", qos, number(i)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "all messages ingested", func() bool { return b.disk.n.Load() == n })
		silent(t, p, 50*time.Millisecond)
		b.disk.sync(40)
		want := byte(packets.Puback)
		if qos == 2 {
			want = packets.Pubrec
		}
		for i := range n {
			if i == 40 {
				silent(t, p, 50*time.Millisecond)
				b.disk.sync(n)
			}
			if pk := expect(t, p, want); int(pk.PacketID) != i+1 {
				t.Fatalf("acknowledgement %d is for %d", i+1, pk.PacketID)
			}
		}
	}
}
