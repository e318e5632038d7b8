package wire

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"
)

// BenchmarkTake is the work for one request without any network: reading, remembering, answering. It must not depend on how
// much a peer sent before.
func BenchmarkTake(b *testing.B) {
	for _, before := range []int{0, 60_000} {
		b.Run(fmt.Sprintf("after=%d", before), func(b *testing.B) {
			s := New(Options{Handler: atOnce}, nullConn{newMemConn(nil)})
			r := &Request{}
			datagram := con(0, "abcd")
			n := uint32(0)
			take := func() {
				n++
				binary.BigEndian.PutUint16(datagram[2:], uint16(n))
				binary.BigEndian.PutUint32(datagram[4:], n)
				s.take(r, datagram, s.sockets[0], peerPath(1), time.Now())
			}
			for range before {
				take()
			}
			b.ReportAllocs()
			for b.Loop() {
				take()
			}
		})
	}
}

// nullConn takes what is sent and forgets it.
type nullConn struct{ *memConn }

func (nullConn) Write([]byte, Path) error { return nil }
