package session

import (
	"encoding/binary"
	"fmt"
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

func (w *wire) Fail(error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
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
func (*null) Fail(error)                  {}

// What a client has not acknowledged counts in its session's bound, and the newest still gets room.
func TestFlightIsBounded(t *testing.T) {
	const bound, size, total = 1 << 20, 100 << 10, 100
	drops := 0
	m := New(Options{QueueBytes: bound, Drop: func(string, int) { drops++ }})
	conn := &null{}
	s, _, _ := m.Attach(Connect{Conn: conn, Client: "c", Version: 4, Allow: allowAll})
	s.Subscribe(conn, []*Subscription{{Filter: "a", QoS: 2}}, nil)
	for i := range total {
		m.Publish(&message.Message{Topic: "a", QoS: message.QoS(1 + i%2), Payload: make([]byte, size)}, "p")
		s.encode(conn, nil)
	}
	s.encode(conn, nil)
	var flying int64
	for i := range s.flight.ring.len() {
		flying += s.flight.ring.at(i).entry.Size()
	}
	if flying != s.flight.bytes || flying > bound/2+size || flying+s.queue.Bytes() > bound {
		t.Errorf("%d bytes in flight, counted %d, %d in the queue, bound %d", flying, s.flight.bytes, s.queue.Bytes(), bound)
	}
	if n := s.flight.ring.len() + s.queue.Len() + drops; n != total || drops == 0 {
		t.Errorf("%d in flight, %d queued, %d dropped of %d", s.flight.ring.len(), s.queue.Len(), drops, total)
	}
	for id := uint16(1); s.flight.ring.len() > 0 || s.queue.Len() > 0; id++ { // the rest goes through
		s.Puback(conn, id)
		s.Pubrec(conn, id, true)
		s.Pubcomp(conn, id)
		for again := true; again; again = s.ready() {
			s.encode(conn, nil)
		}
	}
	if s.flight.bytes != 0 || s.queue.Bytes() != 0 {
		t.Errorf("%d and %d bytes counted of nothing", s.flight.bytes, s.queue.Bytes())
	}
}

// A member of a shared subscription that would have to drop something is asked last.
func TestShareSparesTheFull(t *testing.T) {
	drops := 0
	m := New(Options{QueueBytes: 10 << 10, Drop: func(string, int) { drops++ }})
	for _, client := range []string{"a", "b"} {
		conn := &wire{}
		s, _, _ := m.Attach(Connect{Conn: conn, Client: client, Version: 4, Expiry: time.Hour, Allow: allowAll})
		s.Subscribe(conn, []*Subscription{{Filter: "$share/g/a", QoS: 1}}, nil)
		if client == "b" {
			m.Detach(s, conn)
		}
	}
	for range 18 { // nine fit into each
		if n, _ := m.Publish(&message.Message{Topic: "a", QoS: 1, Payload: make([]byte, 800)}, ""); n != 1 {
			t.Fatal("nobody took it")
		}
	}
	if drops != 0 {
		t.Errorf("%d dropped while there was room", drops)
	}
	m.Publish(&message.Message{Topic: "a", QoS: 1, Payload: make([]byte, 800)}, "")
	if drops != 1 {
		t.Errorf("%d dropped at the bound, want 1", drops)
	}
}

// Retained messages that a SUBSCRIBE asked for leave live messages their room.
func TestRetainedDoNotCountAsLive(t *testing.T) {
	m := New(Options{LiveBytes: 1000, RetainedLimit: 100})
	for i := range 100 {
		m.Publish(&message.Message{Topic: fmt.Sprint("r/", i), Retain: true, Payload: []byte("x")}, "")
	}
	conn := &null{}
	s, _, _ := m.Attach(Connect{Conn: conn, Client: "c", Version: 4, Allow: allowAll})
	s.Subscribe(conn, []*Subscription{{Filter: "#"}}, nil)
	if n, _ := m.Publish(&message.Message{Topic: "live", Payload: []byte("x")}, ""); n != 1 {
		t.Error("dropped")
	}
	for s.queue.Len() > 0 {
		s.encode(conn, nil)
	}
	if s.now != 0 {
		t.Errorf("%d bytes counted of nothing", s.now)
	}
}

// Retained messages have a bound in bytes; what does not fit is not kept, nor is what it would have replaced.
func TestRetainedBytes(t *testing.T) {
	drops := 0
	m := New(Options{RetainedLimit: 100, RetainedBytes: 4000, Drop: func(string, int) { drops++ }})
	set := func(topic string, size int) {
		m.Publish(&message.Message{Topic: topic, Retain: true, Payload: make([]byte, size)}, "")
	}
	check := func(want, wantDrops int) {
		t.Helper()
		if n := m.retained.len(); n != want || drops != wantDrops {
			t.Errorf("%d retained, %d dropped, want %d and %d", n, drops, want, wantDrops)
		}
	}
	set("a", 1000)
	set("b", 1000)
	set("b", 1500)
	check(2, 0)
	set("c", 1000)
	check(2, 1)
	set("a", 3000)
	check(1, 2)
	set("c", 1000)
	check(2, 2)
	for _, topic := range []string{"b", "c"} {
		set(topic, 0)
	}
	check(0, 2)
	if m.retained.bytes != 0 {
		t.Errorf("%d bytes counted of nothing", m.retained.bytes)
	}
}

// eager is a Conn at which somebody publishes as soon as the SUBACK is written.
type eager struct {
	wire
	then func()
}

func (e *eager) Write(p []byte) (int, error) {
	if then := e.then; then != nil {
		e.then = nil
		then()
	}
	return e.wire.Write(p)
}

// TestRetainedComesOnce: what is published in the moment of the SUBACK comes as a new message, and not as a retained one as well.
func TestRetainedComesOnce(t *testing.T) {
	m := New(Options{RetainedLimit: 10, QueueBytes: 1 << 20})
	conn := &eager{}
	s, _, _ := m.Attach(Connect{Conn: conn, Client: "c", Version: 4, Allow: allowAll})
	var publisher sync.WaitGroup
	conn.then = func() {
		publisher.Go(func() { m.Publish(&message.Message{Topic: "a", Payload: []byte("x"), QoS: 1, Retain: true}, "") })
		for deadline := time.Now().Add(time.Minute); len(m.Retained("a")) == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("it is not retained")
				return
			}
		}
	}
	s.Subscribe(conn, []*Subscription{{Filter: "a", QoS: 1}}, []byte("suback"))
	publisher.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.queue.Len(); n != 1 {
		t.Errorf("%d copies are queued", n)
	}
}
