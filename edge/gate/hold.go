package gate

import (
	"errors"
	"net"
	"os"
	"time"
)

// Buffers above these sizes are given back when they run empty, so that an idle connection costs little.
const (
	keepBytes = 512
	keepMarks = 32
)

// One call to the socket writes at most so much. What a commit releases is far less, so it leaves in one call. A connection
// with TLS or another layer cannot go on after a timeout in the middle of a call, so there a call is one record and the time
// limit applies to each.
const (
	plainChunk = 256 << 10
	layerChunk = 16 << 10
)

// Hold makes acknowledgements written from now on wait until t is durable, and all held before them have left. Tickets
// of one connection come in rising order and the newest counts; a ticket that is durable already (or nil) changes
// nothing. Call it before the acknowledgement is written, on the goroutine that will cause it.
func (c *Conn) Hold(t Ticket) {
	// A durable ticket must not replace one that is not: an acknowledgement caused by the older one may still be on its
	// way to Write, in the broker's own buffer.
	if t == nil || t.Durable() {
		return
	}
	c.mu.Lock()
	c.ticket = t
	c.ticketNo++
	c.mu.Unlock()
}

// Write takes p over and returns at once; it never waits for the peer or for the disk. p should be whole packets. It
// fails with net.ErrClosed after the end or a DISCONNECT, and with ErrQueueFull at the hard bound.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	if c.closing || c.ended {
		c.mu.Unlock()
		return 0, net.ErrClosed
	}
	waiting := int(c.queued.Load()) + len(c.held)
	if waiting > 0 && waiting+len(p) > c.opts.HardQueued {
		c.mu.Unlock()
		c.kill(ReasonQueue, ErrQueueFull)
		return 0, ErrQueueFull
	}
	c.sortLocked(p)
	c.startWriterLocked()
	next := c.awaitLocked()
	c.mu.Unlock()
	if next != nil {
		next.Done(c.onCommit)
	}
	return len(p), nil
}

// sortLocked puts each packet of p where it belongs, as the package comment says.
func (c *Conn) sortLocked(p []byte) {
	for len(p) > 0 {
		typ, n, ok := splitFrame(p)
		if !ok || c.opaque {
			c.opaque = true
			c.holdLocked(p)
			return
		}
		frame := p[:n]
		p = p[n:]
		switch {
		case typ == typeDisconnect:
			c.farewellLocked(frame)
			return
		case waitsForDisk(typ):
			if typ == typeConnack && accepts(frame) {
				c.welcomed = true
			}
			c.holdLocked(frame)
		default:
			c.outLocked(frame)
		}
	}
}

// holdLocked queues p behind everything held, or lets it out when nothing is held and nothing has to be waited for.
func (c *Conn) holdLocked(p []byte) {
	if c.ticket != nil && c.ticket.Durable() {
		c.ticket = nil
	}
	last := len(c.marks) - 1
	switch {
	case last < 0 && c.ticket == nil:
		c.outLocked(p)
		return
	case last >= 0 && (c.ticket == nil || c.marks[last].no == c.ticketNo):
		c.marks[last].n += int32(len(p))
	default:
		c.marks = append(c.marks, mark{c.ticket, int32(len(p)), c.ticketNo})
	}
	c.held = append(c.held, p...)
}

func (c *Conn) outLocked(p []byte) {
	c.out = append(c.out, p...)
	c.queued.Add(int64(len(p)))
}

// farewellLocked takes a DISCONNECT. Only MQTT 5 knows one from the server, so for an older client it only ends what is
// written.
func (c *Conn) farewellLocked(frame []byte) {
	c.ended = true
	switch {
	case c.level.Load() < 5:
	case len(c.marks) == 0:
		c.outLocked(frame)
	default:
		c.farewell = append([]byte(nil), frame...)
	}
}

// awaitLocked returns the ticket whose Done must now be called with onCommit, without the lock; nil when none must. One
// callback for the oldest ticket is enough: when it comes, everything durable by then leaves together.
func (c *Conn) awaitLocked() Ticket {
	if c.awaiting || c.dead || len(c.marks) == 0 {
		return nil
	}
	c.awaiting = true
	if c.onCommit == nil {
		c.onCommit = c.committed
	}
	return c.marks[0].t
}

// committed is the Done callback of the oldest ticket. It runs on the committer's goroutine and only moves bytes.
func (c *Conn) committed(err error) {
	c.mu.Lock()
	c.awaiting = false
	switch {
	case c.dead:
	case err != nil:
		c.dropHeldLocked()
		c.shutLocked(ReasonDisk, err)
	default:
		c.releaseLocked()
	}
	c.startWriterLocked()
	next := c.awaitLocked()
	c.cond.Broadcast()
	c.mu.Unlock()
	if next != nil {
		next.Done(c.onCommit)
	}
}

// releaseLocked lets out the bytes of the oldest ticket, which is durable, and of all after it that are.
func (c *Conn) releaseLocked() {
	if len(c.marks) == 0 {
		return
	}
	k, n := 1, int(c.marks[0].n)
	for k < len(c.marks) && c.marks[k].t.Durable() {
		n += int(c.marks[k].n)
		k++
	}
	c.outLocked(c.held[:n])
	clear(c.marks[:k]) // the tickets can go
	c.held, c.marks = c.held[n:], c.marks[k:]
	if len(c.marks) == 0 {
		c.emptyHeldLocked()
	}
}

// dropHeldLocked forgets what waits for the disk: the device will send those messages again.
func (c *Conn) dropHeldLocked() {
	c.held, c.marks = nil, nil
	c.emptyHeldLocked()
}

// emptyHeldLocked follows when nothing is held any more: memory goes back and a DISCONNECT may leave.
func (c *Conn) emptyHeldLocked() {
	c.held, c.marks = c.held[:0], c.marks[:0]
	if cap(c.held) > keepBytes {
		c.held = nil
	}
	if cap(c.marks) > keepMarks {
		c.marks = nil
	}
	if c.farewell != nil {
		c.outLocked(c.farewell)
		c.farewell = nil
	}
}

// startWriterLocked starts the writer where there is something to write and none runs. It ends when out is empty or the
// socket is closed.
func (c *Conn) startWriterLocked() {
	if c.writing || c.dead || len(c.out) == 0 {
		return
	}
	c.writing = true
	c.refs++
	go c.writeLoop()
}

func (c *Conn) writeLoop() {
	c.mu.Lock()
	for len(c.out) > 0 && !c.dead {
		buf := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		err := c.writeAll(buf)
		if err != nil {
			c.kill(writeReason(err), err)
		}
		c.mu.Lock()
		if cap(buf) <= plainChunk {
			c.spare = buf
		}
	}
	c.writing = false
	c.spare = nil
	if cap(c.out) > keepBytes {
		c.out = nil
	}
	c.cond.Broadcast()
	c.mu.Unlock()
	c.unref()
}

// writeAll gives buf to the socket. Every call has the whole WriteTimeout, so a slow peer is cut off only when it takes
// nothing at all for that long (over TLS and WebSocket: not one record).
func (c *Conn) writeAll(buf []byte) error {
	layered := lowest(c.inner) != c.inner
	chunk := plainChunk
	if layered {
		chunk = layerChunk
		// TLS writes of its own on the reading side (key updates) must not run into a deadline that passed long ago.
		defer func() { _ = c.inner.SetWriteDeadline(time.Time{}) }()
	}
	for len(buf) > 0 {
		if err := c.inner.SetWriteDeadline(time.Now().Add(c.opts.WriteTimeout)); err != nil {
			return err
		}
		n, err := c.inner.Write(buf[:min(len(buf), chunk)])
		buf = buf[n:]
		c.bytesOut.Add(uint64(n))
		c.taken(n)
		if err != nil && (n == 0 || layered || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return err
		}
	}
	return nil
}

// taken counts n bytes as gone and tells those who waited for that.
func (c *Conn) taken(n int) {
	left := c.queued.Add(-int64(n))
	c.mu.Lock()
	var due []func()
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if left <= w.n {
			due = append(due, w.f)
		} else {
			kept = append(kept, w)
		}
	}
	c.waiters = kept
	c.mu.Unlock()
	for _, f := range due {
		f()
	}
}

func writeReason(err error) Reason {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ReasonWriteTimeout
	}
	return ReasonWriteError
}
