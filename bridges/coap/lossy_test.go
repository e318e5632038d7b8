package coap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// relay carries datagrams between clients and a server over real sockets, and loses a fifth of them, doubles some, and lets
// others be overtaken, both ways. Each client has a socket of its own towards the server.
type relay struct {
	t      *testing.T
	front  *net.UDPConn
	server *net.UDPAddr

	lost, doubled, reordered, carried atomic.Int64

	mu    sync.Mutex
	backs map[string]*net.UDPConn
	loops sync.WaitGroup
}

func newRelay(t *testing.T, server net.Addr) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	to, ok := server.(*net.UDPAddr)
	if !ok {
		t.Fatal(server)
	}
	r := &relay{t: t, front: front, server: to, backs: map[string]*net.UDPConn{}}
	r.loops.Go(func() { r.forth() }) // ends when front is closed
	t.Cleanup(func() {
		_ = front.Close()
		r.mu.Lock()
		for _, b := range r.backs {
			_ = b.Close()
		}
		r.mu.Unlock()
		r.loops.Wait()
	})
	return r
}

// carry passes a datagram on, or not.
func (r *relay) carry(b []byte, write func([]byte)) {
	b = append([]byte(nil), b...)
	if rand.IntN(5) == 0 {
		r.lost.Add(1)
		return
	}
	r.carried.Add(1)
	if rand.IntN(10) == 0 {
		r.doubled.Add(1)
		time.AfterFunc(rand.N(30*time.Millisecond), func() { write(b) })
	}
	if rand.IntN(4) == 0 {
		r.reordered.Add(1)
		time.AfterFunc(rand.N(30*time.Millisecond), func() { write(b) })
		return
	}
	write(b)
}

func (r *relay) forth() {
	b := make([]byte, 65535)
	for {
		n, from, err := r.front.ReadFromUDP(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		back := r.backs[from.String()]
		if back == nil {
			if back, err = net.DialUDP("udp4", nil, r.server); err != nil {
				r.mu.Unlock()
				r.t.Error(err)
				return
			}
			r.backs[from.String()] = back
			r.loops.Go(func() { r.back(back, from) }) // ends when back is closed
		}
		r.mu.Unlock()
		r.carry(b[:n], func(b []byte) { _, _ = back.Write(b) })
	}
}

func (r *relay) back(back *net.UDPConn, to *net.UDPAddr) {
	b := make([]byte, 65535)
	for {
		n, err := back.Read(b)
		if err != nil {
			return
		}
		r.carry(b[:n], func(b []byte) { _, _ = r.front.WriteToUDP(b, to) })
	}
}

// patient is a client that sends again after 150 ms and longer, where others wait for seconds, and gives up after 8 times.
type patient struct {
	conn net.Conn
	name string
}

func (p *patient) ask(mid uint16) (code codes.Code, ok bool, err error) {
	token := option.Token(fmt.Sprintf("%s%04d", p.name, mid))
	request := option.Message{
		Type: option.Confirmable, Code: codes.POST, MessageID: int32(mid), Token: token,
		Options: pathOptions("/ps/lossy"), Payload: []byte(token),
	}
	wait := 150 * time.Millisecond
	acknowledged := false
	for try := 0; try < 8; try++ {
		if !acknowledged {
			if err := p.send(request); err != nil {
				return 0, false, err
			}
		}
		for until := time.Now().Add(wait); ; {
			m, err := p.receive(until)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, false, err
			}
			if m.Type == option.Confirmable {
				ack := option.Message{Type: option.Acknowledgement, Code: codes.Empty, MessageID: m.MessageID}
				if err := p.send(ack); err != nil {
					return 0, false, err
				}
			}
			if m.Code != codes.Empty && string(m.Token) == string(token) {
				return m.Code, true, nil
			}
			acknowledged = acknowledged || m.Code == codes.Empty && m.MessageID == int32(mid)
		}
		wait += wait / 2
	}
	return 0, false, nil
}

func (p *patient) send(m option.Message) error {
	b := make([]byte, 500)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		return err
	}
	_, err = p.conn.Write(b[:n])
	return err
}

func (p *patient) receive(until time.Time) (option.Message, error) {
	b := make([]byte, 500)
	if err := p.conn.SetReadDeadline(until); err != nil {
		return option.Message{}, err
	}
	n, err := p.conn.Read(b)
	if err != nil {
		return option.Message{}, err
	}
	m := option.Message{Options: make(option.Options, 0, 16)}
	_, err = coder.DefaultCoder.Decode(b[:n], &m)
	return m, err
}

// TestLossyRelay: over real sockets, with a fifth of the datagrams lost and others doubled or overtaken, every request is
// published once, and whoever did not give up has its answer. Some records take so long to reach the disk that their answers
// travel separately.
func TestLossyRelay(t *testing.T) {
	const clients, requests = 60, 20
	g := start(t, nil)
	g.bus.disk.setSlow(func() time.Duration {
		if rand.IntN(50) == 0 {
			return 1200 * time.Millisecond
		}
		return rand.N(40 * time.Millisecond)
	})
	r := newRelay(t, g.Addrs()[0])
	var answered, gaveUp atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		conn, err := net.Dial("udp4", r.front.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		p := &patient{conn, fmt.Sprintf("c%02d", i)}
		all.Go(func() {
			for mid := range uint16(requests) {
				switch code, ok, err := p.ask(mid); {
				case err != nil:
					t.Error(err)
					return
				case !ok:
					gaveUp.Add(1)
				case code != codes.Changed:
					t.Errorf("%s, request %d: answered %s", p.name, mid, codeText(code))
				default:
					answered.Add(1)
				}
			}
		})
	}
	all.Wait()
	published := map[string]int{}
	for _, m := range g.bus.list() {
		published[string(m.Payload)]++
	}
	for token, n := range published {
		if n != 1 {
			t.Errorf("%s was published %d times", token, n)
		}
	}
	st := g.server.Stats()
	t.Logf("%d answered, %d gave up, %d published; relay: %d carried, %d lost, %d doubled, %d overtaken; server: %+v",
		answered.Load(), gaveUp.Load(), len(published), r.carried.Load(), r.lost.Load(), r.doubled.Load(), r.reordered.Load(), st)
	if answered.Load()+gaveUp.Load() != clients*requests || int64(len(published)) < answered.Load() || gaveUp.Load() > clients*requests/20 {
		t.Errorf("of %d requests %d were answered, %d given up, %d published", clients*requests, answered.Load(), gaveUp.Load(), len(published))
	}
	if st.Duplicates == 0 || r.lost.Load() == 0 || r.doubled.Load() == 0 || r.reordered.Load() == 0 {
		t.Error("the relay was too kind")
	}
}
