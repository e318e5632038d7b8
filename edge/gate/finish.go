package gate

import (
	"errors"
	"io"
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

// readArrived reads without waiting. Its error is errNothingArrived when there is nothing to read.
func readArrived(c net.Conn, p []byte) (int, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		if err := c.SetReadDeadline(time.Now().Add(arrivedWait)); err != nil {
			return 0, err
		}
		n, err := c.Read(p)
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			err = errNothingArrived
		}
		return n, err
	}
	if err := t.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0, err
	}
	n, result := 0, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, result = syscall.Read(int(fd), p)
			if !errors.Is(result, syscall.EINTR) {
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case errors.Is(result, syscall.EAGAIN):
		return 0, errNothingArrived
	case result != nil:
		return 0, result
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
