package gate

import (
	"io"
	"net"
	"time"
)

// shutdownDrain bounds the drain of connections that Listener.Shutdown closes.
const shutdownDrain = 250 * time.Millisecond

// Close ends the connection and returns at once. Read and Write fail from now on. In the background the peer is given
// what may still leave: bytes whose tickets become durable within LingerTimeout, then the end of the stream, and up to
// DrainTimeout to close its side. Wait waits for that.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shutLocked(ReasonClosed, nil)
	return nil
}

// Disconnect is Close with a DISCONNECT of that reason code before it, for MQTT 5 clients that were accepted; others are
// only closed [MQTT-3.14.0-1].
func (c *Conn) Disconnect(code byte, why Reason) {
	c.disconnect(code, why, nil)
}

func (c *Conn) disconnect(code byte, why Reason, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	if c.welcomed && !c.ended {
		c.farewellLocked([]byte{typeDisconnect << 4, 2, code, 0})
	}
	c.shutLocked(why, err)
	c.startWriterLocked()
}

// Kill closes the socket now. What was not sent is lost.
func (c *Conn) Kill(why Reason) {
	c.kill(why, nil)
}

// Wait waits until the socket is closed, the goroutines of the connection have ended and OnClose was called. It must not
// be called from a callback.
func (c *Conn) Wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.gone {
		c.cond.Wait()
	}
}

// Cause returns the first cause for the end of the connection; empty as long as nothing went wrong.
func (c *Conn) Cause() (Reason, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why, c.whyErr
}

func (c *Conn) noteLocked(why Reason, err error) {
	if c.why == "" {
		c.why, c.whyErr = why, err
	}
}

// shutLocked begins the orderly end. The goroutine it starts ends by the timeouts of Options at the latest.
func (c *Conn) shutLocked(why Reason, err error) {
	if c.closing {
		return
	}
	c.noteLocked(why, err)
	c.closing = true
	if c.reading {
		// A Read that waits for the peer must come back now; the socket stays open for what has to be sent.
		_ = c.inner.SetReadDeadline(time.Unix(1, 0))
	}
	c.cond.Broadcast()
	c.refs++
	go c.linger()
}

// linger is the orderly end: flush, close our side, drain, close.
func (c *Conn) linger() {
	defer c.unref()
	defer c.kill(ReasonClosed, nil)
	c.tellWaiters()
	if c.flush() && c.closeWrite() {
		c.drain()
	}
}

// flush waits until everything that may leave has left. It reports whether a drain makes sense.
func (c *Conn) flush() bool {
	var late bool
	timer := time.AfterFunc(c.opts.LingerTimeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.cond.Broadcast()
	})
	defer timer.Stop()

	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.dead && !late && (len(c.marks) > 0 || c.writing || c.reading) {
		c.cond.Wait()
	}
	if len(c.marks) > 0 && !c.writing && !c.dead {
		// The disk was too slow. What it has not got stays unacknowledged, but a DISCONNECT may still say why.
		c.dropHeldLocked()
		c.startWriterLocked()
		late = false
		timer.Reset(c.opts.LingerTimeout)
		for !c.dead && !late && c.writing {
			c.cond.Wait()
		}
	}
	return !c.dead && !c.writing && !c.reading && !c.peerGone
}

// closeWrite tells the peer that nothing follows: the TLS or WebSocket farewell, then the end of the TCP stream.
func (c *Conn) closeWrite() bool {
	type closeWriter interface{ CloseWrite() error }
	said := false
	if w, ok := c.inner.(closeWriter); ok {
		said = w.CloseWrite() == nil
	}
	if raw := lowest(c.inner); raw != c.inner {
		if w, ok := raw.(closeWriter); ok {
			said = w.CloseWrite() == nil
		}
	}
	return said
}

// drain throws away what the peer still sends. Closing a socket with unread bytes would send a reset, and a reset makes
// the peer's kernel forget our last packet if it was not read yet.
func (c *Conn) drain() {
	raw := lowest(c.inner)
	c.mu.Lock()
	c.draining = true
	err := raw.SetReadDeadline(time.Now().Add(c.drainTimeLocked()))
	c.mu.Unlock()
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{raw})
}

func (c *Conn) drainTimeLocked() time.Duration {
	if c.brief {
		return min(c.opts.DrainTimeout, shutdownDrain)
	}
	return c.opts.DrainTimeout
}

// hurry makes the drain a short one, also of a connection that was closed before: the stop should not wait for peers that
// never close.
func (c *Conn) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.brief = true
	if c.draining {
		_ = lowest(c.inner).SetReadDeadline(time.Now().Add(c.drainTimeLocked()))
	}
}

// kill closes the socket, once.
func (c *Conn) kill(why Reason, err error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.noteLocked(why, err)
	c.closing, c.dead = true, true
	c.held, c.marks, c.out, c.spare, c.ticket, c.farewell = nil, nil, nil, nil, nil, nil
	c.cond.Broadcast()
	c.mu.Unlock()
	// The lowest connection first: closing a *tls.Conn may wait for a write that hangs.
	_ = lowest(c.inner).Close()
	c.tellWaiters()
	c.unref()
}

// tellWaiters tells everybody who waits for the queue that there is none any more.
func (c *Conn) tellWaiters() {
	c.mu.Lock()
	due := c.waiters
	c.waiters = nil
	c.mu.Unlock()
	for _, w := range due {
		w.f()
	}
}

// unref takes back one reference; with the last one the connection is gone.
func (c *Conn) unref() {
	c.mu.Lock()
	c.refs--
	last := c.refs == 0
	why, err := c.why, c.whyErr
	c.mu.Unlock()
	if !last {
		return
	}
	if lowest(c.inner) != c.inner {
		_ = c.inner.Close() // for what the layers above the socket hold
	}
	if f := c.opts.OnClose; f != nil {
		f(c, why, err)
	}
	if c.listener != nil {
		c.listener.release(c)
	}
	c.mu.Lock()
	c.gone = true
	c.cond.Broadcast()
	c.mu.Unlock()
}

// lowest returns the connection below all layers that can be looked through.
func lowest(c net.Conn) net.Conn {
	for {
		u, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = u.NetConn()
	}
}
