package uplink

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
)

// sink is a broker that only acknowledges, everything that one read brings in one write: the peer that shows what a client
// can do. answer, if it is not nil, is told the packet identifier of each PUBLISH and says whether it is acknowledged.
func sink(b testing.TB, answer func(id uint16) bool) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	b.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				_ = acknowledge(c, answer) // it ends with the connection
				_ = c.Close()
			})
		}
	})
	return l.Addr().String()
}

func acknowledge(c net.Conn, answer func(id uint16) bool) error {
	r, w := bufio.NewReaderSize(c, 128<<10), bufio.NewWriterSize(c, 64<<10)
	version := byte(0)
	for {
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		first, n, err := readHeader(r)
		if err != nil {
			return err
		}
		p, err := r.Peek(n)
		if err != nil {
			return err
		}
		switch first >> 4 {
		case 1:
			version = p[6]
			ack := []byte{0x20, 2, 0, 0}
			if version == version5 {
				ack = []byte{0x20, 3, 0, 0, 0}
			}
			_, _ = w.Write(ack)
		case 3:
			topic := int(binary.BigEndian.Uint16(p))
			if id := p[2+topic : 4+topic]; answer == nil || answer(binary.BigEndian.Uint16(id)) {
				_, _ = w.Write([]byte{0x40, 2, id[0], id[1]})
			}
		case 12:
			_, _ = w.Write([]byte{0xd0, 0})
		case 14:
			return errors.New("disconnect")
		}
		if _, err := r.Discard(n); err != nil {
			return err
		}
	}
}
