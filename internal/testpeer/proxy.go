package testpeer

import (
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// proxyChunk is how much is relayed at once, proxyQueue how many chunks wait while they are delayed: what a connection
	// holds back is bounded, and then the sender feels it.
	proxyChunk = 16 << 10
	proxyQueue = 256
)

// Proxy relays TCP connections to a target and harms them on request. Its settings apply to open connections at once.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a setting changes
	conns   map[net.Conn]struct{}
	hole    bool
	refuse  bool
	delay   time.Duration
	rate    int // bytes a second and direction, 0: as fast as it goes
	closed  bool
}

// NewProxy starts a relay from a free port of 127.0.0.1 to target (host:port). Close ends it.
func NewProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("testpeer: listen: %w", err)
	}
	p := &Proxy{target: target, listener: l, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	p.running.Add(1)
	go p.accept() // ends when Close closes the listener
	return p, nil
}

// Addr is where to connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close ends the proxy and its connections and waits for everything it started.
func (p *Proxy) Close() {
	p.set(func() { p.closed = true })
	_ = p.listener.Close()
	p.Cut()
	p.running.Wait()
}

// Cut closes every connection, in mid-packet or not.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Reset ends every connection with a TCP RST.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
}

// Refuse makes the proxy close new connections at once, as a server that is down behind a load balancer.
func (p *Proxy) Refuse(on bool) { p.set(func() { p.refuse = on }) }

// BlackHole stops relaying in both directions while connections stay open.
func (p *Proxy) BlackHole(on bool) { p.set(func() { p.hole = on }) }

// Delay holds everything back for d in each direction; the rate stays what it is.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Throttle relays at most that many bytes a second in each direction of each connection; 0 ends it.
func (p *Proxy) Throttle(bytesPerSecond int) { p.set(func() { p.rate = bytesPerSecond }) }

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	defer p.running.Done()
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.refuse || p.closed
		p.mu.Unlock()
		if refuse {
			_ = in.Close()
			continue
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = struct{}{}, struct{}{}
		closed := p.closed
		p.mu.Unlock()
		if closed {
			p.Cut()
		}
		p.running.Add(1)
		go p.relay(in, out) // ends when either side closes
	}
}

// relay moves bytes both ways until both directions have ended.
func (p *Proxy) relay(a, b net.Conn) {
	defer p.running.Done()
	var ways sync.WaitGroup
	ways.Go(func() { p.way(a, b) })
	ways.Go(func() { p.way(b, a) })
	ways.Wait()
	p.mu.Lock()
	delete(p.conns, a)
	delete(p.conns, b)
	p.mu.Unlock()
}

type chunk struct {
	b   []byte
	due time.Time
}

// way moves bytes from src to dst; the end of either ends both connections.
func (p *Proxy) way(src, dst net.Conn) {
	queue := make(chan chunk, proxyQueue)
	ended := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() { // ends when src or dst ends
		defer close(queue)
		for {
			b := make([]byte, proxyChunk)
			n, err := src.Read(b)
			if n > 0 {
				p.mu.Lock()
				due := time.Now().Add(p.delay)
				p.mu.Unlock()
				select {
				case queue <- chunk{b: b[:n], due: due}:
				case <-ended:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range queue {
		if !p.pass(c, dst) {
			break
		}
	}
	close(ended)
	_ = src.Close()
	_ = dst.Close()
	reader.Wait()
}

// pass writes a chunk when it is due and the black hole is off, at the rate that is set.
func (p *Proxy) pass(c chunk, dst net.Conn) bool {
	time.Sleep(time.Until(c.due))
	for len(c.b) > 0 {
		p.mu.Lock()
		hole, rate, changed, closed := p.hole, p.rate, p.changed, p.closed
		p.mu.Unlock()
		if closed {
			return false
		}
		if hole {
			<-changed
			continue
		}
		n := len(c.b)
		if rate > 0 {
			n = min(n, max(rate/50, 1))
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
		if _, err := dst.Write(c.b[:n]); err != nil {
			return false
		}
		c.b = c.b[n:]
	}
	return true
}
