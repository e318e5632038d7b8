package edge

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// FuzzWellFormed: what is well-formed does not crash the library's decoder.
func FuzzWellFormed(f *testing.F) {
	for _, version := range []byte{4, 5} {
		for _, pk := range everyPacket(version) {
			b := encoded(f, pk)
			f.Add(b[0], version, b[2:])
		}
	}
	f.Add(byte(0x82), byte(5), []byte{0, 1, 0, 0, 1, 'a'})
	f.Fuzz(func(t *testing.T, first, version byte, body []byte) {
		var pk packets.Packet
		if pk.FixedHeader.Decode(first) != nil || wellFormed(pk.FixedHeader, version, body) != nil {
			return
		}
		pk.FixedHeader.Remaining, pk.ProtocolVersion = len(body), version
		_ = decodeBody(&pk, body)
	})
}

// What is well-formed is found so, with every property there is.
func TestWellFormed(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for _, pk := range everyPacket(version) {
			b := encoded(t, pk)
			if b[1] > 127 {
				t.Fatal("the length has two bytes")
			}
			var head packets.FixedHeader
			if err := head.Decode(b[0]); err != nil {
				t.Fatal(err)
			}
			if err := wellFormed(head, version, b[2:]); err != nil {
				t.Errorf("version %d, %s %x: %v", version, packets.PacketNames[head.Type], b, err)
			}
			for n := 2; n < len(b) && head.Type == packets.Connect; n++ {
				if wellFormed(head, version, b[2:n]) == nil {
					t.Errorf("version %d: the first %d bytes of a CONNECT", version, n)
				}
			}
		}
	}
}
