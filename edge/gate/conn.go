package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrQueueFull is returned by the Write that would bring a connection above Options.HardQueued; the connection is ended.
var ErrQueueFull = errors.New("peer takes too little: queue full")

// Ticket is what acknowledgements wait for.
type Ticket interface {
	// Durable tells whether the record is on disk. Once true it stays true. It is asked under the connection's lock, so it
	// must be quick and must not wait for anything that waits for a Done callback.
	Durable() bool
	// Done calls f exactly once: with nil when the record is on disk (at once when it is already), with an error when the
	// disk failed and it never will be. f is quick and may run on any goroutine, also on the one that calls Done.
	Done(f func(error))
}

// Conn is a net.Conn for one MQTT client. Write, Hold, the deadlines, Close and the questions may be used by any number of
// goroutines, Read and ReadPacket by one. Make it with Wrap or take it from a Listener; end it with Close, Disconnect or Kill.
type Conn struct {
	inner    net.Conn // what Wrap was given: may be a *tls.Conn or a WebSocket
	opts     *Options
	listener *Listener // told when the connection is gone; nil for one made by Wrap

	// mu guards everything below up to the atomics. No lock is held while reading or writing the socket; under it are only
	// copies, Ticket.Durable and the socket's SetReadDeadline, which do not wait.
	mu   sync.Mutex
	cond sync.Cond // on mu; tells Read, linger and Wait that something they look at has changed

	// Way out, see hold.go. Bytes are in held until their ticket is durable, then in out until the writer takes them.
	ticket   Ticket // the newest ticket that was not durable when last looked at; nil: write through
	ticketNo uint32 // counts Hold calls that gave a ticket, to tell marks apart
	held     []byte
	marks    []mark // which ticket each stretch of held waits for; oldest first
	farewell []byte // a DISCONNECT that waits for held to become empty
	onCommit func(error)
	out      []byte
	spare    []byte // the writer's last buffer, for the next one
	waiters  []waiter
	awaiting bool // a Done callback for the first mark is outstanding: never more than one
	writing  bool // the writer goroutine runs
	opaque   bool // bytes that are no whole packets were written: nothing overtakes any more
	welcomed bool // a CONNACK that accepts was written
	ended    bool // a DISCONNECT was written: nothing more is taken

	// Way in, see read.go.
	deadline  time.Time     // the caller's read deadline; it stands still while Read waits for the disk
	keepAlive time.Duration // sets deadline where a packet begins; 0: it does not
	connectBy time.Time     // when the CONNECT must have arrived
	startAt   time.Time     // Read does not begin before: the connect rate of this address
	reading   bool          // a goroutine is inside inner.Read or the handshake
	stale     bool          // deadline has changed since it was last given to inner
	peerGone  bool          // inner.Read ended with something else than a timeout
	// finishing: Read takes only what has arrived, see Finish; what comes then is in finishCode and finishWhy.
	finishing  bool
	finishCode byte
	finishWhy  Reason

	// The end, see close.go.
	refs     int  // 1 until the socket is closed, and 1 per goroutine of ours
	closing  bool // no more Read and Write
	dead     bool // the socket is closed
	brief    bool // the drain is to be short
	draining bool
	gone     bool   // refs came to 0 and everybody was told
	why      Reason // first cause
	whyErr   error

	// scan, scanErr and in belong to the goroutine that reads.
	scan    scanner
	scanErr error // what the scanner found; given to the caller after the bytes before it
	in      input // see packet.go

	connected  atomic.Bool // the CONNECT was read whole
	handshaken atomic.Bool // TLS handshake is done
	level      atomic.Uint32
	queued     atomic.Int64 // bytes in out and in the writer's hands
	bytesIn    atomic.Uint64
	bytesOut   atomic.Uint64
}

// mark says that the next n bytes of held wait for t.
type mark struct {
	t  Ticket
	n  int32
	no uint32
}

// waiter is told once when the queue is down to n bytes.
type waiter struct {
	n int64
	f func()
}

// Wrap makes a Conn of c, which it owns from then on: a TCP connection, a *tls.Conn or anything else that carries a byte
// stream. ConnectTimeout begins now. Where TLS is used, wrap the *tls.Conn, never what is below it.
func Wrap(c net.Conn, o Options) *Conn {
	return newConn(c, o.withDefaults(), nil)
}

func newConn(inner net.Conn, o *Options, l *Listener) *Conn {
	c := &Conn{inner: inner, opts: o, listener: l, refs: 1, connectBy: time.Now().Add(o.ConnectTimeout)}
	c.cond.L = &c.mu
	c.waitWithoutBuffer()
	c.scan = scanner{maxConnect: min(o.MaxConnectBytes, o.MaxPacket), maxPacket: o.MaxPacket}
	return c
}

// LocalAddr returns the local address of the wrapped connection.
func (c *Conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

// NetConn returns the wrapped connection: a *tls.Conn where TLS is used. Reading or writing it directly breaks the gate.
func (c *Conn) NetConn() net.Conn { return c.inner }

// ConnectionState returns the state of the TLS connection; false without TLS or while the handshake is not done.
func (c *Conn) ConnectionState() (tls.ConnectionState, bool) {
	t := tlsOf(c.inner)
	if t == nil || !c.handshaken.Load() {
		return tls.ConnectionState{}, false
	}
	return t.ConnectionState(), true
}

// tlsOf returns the TLS layer of c; nil when there is none.
func tlsOf(c net.Conn) *tls.Conn {
	for {
		if t, ok := c.(*tls.Conn); ok {
			return t
		}
		u, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = u.NetConn()
	}
}

// Level returns the protocol level of the CONNECT packet: 3 (MQTT 3.1), 4 (3.1.1) or 5; 0 as long as it has not arrived.
func (c *Conn) Level() byte { return byte(c.level.Load()) }

// Queued returns the bytes that may leave and that the socket has not taken yet. Held ones are not among them.
func (c *Conn) Queued() int { return int(c.queued.Load()) }

// Full tells whether Queued is above Options.MaxQueued: time to pause or to drop QoS 0.
func (c *Conn) Full() bool { return c.queued.Load() > int64(c.opts.MaxQueued) }

// Held returns the bytes that wait for the disk.
func (c *Conn) Held() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.held)
}

// BytesRead returns how many bytes were handed to Read's caller so far, after TLS.
func (c *Conn) BytesRead() uint64 { return c.bytesIn.Load() }

// BytesWritten returns how many bytes the socket has taken so far, before TLS.
func (c *Conn) BytesWritten() uint64 { return c.bytesOut.Load() }

// OnBelow calls f once, when at most n bytes are queued or the connection has ended; at once when that is so already.
// f runs on the calling goroutine or on the gate's writer, without locks, and must not block.
func (c *Conn) OnBelow(n int, f func()) {
	c.mu.Lock()
	if c.closing || c.queued.Load() <= int64(n) {
		c.mu.Unlock()
		f()
		return
	}
	c.waiters = append(c.waiters, waiter{int64(n), f})
	c.mu.Unlock()
}

// OnEnd calls f once, when the connection has ended for the caller: with Close, Disconnect or Kill, whoever called it; at
// once when that is so already. f must not block.
func (c *Conn) OnEnd(f func()) { c.OnBelow(-1, f) }

// WaitBelow waits until at most n bytes are queued. It returns net.ErrClosed when the connection has ended and the
// context's error when that came first. A session's sender calls it after a Write that left the connection Full.
func (c *Conn) WaitBelow(ctx context.Context, n int) error {
	if c.queued.Load() > int64(n) {
		below := make(chan struct{})
		c.OnBelow(n, func() { close(below) })
		select {
		case <-below:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	return nil
}
