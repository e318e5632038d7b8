package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Read reads bytes of the peer's packets. It waits while too much waits for the disk (Options.MaxHeld), and it hands out
// only bytes of packets that are within the bounds: the error about one that is not comes after the bytes before it. Once
// the connection was closed on this side it returns net.ErrClosed at once, also to a Read that is already waiting.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	got, err := c.read(p)
	return len(got), err
}

// read is Read, where p is not nil; else the bytes that it returns are in a buffer of the input.
func (c *Conn) read(p []byte) ([]byte, error) {
	if c.scanErr != nil {
		return nil, c.refuse(c.scanErr)
	}
	for {
		finishing, err := c.beginRead()
		if err != nil {
			return nil, err
		}
		var got []byte
		if finishing {
			got, err = c.readArrived(p)
		} else if err = c.handshake(); err == nil {
			got, err = c.receive(p)
		}
		if len(got) == 0 && !finishing && c.awakened(err) {
			continue
		}
		if len(got) == 0 && errors.Is(err, errNothingArrived) {
			c.disconnect(c.finishCode, c.finishWhy, nil)
		}
		return c.endRead(got, err)
	}
}

// beginRead waits until this connection may be read from and sets the deadline for it. finishing says that only what has
// arrived is wanted, see Finish.
func (c *Conn) beginRead() (finishing bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waitForTurnLocked()
	c.waitForDiskLocked()
	if c.closing {
		return false, net.ErrClosed
	}
	if c.finishing {
		c.reading = true
		return true, nil
	}
	if c.in.begins {
		c.in.begins = false
		if c.keepAlive > 0 {
			c.deadline, c.stale = time.Now().Add(c.keepAlive), true
		}
	}
	if c.stale || !c.connected.Load() {
		c.stale = false
		if err := c.inner.SetReadDeadline(c.readDeadlineLocked()); err != nil {
			return false, fmt.Errorf("set read deadline: %w", err)
		}
	}
	c.reading = true
	return false, nil
}

// awakened reports whether a Read that waited for the peer ended because Finish was called, with err.
func (c *Conn) awakened(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.finishing || c.closing || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.reading = false
	return true
}

// readDeadlineLocked is the caller's deadline, and before the CONNECT at the latest the time when that must have come.
func (c *Conn) readDeadlineLocked() time.Time {
	if !c.connected.Load() && (c.deadline.IsZero() || c.connectBy.Before(c.deadline)) {
		return c.connectBy
	}
	return c.deadline
}

// waitForTurnLocked waits until startAt: too many connections came from this address in short time.
func (c *Conn) waitForTurnLocked() {
	if c.startAt.IsZero() {
		return
	}
	if d := time.Until(c.startAt); d > 0 {
		t := time.AfterFunc(d, c.wake)
		defer t.Stop()
	}
	for !c.closing && !c.finishing && time.Now().Before(c.startAt) {
		c.cond.Wait()
	}
	c.startAt = time.Time{}
}

// waitForDiskLocked waits while more is held than allowed. The peer sees its TCP window close; that it could send nothing
// meanwhile must not count as its silence, so the deadline moves by the time waited.
func (c *Conn) waitForDiskLocked() {
	if !c.overHeldLocked() || c.closing {
		return
	}
	if f := c.opts.OnPause; f != nil {
		c.mu.Unlock()
		f(c)
		c.mu.Lock()
	}
	begin := time.Now()
	for !c.closing && c.overHeldLocked() {
		c.cond.Wait()
	}
	if !c.deadline.IsZero() {
		c.deadline = c.deadline.Add(time.Since(begin))
		c.stale = true
	}
}

func (c *Conn) overHeldLocked() bool {
	return len(c.held) > c.opts.MaxHeld || len(c.marks) > c.opts.MaxHeldAcks
}

func (c *Conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cond.Broadcast()
}

// opener is a layer that has something to settle with the peer first.
type opener interface{ Open() error }

// handshake makes the TLS handshake and opens the layer above, here and not in Accept, so that a slow peer delays only itself.
// ConnectTimeout is the limit of both.
func (c *Conn) handshake() error {
	if c.handshaken.Load() {
		return nil
	}
	layer, isLayer := c.inner.(opener)
	t := tlsOf(c.inner)
	if t == nil && !isLayer {
		c.handshaken.Store(true)
		return nil
	}
	if err := lowest(c.inner).SetWriteDeadline(c.connectBy); err != nil {
		return err
	}
	if t != nil {
		if err := t.HandshakeContext(context.Background()); err != nil {
			return &handshakeError{"tls handshake", err}
		}
	}
	if isLayer {
		if err := layer.Open(); err != nil {
			return &handshakeError{"open connection", err}
		}
	}
	c.handshaken.Store(true)
	return lowest(c.inner).SetWriteDeadline(time.Time{})
}

// handshakeError marks that the connection could not be opened.
type handshakeError struct {
	what string
	err  error
}

func (e *handshakeError) Error() string { return e.what + ": " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// endRead looks at what came from the peer and decides what the caller may see of it.
func (c *Conn) endRead(p []byte, err error) ([]byte, error) {
	if len(p) > 0 {
		n, bad := c.scan.scan(p)
		p, c.scanErr = p[:n], bad
		c.noteConnect()
		c.bytesIn.Add(uint64(n))
	}
	c.mu.Lock()
	c.reading = false
	if c.closing {
		c.cond.Broadcast()
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	if err != nil {
		err = c.readFailedLocked(err)
	}
	c.mu.Unlock()
	if len(p) == 0 && err == nil && c.scanErr != nil {
		return nil, c.refuse(c.scanErr)
	}
	return p, err
}

// noteConnect publishes what the scanner learned from the CONNECT.
func (c *Conn) noteConnect() {
	if c.connected.Load() || c.scan.level == 0 {
		return
	}
	c.level.Store(uint32(c.scan.level))
	if c.scan.whole {
		c.mu.Lock()
		c.stale = true // the time limit for the CONNECT goes
		c.mu.Unlock()
		c.connected.Store(true)
	}
}

// readFailedLocked notes why reading came to an end, in case this ends the connection, and returns the caller's error.
func (c *Conn) readFailedLocked(err error) error {
	var failed *handshakeError
	timeout := errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case timeout && !c.connected.Load() && !time.Now().Before(c.connectBy):
		err = fmt.Errorf("wait for connect: %w", err)
		c.shutLocked(ReasonConnectTimeout, err)
	case timeout:
		c.noteLocked(ReasonKeepAlive, err)
	case errors.As(err, &failed):
		c.noteLocked(ReasonHandshake, err)
	case errors.Is(err, io.EOF):
		c.noteLocked(ReasonPeer, nil)
	default:
		c.noteLocked(ReasonPeer, err)
	}
	c.peerGone = c.peerGone || !timeout
	return err
}

// refuse ends the connection for a packet that the peer must not send. MQTT 5 clients are told why, once they have been
// accepted [MQTT-3.14.0-1].
func (c *Conn) refuse(err error) error {
	switch {
	case errors.Is(err, ErrPacketTooLarge):
		c.disconnect(codePacketTooLarge, ReasonPacketTooLarge, err)
	case errors.Is(err, ErrMalformed):
		c.disconnect(codeMalformed, ReasonMalformed, err)
	case errors.Is(err, ErrConnectTooLarge):
		c.disconnect(codePacketTooLarge, ReasonConnectTooLarge, err)
	default:
		c.disconnect(codeMalformed, ReasonNotConnect, err)
	}
	return fmt.Errorf("read packet: %w", err)
}

// SetDeadline sets the read deadline only, see SetWriteDeadline.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline sets when Read gives up: the keep alive of the client. It stands still while Read waits for the disk.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	if c.finishing {
		return nil
	}
	c.deadline, c.stale = t, true
	if !c.reading {
		return nil // the next Read will set it, once for all packets it gets
	}
	c.stale = false
	return c.inner.SetReadDeadline(c.readDeadlineLocked())
}

// SetWriteDeadline does nothing: Write never blocks, and the limit for the peer is Options.WriteTimeout. The broker sets
// its keep alive for both directions, which would cut off a client in the middle of a long delivery.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
