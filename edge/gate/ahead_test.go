package gate

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
)

// TestReadAhead: whatever the sizes of what comes and of what is asked for, every byte arrives once and in order, the error comes behind
// them, and nothing is kept of a connection that is silent.
func TestReadAhead(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		server, client := tcpPair(t)
		c := Wrap(server, Options{})
		var sent []byte
		sent = append(sent, connectPacket(4, 0)...)
		for len(sent) < 200<<10 {
			sent = append(sent, publish(r.IntN(40<<r.IntN(9)))...)
		}
		go func() { // ends with the last byte
			for rest := sent; len(rest) > 0; {
				n := min(1+r.IntN(1<<r.IntN(16)), len(rest))
				if _, err := client.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			_ = client.CloseWrite()
		}()
		var got []byte
		sizes := rand.New(rand.NewPCG(seed, 2))
		for {
			p := make([]byte, 1+sizes.IntN(1<<sizes.IntN(15)))
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
		}
		if !bytes.Equal(got, sent) {
			t.Fatalf("seed %d: got %d bytes of %d, or others", seed, len(got), len(sent))
		}
		if c.ahead.buf != nil {
			t.Error("the large buffer is kept")
		}
		_ = c.Close()
	}
}

// TestNothingIsReadAheadOfSilence: a client that is silent after a packet holds no large buffer, however long the packet was.
func TestNothingIsReadAheadOfSilence(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		p.connect(t, 4)
		pk := publish(600)
		go func() { _, _ = p.peer.Write(pk) }()
		for _, n := range []int{100, 100, len(pk) - 200} {
			if _, err := io.ReadFull(p.c, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		go func() { _, _ = p.c.Read(make([]byte, 100)) }() // ends with the connection
		synctest.Wait()
		if p.c.ahead.buf != nil {
			t.Error("a silent connection holds a large buffer")
		}
	})
}
