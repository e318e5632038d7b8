package session

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"tidegate/message"
)

// wire is a Conn that keeps what was written.
type wire struct {
	mu     sync.Mutex
	buf    []byte
	closed bool
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

func (w *wire) WaitWritable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	return nil
}

type frame struct {
	id      uint16
	payload uint32
	dup     bool
}

// take returns the QoS 1 PUBLISH packets written so far, of topic "a" and with four bytes of payload.
func (w *wire) take() (out []frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; len(w.buf) > 0; w.buf = w.buf[2+w.buf[1]:] {
		b := w.buf[5:]
		out = append(out, frame{binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:]), w.buf[0]&flagDup != 0})
	}
	return out
}

func allowAll(string) bool { return true }

func numbered(i int) *message.Message {
	return &message.Message{Topic: "a", Payload: binary.BigEndian.AppendUint32(nil, uint32(i)), QoS: 1}
}

// Packet identifiers go round several times while acknowledgements come in any order and connections come and go: every
// message arrives, an identifier is never used twice at a time, and first arrivals are in order.
func TestIdentifiersGoRound(t *testing.T) {
	m := New(Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	const total, window = 150_000, 100
	var sender sync.WaitGroup
	var conn *wire
	var s *Session
	open := map[uint16]uint32{} // what the client has got on this connection and not acknowledged
	sent, next, acked := 0, uint32(0), 0
	receive := func() {
		for _, f := range conn.take() {
			before, known := open[f.id]
			switch {
			case known:
				t.Fatalf("identifier %d is for %d while %d is open", f.id, f.payload, before)
			case f.payload != next && !(f.dup && f.payload < next):
				t.Fatalf("got %d, want %d", f.payload, next)
			}
			open[f.id] = f.payload
			next = max(next, f.payload+1)
		}
		if len(open) > window {
			t.Fatalf("%d in flight, window %d", len(open), window)
		}
	}
	reconnect := func() {
		if conn != nil {
			conn.mu.Lock()
			conn.closed = true
			conn.mu.Unlock()
			m.Detach(s, conn)
			sender.Wait()
			receive()
			clear(open)
		}
		conn = &wire{}
		s, _, _ = m.Attach(Connect{Conn: conn, Client: "c", Version: 4, Expiry: time.Hour, ReceiveMaximum: window, Allow: allowAll})
		c, session := conn, s
		sender.Go(func() { session.Send(c) })
	}
	reconnect()
	s.Subscribe(conn, []*Subscription{{Filter: "a", QoS: 1}}, nil)
	for acked < total {
		for sent < total && sent-acked < 3*window {
			m.Publish(numbered(sent), "")
			sent++
		}
		if rnd.IntN(2000) == 0 {
			reconnect()
		}
		receive()
		for id := range open { // in any order, about half of them
			if rnd.IntN(2) == 0 {
				s.Puback(conn, id)
				delete(open, id)
				acked++
			}
		}
	}
	conn.mu.Lock()
	conn.closed = true
	conn.mu.Unlock()
	m.Detach(s, conn)
	sender.Wait()
}

func TestRing(t *testing.T) {
	var r ring[int]
	rnd := rand.New(rand.NewPCG(3, 4))
	var want []int
	for i := range 10000 {
		if len(want) > 0 && rnd.IntN(100) < 49 {
			if got := r.pop(); got != want[0] {
				t.Fatalf("popped %d, want %d", got, want[0])
			}
			want = want[1:]
		} else {
			r.push(i)
			want = append(want, i)
		}
		if r.len() != len(want) {
			t.Fatalf("length %d, want %d", r.len(), len(want))
		}
		if n := len(want); n > 0 && (*r.at(0) != want[0] || *r.at(n - 1) != want[n-1]) {
			t.Fatal("ends differ")
		}
	}
	for r.len() > 0 {
		r.pop()
	}
}

func BenchmarkPublishToOneSession(b *testing.B) {
	m := New(Options{})
	conn := &null{}
	s, _, _ := m.Attach(Connect{Conn: conn, Client: "c", Version: 4, Allow: allowAll})
	go s.Send(conn)
	s.Subscribe(conn, []*Subscription{{Filter: "plant/+/x", QoS: 0}}, nil)
	msg := &message.Message{Topic: "plant/7/x", Payload: make([]byte, 256)}
	b.ReportAllocs()
	for b.Loop() {
		m.Publish(msg, "")
	}
	m.Detach(s, conn)
}

type null struct{}

func (*null) Write(p []byte) (int, error) { return len(p), nil }
func (*null) WaitWritable() error         { return nil }
