package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Accept retries a failed accept after these times, doubling from the first to the last.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// ListenerOptions are the limits before a connection is anybody's. Zero fields mean: no limit, no TLS, nobody told.
type ListenerOptions struct {
	// Conn are the bounds of each accepted connection.
	Conn Options
	// TLS makes every connection a TLS one; nil: plain. SetTLS replaces it for connections to come.
	TLS *tls.Config
	// Layer puts another layer on top, inside TLS: what it returns carries the byte stream. It must not block; a layer that has
	// something to settle with the peer first has a method Open() error, which is called before the first Read, in the time that
	// is left of ConnectTimeout. Its NetConn method must lead to what it was given. Nil: none.
	Layer func(net.Conn) net.Conn
	// Limits are bounds that several listeners have together, in place of the four below.
	Limits *Limits
	// MaxConns bounds the open connections of this listener, those being closed included. What comes above it is closed at
	// once. 0 means no bound.
	MaxConns int
	// MaxPerAddr bounds the open connections from one network address in the same way. 0 means no bound.
	MaxPerAddr int
	// RatePerAddr slows one address down to so many new connections a second: those above it are accepted but not read
	// before their turn comes, at most ten seconds later. 0 means no bound.
	RatePerAddr float64
	// Burst is how many connections one address may open before RatePerAddr applies. 0 means 10.
	Burst int
	// OnRefuse is called for a connection that was closed for a bound.
	OnRefuse func(addr net.Addr, why Reason)
	// OnDelay is called for a connection that has to wait for its turn.
	OnDelay func(addr net.Addr, d time.Duration)
	// OnAcceptError is called for every failed accept.
	OnAcceptError func(err error)
	// Logger is told when accepting begins to fail and when it works again. Nil: nobody is.
	Logger *slog.Logger
}

// Listener is a net.Listener whose connections are *Conn. Accept ends only with Close.
type Listener struct {
	inner  net.Listener
	opts   ListenerOptions
	conn   *Options // shared by all connections
	config atomic.Pointer[tls.Config]
	closed chan struct{}

	limits *Limits

	mu     sync.Mutex
	shut   bool // no connection is let in any more
	conns  map[*Conn]addrKey
	gone   sync.Cond // on mu; a connection has gone
	failed bool      // the last accept failed; used by the goroutine that accepts only
}

// NewListener makes a Listener of inner, which it owns from then on. It starts nothing.
func NewListener(inner net.Listener, o ListenerOptions) *Listener {
	l := &Listener{
		inner: inner, opts: o, conn: o.Conn.withDefaults(), closed: make(chan struct{}),
		conns: make(map[*Conn]addrKey), limits: o.Limits,
	}
	if l.limits == nil {
		l.limits = NewLimits(o.MaxConns, o.MaxPerAddr, o.RatePerAddr, o.Burst)
	}
	l.gone.L = &l.mu
	l.config.Store(o.TLS)
	if l.opts.Logger == nil {
		l.opts.Logger = slog.New(slog.DiscardHandler)
	}
	return l
}

// SetTLS replaces the TLS configuration for connections accepted from now on; existing ones keep theirs. A listener that
// was made with TLS never becomes a plain one: nil is ignored.
func (l *Listener) SetTLS(c *tls.Config) {
	if c != nil && l.opts.TLS != nil {
		l.config.Store(c)
	}
}

// Addr returns the address that is listened on.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept waits for the next connection, a *Conn. It returns an error only after Close: whatever else happens (no file
// descriptors left, a peer gone before it was accepted) is tried again.
func (l *Listener) Accept() (net.Conn, error) {
	pause := minAcceptPause
	for {
		raw, err := l.inner.Accept()
		if err != nil {
			if !l.pause(err, pause) {
				return nil, net.ErrClosed
			}
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		if l.failed {
			l.failed = false
			l.opts.Logger.Info("accepting connections again", "listen", l.inner.Addr().String())
		}
		pause = minAcceptPause
		if c := l.admit(raw); c != nil {
			return c, nil
		}
	}
}

// pause deals with a failed accept; false means that the listener was closed.
func (l *Listener) pause(err error, d time.Duration) bool {
	select {
	case <-l.closed:
		return false
	default:
	}
	if errors.Is(err, net.ErrClosed) {
		return false // somebody closed the inner listener: it will never accept again
	}
	if l.opts.OnAcceptError != nil {
		l.opts.OnAcceptError(err)
	}
	if !l.failed {
		l.failed = true
		l.opts.Logger.Warn("cannot accept connections, trying on", "listen", l.inner.Addr().String(), "error", err)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.closed:
		return false
	}
}

// admit makes a Conn of raw, or closes it and returns nil when a bound is reached.
func (l *Listener) admit(raw net.Conn) *Conn {
	inner := raw
	if cfg := l.config.Load(); cfg != nil {
		inner = tls.Server(raw, cfg)
	}
	if l.opts.Layer != nil {
		inner = l.opts.Layer(inner)
	}
	key := keyOf(raw.RemoteAddr())
	c := newConn(inner, l.conn, l)
	delay, why := l.enter(c, key)
	if why != "" {
		_ = raw.Close()
		if l.opts.OnRefuse != nil {
			l.opts.OnRefuse(raw.RemoteAddr(), why)
		}
		return nil
	}
	if delay > 0 {
		c.startAt = time.Now().Add(delay)
		c.connectBy = c.connectBy.Add(delay)
		if l.opts.OnDelay != nil {
			l.opts.OnDelay(raw.RemoteAddr(), delay)
		}
	}
	return c
}

// enter counts c in, or says why not.
func (l *Listener) enter(c *Conn, key addrKey) (delay time.Duration, why Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return 0, ReasonShutdown
	}
	if delay, why = l.limits.enter(key, time.Now()); why == "" {
		l.conns[c] = key
	}
	return delay, why
}

// release forgets a connection that is gone.
func (l *Listener) release(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits.leave(l.conns[c], time.Now())
	delete(l.conns, c)
	l.gone.Broadcast()
}

// Open returns the number of connections that are not gone yet.
func (l *Listener) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Close ends accepting. Open connections stay: their owners close them, and Wait waits for them.
func (l *Listener) Close() error {
	l.mu.Lock()
	was := l.shut
	l.shut = true
	l.mu.Unlock()
	if was {
		return nil
	}
	close(l.closed)
	return l.inner.Close()
}

// Wait waits until every connection is gone: socket closed, goroutines ended, OnClose called. Call Close before.
func (l *Listener) Wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.conns) > 0 {
		l.gone.Wait()
	}
}

// Shutdown closes the listener and all its connections in an orderly way, those of MQTT 5 with a DISCONNECT of that
// reason code (0x8B: server shutting down), and waits for them. When ctx ends before, the rest is killed and waited for,
// and the context's error is returned.
func (l *Listener) Shutdown(ctx context.Context, code byte) error {
	err := l.Close()
	for _, c := range l.Conns() {
		c.hurry()
		c.Disconnect(code, ReasonShutdown)
	}
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		for _, c := range l.Conns() {
			c.Kill(ReasonShutdown)
		}
	})
	l.Wait()
	if !stop() {
		<-killed
		return ctx.Err()
	}
	return err
}

// Conns returns the connections that are not gone yet.
func (l *Listener) Conns() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	return all
}
