package gate

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Packets are read here. Most connections are silent most of the time, so a buffer is only lent to one that has something to read,
// and a packet that arrives slowly takes no more memory than twice what has arrived of it.

const (
	// readBytes is the size of the buffers that are lent.
	readBytes = 16 << 10
	// directBytes: what is missing of a packet is read straight into its body where it is so much.
	directBytes = 4 << 10
	// bodyBytes is what a packet's body gets at first where it has not arrived whole.
	bodyBytes = 32 << 10
	// connectBytes is the same before the CONNECT was read, and how much is read at once then.
	connectBytes = 128
)

var buffers = sync.Pool{New: func() any { return new([readBytes]byte) }}

// input is what was read from the peer and has not been looked at. It belongs to the goroutine that reads.
type input struct {
	rest []byte           // in buf or small
	buf  *[readBytes]byte // lent; nil: none

	raw syscall.RawConn // of a TCP connection, which can be waited for without a buffer; nil: another one
	try func(fd uintptr) bool
	n   int   // what try has read,
	err error // and its error

	small []byte // of other connections: they are waited for with it
	more  bool   // it came back full

	begins bool // the next bytes begin a packet: the client shows that it is alive with them
}

// ReadPacket reads the peer's next packet: the first byte of its fixed header, and what follows the remaining length, in memory
// of its own. It waits and fails as Read does; a connection that ends within a packet gives io.ErrUnexpectedEOF. most bounds the
// body, beside Options.MaxPacket; 0: nothing else does. After an error nothing more can be read. It must not be mixed with calls of
// Read.
func (c *Conn) ReadPacket(most int) (first byte, body []byte, err error) {
	c.in.begins = true
	if first, err = c.readByte(); err != nil {
		return 0, nil, err
	}
	n, err := c.readLength()
	if err == nil && most > 0 && n > most {
		return 0, nil, ErrPacketTooLarge
	}
	if err == nil {
		body, err = c.readBody(n)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return first, body, err
}

// readLength reads a remaining length. That it has four bytes at most was looked at by the scanner.
func (c *Conn) readLength() (n int, err error) {
	for shift := 0; ; shift += 7 {
		b, err := c.readByte()
		if err != nil {
			return 0, err
		}
		if n |= int(b&0x7f) << shift; b&0x80 == 0 {
			return n, nil
		}
	}
}

func (c *Conn) readByte() (byte, error) {
	if len(c.in.rest) == 0 {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	b := c.in.rest[0]
	c.used(1)
	return b, nil
}

// readBody reads n bytes, of which the scanner knows that they are not too many.
func (c *Conn) readBody(n int) ([]byte, error) {
	if !c.connected.Load() {
		return c.readConnect(n)
	}
	return c.fillBody(make([]byte, 0, min(n, max(bodyBytes, len(c.in.rest)))), n)
}

// readConnect is readBody for the CONNECT, before which nobody knows who sends it.
func (c *Conn) readConnect(n int) ([]byte, error) {
	body, err := c.fillBody(make([]byte, 0, min(n, smallConnect, max(connectBytes, len(c.in.rest)))), min(n, smallConnect))
	if err != nil || n <= smallConnect {
		return body, err
	}
	if l := c.listener; l != nil {
		if !l.limits.reserveEarly(n) {
			c.kill(ReasonTooMany, errEarly)
			return nil, errEarly
		}
		defer l.limits.early.Add(int64(-n))
	}
	return c.fillBody(append(make([]byte, 0, n), body...), n)
}

// errEarly is why a large CONNECT is not read on.
var errEarly = errors.New("too much is set aside for connect packets that are not whole")

// fillBody reads on until body has n bytes.
func (c *Conn) fillBody(body []byte, n int) ([]byte, error) {
	for len(body) < n {
		if len(body) == cap(body) {
			body = append(make([]byte, 0, min(n, 2*cap(body))), body...)
		}
		missing := n - len(body)
		if len(c.in.rest) == 0 && missing >= directBytes {
			m, err := c.Read(body[len(body):cap(body)])
			if err != nil {
				return nil, err
			}
			body = body[:len(body)+m]
			continue
		}
		if len(c.in.rest) == 0 {
			if err := c.fill(); err != nil {
				return nil, err
			}
		}
		m := min(missing, len(c.in.rest), cap(body)-len(body))
		body = append(body, c.in.rest[:m]...)
		c.used(m)
	}
	return body, nil
}

// used takes the first n bytes off the input.
func (c *Conn) used(n int) {
	if c.in.rest = c.in.rest[n:]; len(c.in.rest) == 0 {
		c.giveBack()
	}
}

// fill waits for at least one more byte.
func (c *Conn) fill() error {
	for {
		got, err := c.read(nil)
		if len(got) > 0 {
			c.in.rest = got // an error comes again with the next call
			return nil
		}
		if c.giveBack(); err != nil {
			return err
		}
	}
}

func (c *Conn) giveBack() {
	c.in.rest = nil
	if c.in.buf != nil {
		buffers.Put(c.in.buf)
		c.in.buf = nil
	}
}

// lend returns a buffer.
func (c *Conn) lend() []byte {
	if c.in.buf == nil {
		buf, ok := buffers.Get().(*[readBytes]byte)
		if !ok {
			buf = new([readBytes]byte)
		}
		c.in.buf = buf
	}
	return c.in.buf[:]
}

// receive waits for bytes of the peer and returns those that came, in p or, where that is nil, in a buffer that is lent when
// something has come.
func (c *Conn) receive(p []byte) ([]byte, error) {
	in := &c.in
	switch {
	case p != nil:
		n, err := c.inner.Read(p)
		return p[:n], err
	case in.raw != nil:
		in.n, in.err = 0, nil
		if err := in.raw.Read(in.try); err != nil {
			c.giveBack()
			return nil, err
		}
		return c.lend()[:in.n], in.err
	case in.more && c.connected.Load() && !c.scan.between():
		p = c.lend()
		n, err := c.inner.Read(p)
		in.more = n == len(p)
		return p[:n], err
	}
	if in.small == nil {
		in.small = make([]byte, connectBytes)
	}
	n, err := c.inner.Read(in.small)
	in.more = n == len(in.small)
	return in.small[:n], err
}

// tryRead reads what has arrived on a TCP connection; false: nothing has.
func (c *Conn) tryRead(fd uintptr) bool {
	n, err := readFD(fd, c.lend())
	if errors.Is(err, syscall.EAGAIN) {
		c.giveBack()
		return false
	}
	c.in.n, c.in.err = n, err
	return true
}

// readFD reads from a socket without waiting; syscall.EAGAIN: nothing has arrived.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, syscall.EAGAIN
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// waitWithoutBuffer prepares receive for a TCP connection.
func (c *Conn) waitWithoutBuffer() {
	t, ok := c.inner.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := t.SyscallConn(); err == nil {
		c.in.raw, c.in.try = raw, c.tryRead
	}
}

// SetKeepAlive bounds how long the peer may be silent: d after the last packet was handled, the next one has to have arrived.
// It stands still while ReadPacket waits for the disk. 0 means no bound. It is for the goroutine that reads.
func (c *Conn) SetKeepAlive(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepAlive = d
	c.deadline, c.stale = time.Time{}, true
}
