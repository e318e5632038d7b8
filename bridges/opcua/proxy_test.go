package opcua

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy stands between the bridge and a server and spoils their connection.
type proxy struct {
	t        *testing.T
	listener net.Listener
	target   string

	mu     sync.Mutex
	cond   *sync.Cond
	silent bool          // nothing passes, nothing is closed
	delay  time.Duration // of every piece
	conns  map[net.Conn]bool
	parts  sync.WaitGroup
}

func startProxy(t *testing.T, port int) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: l, target: fmt.Sprintf("127.0.0.1:%d", port), conns: map[net.Conn]bool{}}
	p.cond = sync.NewCond(&p.mu)
	p.parts.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.silence(false)
		p.cut()
		p.parts.Wait()
	})
	return p
}

func (p *proxy) url() string { return fmt.Sprintf("opc.tcp://%s/UA/Test", p.listener.Addr()) }

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.parts.Go(func() { p.serve(c) })
	}
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	p.wait()
	s, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer s.Close()
	p.mu.Lock()
	p.conns[c], p.conns[s] = true, true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(s, c) })
	both.Go(func() { p.copy(c, s) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, s)
	p.mu.Unlock()
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if d := p.wait(); d > 0 {
			time.Sleep(d)
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait holds a piece while the line is silent.
func (p *proxy) wait() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.silent {
		p.cond.Wait()
	}
	return p.delay
}

func (p *proxy) silence(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = on
	p.cond.Broadcast()
}

func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// cut resets every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}
