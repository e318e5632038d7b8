package testpeer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
)

// Options says how a Cloud is set up. The zero value listens in the clear on a free port and keeps every message.
type Options struct {
	TLS *tls.Config
	// CountOnly keeps no messages, only their number: for long runs.
	CountOnly bool
}

// Cloud is an MQTT broker that records what it is sent and misbehaves as its Script says.
type Cloud struct {
	options Options
	addr    string

	// mu guards everything below; it is never held while the script runs or bytes are written.
	mu       sync.Mutex
	changed  chan struct{} // nil unless somebody waits; closed whenever something below changes
	listener net.Listener
	script   Script
	conns    map[*conn]struct{}
	sessions map[string]*session
	connects []Connect
	received []Received
	count    int
	acks     []CommandAck
	wills    []Will
	closed   bool

	running sync.WaitGroup // the accept loop and every connection
}

// Listen starts a cloud on a free port of 127.0.0.1. Close ends it.
func Listen(o Options) (*Cloud, error) {
	c := &Cloud{
		options: o, addr: "127.0.0.1:0",
		conns: map[*conn]struct{}{}, sessions: map[string]*session{},
	}
	if err := c.Up(); err != nil {
		return nil, err
	}
	return c, nil
}

// Addr is host:port; it stays the same over Down and Up.
func (c *Cloud) Addr() string { return c.addr }

// URL is the address as an uplink's server: mqtt:// or mqtts://.
func (c *Cloud) URL() string {
	if c.options.TLS != nil {
		return "mqtts://" + c.addr
	}
	return "mqtt://" + c.addr
}

// Up listens (again). Sessions and records of earlier times are kept.
func (c *Cloud) Up() error {
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		return fmt.Errorf("testpeer: listen on %s: %w", c.addr, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener != nil || c.closed {
		_ = l.Close()
		return fmt.Errorf("testpeer: cloud on %s is up or closed already", c.addr)
	}
	c.addr, c.listener = l.Addr().String(), l
	c.running.Add(1)
	go c.accept(l) // ends when Down or Close closes l
	return nil
}

// Down stops listening and drops every connection, as a cloud that lost its power.
func (c *Cloud) Down() {
	c.mu.Lock()
	l := c.listener
	c.listener = nil
	c.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
	c.DropAll()
}

// Close ends the cloud and waits for everything it started.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.Down()
	c.running.Wait()
}

// DropAll closes every connection without a word.
func (c *Cloud) DropAll() {
	for _, cn := range c.open() {
		cn.end()
	}
}

// KickAll sends DISCONNECT with code to every client (on 3.1.1 there is no such packet) and closes.
func (c *Cloud) KickAll(code byte) {
	for _, cn := range c.open() {
		cn.fault(Fault{Kind: Kick, Code: code})
	}
}

// SetScript replaces the script for what comes from now on.
func (c *Cloud) SetScript(s Script) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script = s
}

// Received returns the messages in order of arrival; nil with CountOnly.
func (c *Cloud) Received() []Received {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Received(nil), c.received...)
}

// Count is the number of PUBLISH packets that arrived.
func (c *Cloud) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Connects returns every CONNECT that arrived, in order.
func (c *Cloud) Connects() []Connect {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Connect(nil), c.connects...)
}

// CommandAcks returns the acknowledgements of commands, in order.
func (c *Cloud) CommandAcks() []CommandAck {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]CommandAck(nil), c.acks...)
}

// Wills returns the will messages of connections that ended without a DISCONNECT.
func (c *Cloud) Wills() []Will {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Will(nil), c.wills...)
}

// Open is the number of connections that got past CONNECT.
func (c *Cloud) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for cn := range c.conns {
		if cn.session != nil {
			n++
		}
	}
	return n
}

// Subscribed reports whether a client's session holds that topic filter.
func (c *Cloud) Subscribed(filter string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if _, ok := s.filters[filter]; ok {
			return true
		}
	}
	return false
}

// Wait returns when ok holds; it looks again at every packet. It fails when ctx ends first.
func (c *Cloud) Wait(ctx context.Context, ok func(*Cloud) bool) error {
	for {
		c.mu.Lock()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if ok(c) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("testpeer: wait for the cloud: %w", context.Cause(ctx))
		}
	}
}

// Send queues a command for every session whose subscription matches and returns their number. Sessions without a
// connection get it when they come back.
func (c *Cloud) Send(cmd Command) int {
	c.mu.Lock()
	var due []*conn
	n := 0
	for _, s := range c.sessions {
		if !s.matches(cmd.Topic) {
			continue
		}
		n++
		s.queue = append(s.queue, &outgoing{cmd: cmd})
		if s.conn != nil {
			due = append(due, s.conn)
		}
	}
	c.mu.Unlock()
	for _, cn := range due {
		cn.sendCommands()
	}
	return n
}

// open lists the connections of this moment.
func (c *Cloud) open() []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*conn
	for cn := range c.conns {
		out = append(out, cn)
	}
	return out
}

// note wakes up Wait; the caller holds mu.
func (c *Cloud) note() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

func (c *Cloud) accept(l net.Listener) {
	defer c.running.Done()
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		if c.options.TLS != nil {
			nc = tls.Server(nc, c.options.TLS)
		}
		cn := newConn(c, nc)
		c.mu.Lock()
		if c.listener != l {
			c.mu.Unlock()
			_ = nc.Close()
			return
		}
		c.conns[cn] = struct{}{}
		c.running.Add(1)
		c.mu.Unlock()
		go cn.run() // ends when its connection does
	}
}
