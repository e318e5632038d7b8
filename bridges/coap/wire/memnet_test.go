package wire

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

type packet struct {
	b    []byte
	path Path
}

// memConn is a Conn without a network: what is put into in is read, what is written goes to out.
type memConn struct {
	in   chan packet
	out  func(b []byte, to Path)
	stop chan struct{}
	once sync.Once
}

func newMemConn(out func(b []byte, to Path)) *memConn {
	return &memConn{in: make(chan packet, 256), out: out, stop: make(chan struct{})}
}

func (c *memConn) Read(b []byte) (int, Path, error) {
	select {
	case <-c.stop:
		return 0, Path{}, os.ErrDeadlineExceeded
	default:
	}
	select {
	case p := <-c.in:
		return copy(b, p.b), p.path, nil
	case <-c.stop:
		return 0, Path{}, os.ErrDeadlineExceeded
	}
}

func (c *memConn) Write(b []byte, to Path) error {
	c.out(bytes.Clone(b), to)
	return nil
}

func (c *memConn) Addr() net.Addr { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5683} }

func (c *memConn) StopReading() error {
	c.once.Do(func() { close(c.stop) })
	return nil
}

func (c *memConn) Close() error { return c.StopReading() }

// rig is a running server in a synctest bubble and what it sent.
type rig struct {
	t      *testing.T
	server *Server
	conn   *memConn
	end    context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	sent []packet
}

// run calls f in a bubble with a server that hands requests to h.
func run(t *testing.T, o Options, h Handler, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, ended: make(chan error, 1)}
		r.conn = newMemConn(func(b []byte, to Path) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.sent = append(r.sent, packet{b, to})
		})
		o.Handler = h
		r.server = New(o, r.conn)
		ctx, cancel := context.WithCancel(t.Context())
		r.end = cancel
		go func() { r.ended <- r.server.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-r.ended; err != nil {
				t.Errorf("run: %v", err)
			}
			r.ended <- nil
		}()
		f(r)
	})
}

// peerPath is the path of the nth peer.
func peerPath(n int) Path {
	a := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	return Path{Remote: netip.AddrPortFrom(a, 40000), Local: netip.AddrFrom4([4]byte{192, 0, 2, 1})}
}

// send gives the server a datagram of peer n and waits until it has dealt with it.
func (r *rig) send(n int, b []byte) {
	r.conn.in <- packet{bytes.Clone(b), peerPath(n)}
	synctest.Wait()
}

// take returns what was sent since the last time.
func (r *rig) take() []packet {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent
	r.sent = nil
	return sent
}

// want fails unless exactly these messages were sent to peer n since the last time.
func (r *rig) want(n int, want ...[]byte) []packet {
	r.t.Helper()
	got := r.take()
	if len(got) != len(want) {
		r.t.Fatalf("sent %d messages, want %d: %s", len(got), len(want), texts(got))
	}
	for i, p := range got {
		if !bytes.Equal(p.b, want[i]) {
			r.t.Errorf("sent %s, want %s", text(p.b), text(want[i]))
		}
		if p.path != peerPath(n) {
			r.t.Errorf("sent to %v, want %v", p.path, peerPath(n))
		}
	}
	return got
}

// one returns the only message that was sent since the last time.
func (r *rig) one() coap.Message {
	r.t.Helper()
	got := r.take()
	if len(got) != 1 {
		r.t.Fatalf("sent %d messages, want 1: %s", len(got), texts(got))
	}
	return decode(r.t, got[0].b)
}

func texts(list []packet) string {
	var s string
	for _, p := range list {
		s += "\n  " + text(p.b)
	}
	return s
}

func text(b []byte) string {
	m := coap.Message{Options: make(coap.Options, 0, 32)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		return hex.EncodeToString(b) + " " + err.Error()
	}
	return fmt.Sprintf("%v %d.%02d mid %d token %x payload %q", m.Type, m.Code>>5, m.Code&31, m.MessageID, []byte(m.Token), m.Payload)
}

func decode(t *testing.T, b []byte) coap.Message {
	t.Helper()
	m := coap.Message{Options: make(coap.Options, 0, 32)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		t.Fatalf("decode %x: %v", b, err)
	}
	return m
}

// encode makes a datagram.
func encode(typ coap.Type, code codes.Code, mid int, token string, options coap.Options, payload string) []byte {
	m := coap.Message{Type: typ, Code: code, MessageID: int32(mid), Token: coap.Token(token), Options: options}
	if payload != "" {
		m.Payload = []byte(payload)
	}
	b := make([]byte, 600+len(payload))
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		panic(err)
	}
	return b[:n]
}

func con(mid int, token string) []byte {
	return encode(coap.Confirmable, codes.POST, mid, token, nil, "x")
}

func non(mid int, token string) []byte {
	return encode(coap.NonConfirmable, codes.POST, mid, token, nil, "x")
}

func ack(mid int, token string, code codes.Code) []byte {
	return encode(coap.Acknowledgement, code, mid, token, nil, "")
}
func bareAck(mid int) []byte { return encode(coap.Acknowledgement, codes.Empty, mid, "", nil, "") }
func rst(mid int) []byte     { return encode(coap.Reset, codes.Empty, mid, "", nil, "") }

// at once answers a request with 2.04.
func atOnce(r *Request) { r.Reply(Response{Code: codes.Changed}) }

// shelf parks requests until they are answered by the test.
type shelf struct {
	mu     sync.Mutex
	parked []*Exchange
	calls  int
}

func (s *shelf) handle(r *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if r.Busy() {
		r.Reply(Response{Code: codes.ServiceUnavailable})
		return
	}
	s.parked = append(s.parked, r.Park())
}

// answer answers the oldest parked request.
func (s *shelf) answer(code codes.Code) {
	s.mu.Lock()
	x := s.parked[0]
	s.parked = s.parked[1:]
	s.mu.Unlock()
	x.Reply(Response{Code: code})
	synctest.Wait()
}

func (s *shelf) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// after runs f once, when d has passed.
func after(d time.Duration, f func()) { time.AfterFunc(d, f) }
