package e2e

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is the line between the gateway and the cloud: it can be cut, swallow what is sent in either direction while the
// connection seems to live, be slow or long, or change a byte.
type proxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  *sync.Cond
	down     bool          // refuses and ends connections
	hole     map[bool]bool // swallows: [true] what goes to the cloud, [false] what comes from it
	rate     int           // bytes per second in each direction; 0: no limit
	delay    time.Duration // of everything, in each direction
	flip     map[bool]bool // changes one byte of what comes next, and is unset then
	conns    map[net.Conn]bool
	accepted int
	swallow  int64 // bytes that the hole took
}

const (
	toCloud   = true
	fromCloud = false
)

// newProxy starts a line to a target that works.
func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	ln, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, ln: ln, hole: map[bool]bool{}, flip: map[bool]bool{}, conns: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	p.wg.Go(p.serve) // ends when ln is closed
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url() string { return "mqtt://" + p.ln.Addr().String() }

// set changes what the line does to bytes from now on.
func (p *proxy) set(change func(p *proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
	p.changed.Broadcast()
}

// cut ends every connection and refuses new ones.
func (p *proxy) cut() {
	p.set(func(p *proxy) {
		p.down = true
		for c := range p.conns {
			c.Close()
		}
	})
}

// mend undoes whatever was done to the line; connections that lived through it stay as they are.
func (p *proxy) mend() {
	p.set(func(p *proxy) {
		p.down, p.rate, p.delay, p.hole, p.flip = false, 0, 0, map[bool]bool{}, map[bool]bool{}
	})
}

func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

func (p *proxy) swallowed() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallow
}

func (p *proxy) serve() {
	for {
		near, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		down := p.down
		p.accepted++
		p.mu.Unlock()
		if down {
			near.Close()
			continue
		}
		far, err := net.DialTimeout("tcp", p.target, time.Second)
		if err != nil {
			near.Close()
			continue
		}
		p.mu.Lock()
		p.conns[near], p.conns[far] = true, true
		if p.down {
			near.Close()
			far.Close()
		}
		p.mu.Unlock()
		p.wg.Go(func() { p.pump(near, far, toCloud) })   // ends with either connection
		p.wg.Go(func() { p.pump(far, near, fromCloud) }) // likewise
	}
}

func (p *proxy) pump(from, to net.Conn, way bool) {
	defer func() {
		from.Close()
		to.Close()
		p.mu.Lock()
		delete(p.conns, from)
		delete(p.conns, to)
		p.mu.Unlock()
	}()
	line := make(chan chunk, 1<<16) // what is on its way: a long line holds much
	ended := make(chan struct{})
	p.wg.Go(func() { // ends with either connection
		defer close(ended)
		p.deliver(line, to)
		from.Close()
		to.Close()
	})
	defer func() { close(line); <-ended }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		gone, delay := p.hole[way], p.delay
		if gone {
			p.swallow += int64(n)
		}
		if p.flip[way] {
			buf[n/2] ^= 0x55
			p.flip[way] = false
		}
		p.mu.Unlock()
		if gone {
			// A stream with a piece missing would be nonsense to the peer, as it never is over TCP: this connection
			// hears nothing more in this direction, until it is given up.
			p.drop(from)
			return
		}
		select {
		case line <- chunk{bytes.Clone(buf[:n]), time.Now().Add(delay)}:
		case <-ended:
			return
		}
	}
}

// chunk is a piece of a stream and when it arrives.
type chunk struct {
	b   []byte
	due time.Time
}

// deliver writes what is on its way until it is closed or the connection ends.
func (p *proxy) deliver(line <-chan chunk, to net.Conn) {
	for c := range line {
		time.Sleep(time.Until(c.due))
		p.mu.Lock()
		rate := p.rate
		p.mu.Unlock()
		for rest := c.b; len(rest) > 0; {
			n := len(rest)
			if rate > 0 {
				n = min(n, 4096)
				time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
			}
			if _, err := to.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}
}

// drop reads a connection to its end and throws everything away.
func (p *proxy) drop(from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		p.swallow += int64(n)
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}
