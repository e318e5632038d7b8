package gate

import "sync"

// The broker library reads each connection through a buffer of its own, which is small, as most connections are silent most of the time and
// each has one. Where bytes stream in, small reads would cost a system call for every other message; so a read that came back full, and
// ended in the middle of a packet, is followed by one into a large buffer, which is lent for as long as there is something in it.

// aheadBytes is the size of such a buffer.
const aheadBytes = 16 << 10

var aheadPool = sync.Pool{New: func() any { return new([aheadBytes]byte) }}

// ahead is what was read beyond what the caller had room for. It belongs to the goroutine that reads.
type ahead struct {
	buf  *[aheadBytes]byte // nil: nothing
	rest []byte            // in buf
	full bool              // the last read filled its buffer: more is likely there
}

// takeAhead fills p with what was read ahead and returns how much that was.
func (c *Conn) takeAhead(p []byte) int {
	a := &c.ahead
	n := copy(p, a.rest)
	if a.rest = a.rest[n:]; a.buf != nil && len(a.rest) == 0 {
		aheadPool.Put(a.buf)
		a.buf, a.rest = nil, nil
	}
	return n
}

// readInner reads from the peer, more than fits into p where more is likely there.
func (c *Conn) readInner(p []byte) (int, error) {
	a := &c.ahead
	if !a.full || c.scan.between() || len(p) >= aheadBytes {
		n, err := c.inner.Read(p)
		a.full = n == len(p)
		return n, err
	}
	a.full = false
	buf, ok := aheadPool.Get().(*[aheadBytes]byte)
	if !ok {
		buf = new([aheadBytes]byte)
	}
	n, err := c.inner.Read(buf[:])
	a.full = n == len(buf)
	a.buf, a.rest = buf, buf[:n]
	if n > 0 {
		err = nil // the next Read finds it again, behind these bytes
	}
	return c.takeAhead(p), err
}
