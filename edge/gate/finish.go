package gate

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// errNothingArrived: everything that the peer had sent was read.
var errNothingArrived = errors.New("nothing more has arrived")

// Finish ends the connection once what the peer has sent so far was read: a client that comes by another connection has
// often said all it wanted, and goodbye, on this one. Read returns what has arrived and then ends the connection as
// Disconnect(code, why) does. A peer that goes on sending keeps it alive; the caller sets an end to that with Disconnect.
func (c *Conn) Finish(code byte, why Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.finishing {
		return
	}
	c.finishing, c.finishCode, c.finishWhy = true, code, why
	if c.reading {
		// A Read that waits for the peer must look again.
		_ = c.inner.SetReadDeadline(time.Unix(1, 0))
	}
	c.cond.Broadcast()
}

// arrivedWait is how long something that has arrived may take to come up through the layers above a socket.
const arrivedWait = 20 * time.Millisecond

// readArrived reads without waiting, into p or, where that is nil, into a buffer of the input. Its error is errNothingArrived when
// there is nothing to read.
func (c *Conn) readArrived(p []byte) ([]byte, error) {
	if p == nil {
		p = c.lend()
	}
	if c.in.raw == nil {
		if err := c.inner.SetReadDeadline(time.Now().Add(arrivedWait)); err != nil {
			return nil, err
		}
		n, err := c.inner.Read(p)
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			err = errNothingArrived
		}
		return p[:n], err
	}
	if err := c.inner.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	n, result := 0, error(nil)
	err := c.in.raw.Read(func(fd uintptr) bool {
		n, result = readFD(fd, p)
		return true
	})
	switch {
	case err != nil:
		return nil, err
	case errors.Is(result, syscall.EAGAIN):
		return nil, errNothingArrived
	}
	return p[:n], result
}
