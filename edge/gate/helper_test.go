package gate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errDisk = errors.New("input/output error")

// disk stands for the log: positions become durable by commit, in rising order.
type disk struct {
	mu       sync.Mutex
	durable  uint64
	err      error
	waiting  map[uint64][]func(error)
	calls    int // of Done, all together
	open     int // Done callbacks outstanding
	mostOpen int
}

// ticket is position pos on d.
type ticket struct {
	d   *disk
	pos uint64
}

func (d *disk) at(pos uint64) Ticket { return ticket{d, pos} }

func (t ticket) Durable() bool {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	return t.pos <= t.d.durable
}

func (t ticket) Done(f func(error)) {
	t.d.mu.Lock()
	t.d.calls++
	if err := t.d.err; err != nil || t.pos <= t.d.durable {
		t.d.mu.Unlock()
		if t.pos <= t.d.durable {
			err = nil
		}
		f(err)
		return
	}
	if t.d.waiting == nil {
		t.d.waiting = make(map[uint64][]func(error))
	}
	t.d.waiting[t.pos] = append(t.d.waiting[t.pos], f)
	t.d.open++
	t.d.mostOpen = max(t.d.mostOpen, t.d.open)
	t.d.mu.Unlock()
}

// commit makes everything up to pos durable.
func (d *disk) commit(pos uint64) {
	d.mu.Lock()
	d.durable = max(d.durable, pos)
	var due []func(error)
	for p, fs := range d.waiting {
		if p <= pos {
			due = append(due, fs...)
			delete(d.waiting, p)
		}
	}
	d.open -= len(due)
	d.mu.Unlock()
	for _, f := range due {
		f(nil)
	}
}

// fail is a commit that failed.
func (d *disk) fail(err error) {
	d.mu.Lock()
	d.err = err
	var due []func(error)
	for _, fs := range d.waiting {
		due = append(due, fs...)
	}
	clear(d.waiting)
	d.open -= len(due)
	d.mu.Unlock()
	for _, f := range due {
		f(err)
	}
}

// peer is the client's end of a connection: it collects what arrives.
type peer struct {
	net.Conn
	mu  sync.Mutex
	got []byte
	err error
}

// collect reads until the end of the stream. Start it with go; it ends when the connection does.
func (p *peer) collect() {
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		p.mu.Lock()
		p.got = append(p.got, buf[:n]...)
		p.err = err
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take returns what arrived since the last call.
func (p *peer) take() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

func (p *peer) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// meter counts the calls that write to a connection.
type meter struct {
	net.Conn
	writes atomic.Int32
	closed atomic.Bool
}

func (m *meter) Write(p []byte) (int, error) {
	m.writes.Add(1)
	return m.Conn.Write(p)
}

func (m *meter) Close() error {
	m.closed.Store(true)
	return m.Conn.Close()
}

// ending records what OnClose said.
type ending struct {
	times atomic.Int32
	mu    sync.Mutex
	why   Reason
	err   error
}

func (e *ending) note(_ *Conn, why Reason, err error) {
	e.times.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.why, e.err = why, err
}

func (e *ending) want(t *testing.T, why Reason) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.times.Load() != 1 || e.why != why {
		t.Errorf("OnClose %d times, last with %q (%v), want once with %q", e.times.Load(), e.why, e.err, why)
	}
}

// bench of one connection over net.Pipe, inside a synctest bubble.
type pair struct {
	c    *Conn
	m    *meter
	peer *peer
	end  *ending
	disk *disk
}

// newPair makes a connection whose peer does not read until collect is started.
func newPair(o Options) *pair {
	a, b := net.Pipe()
	p := &pair{m: &meter{Conn: a}, peer: &peer{Conn: b}, end: &ending{}, disk: &disk{}}
	o.OnClose = p.end.note
	p.c = Wrap(p.m, o)
	return p
}

// bubble runs f with fake time and a pair that is closed at the end.
func bubble(t *testing.T, o Options, f func(t *testing.T, p *pair)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(o)
		f(t, p)
		p.c.Kill("end of test")
		_ = p.peer.Close()
		p.c.Wait()
	})
}

// connect lets the peer send a CONNECT, reads it and accepts it.
func (p *pair) connect(t *testing.T, level byte) {
	t.Helper()
	pk := connectPacket(level, 0)
	go func() { _, _ = p.peer.Write(pk) }()
	if _, err := io.ReadFull(p.c, make([]byte, len(pk))); err != nil {
		t.Fatalf("read connect: %v", err)
	}
	if p.c.Level() != level {
		t.Fatalf("level %d, want %d", p.c.Level(), level)
	}
	p.write(t, connack(level))
}

func (p *pair) write(t *testing.T, b []byte) {
	t.Helper()
	if n, err := p.c.Write(b); n != len(b) || err != nil {
		t.Fatalf("write %d bytes: %d, %v", len(b), n, err)
	}
}

// wantSent waits until nothing moves any more and compares what arrived since the last call.
func (p *pair) wantSent(t *testing.T, want ...[]byte) {
	t.Helper()
	synctest.Wait()
	if got := p.peer.take(); !bytes.Equal(got, bytes.Join(want, nil)) {
		t.Fatalf("arrived %x, want %x", got, bytes.Join(want, nil))
	}
}

// frameOf makes a packet with the first byte and a body.
func frameOf(first byte, body []byte) []byte {
	b := binary.AppendUvarint([]byte{first}, uint64(len(body)))
	return append(b, body...)
}

func connectPacket(level byte, extra int) []byte {
	body := append([]byte{0, 4}, "MQTT"...)
	if level == 3 {
		body = append([]byte{0, 6}, "MQIsdp"...)
	}
	body = append(body, level, 2, 0, 60)
	if level == 5 {
		body = append(body, 0)
	}
	body = append(body, 0, 1, 'x')
	return frameOf(typeConnect<<4, append(body, make([]byte, extra)...))
}

func connack(level byte) []byte {
	if level == 5 {
		return []byte{0x20, 3, 0, 0, 0}
	}
	return []byte{0x20, 2, 0, 0}
}

func puback(id uint16) []byte  { return binary.BigEndian.AppendUint16([]byte{0x40, 2}, id) }
func pubrec(id uint16) []byte  { return binary.BigEndian.AppendUint16([]byte{0x50, 2}, id) }
func pubrel(id uint16) []byte  { return binary.BigEndian.AppendUint16([]byte{0x62, 2}, id) }
func pubcomp(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x70, 2}, id) }
func pingresp() []byte         { return []byte{0xd0, 0} }
func goodbye(code byte) []byte { return []byte{0xe0, 2, code, 0} }

func publish(payload int) []byte {
	return frameOf(0x30, append([]byte{0, 1, 'a'}, make([]byte, payload)...))
}

// tcpPair returns both ends of a TCP connection on the loopback interface.
func tcpPair(t testing.TB) (server, client *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cl, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sv, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cl.Close(), sv.Close() })
	return sv.(*net.TCPConn), cl.(*net.TCPConn)
}

// eventually waits for a condition that real time brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
