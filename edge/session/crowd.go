package session

import (
	"encoding/binary"
	"slices"
	"sync"

	"tidegate/buffer"
)

// A crowd is the sessions that take one message after the other together while all of them are away, as it is with those that want everything
// of a plant. What they take is noted once, in memory that they share; each looks it up when somebody looks at its queue. So ten of them
// cost a publisher as much as one.
//
// It ends when one of them does something else: it comes back, ends, or takes a message that the others do not. The Manager's order is held
// where messages are added and a crowd is made; mu, below all other locks, lets a session leave without that.
type crowd struct {
	takers []taking // with the same QoS and retain flag each

	mu     sync.Mutex
	closed bool
	// tokens are as in storedQueue; the first has its sequence whole. The memory is never moved, as queues have parts of it.
	tokens []byte
	n      int
	bytes  int64
	last   buffer.Seq
	// room is what every one of them may take still.
	room int64
}

const (
	crowdBytes = 16 << 10
	// crowdRow is how many messages have to have the same takers, one after the other, before they are taken for a crowd, and crowdRoom
	// how many more each has to have room for.
	crowdRow  = 8
	crowdRoom = 64
)

// seat is how far a queue has come with the crowd of its session.
type seat struct {
	crowd *crowd
	at, n int
	bytes int64
}

// add notes a message for all. It reports false where the crowd has ended.
func (c *crowd) add(seq buffer.Seq, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tokens) > crowdBytes-3*binary.MaxVarintLen64 || c.room < size {
		c.closed = true
	}
	if c.closed {
		return false
	}
	t := &c.takers[0]
	flags := flagsOf(t.qos, t.retain, false) | tokenSeq
	if c.n == 0 {
		flags |= tokenWhole
	}
	c.tokens = appendToken(c.tokens, token{flags, size, seq}, c.last)
	c.n++
	c.bytes += size
	c.room -= size
	c.last = seq
	return true
}

// end lets nothing be added any more.
func (c *crowd) end() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
}

// same reports whether takers are this crowd.
func (c *crowd) same(takers []taking) bool {
	return &c.takers[0] == &takers[0] && len(c.takers) == len(takers) || slices.EqualFunc(c.takers, takers, alike)
}

func alike(a, b taking) bool {
	return a.s == b.s && a.qos == b.qos && a.retain == b.retain && a.share == nil && b.share == nil
}

// crowds makes crowds of those who take the same messages one after the other. The Manager's order guards it.
type crowds struct {
	now  *crowd   // nil: none
	last []taking // who took the message before, where that was no crowd
	row  int      // how many in a row had these takers; negative: how many are to come before the next try
}

// take notes a stored message for a crowd. It reports false where the takers are none. lent says that the list of them never changes.
func (m *Manager) take(takers []taking, lent bool, seq buffer.Seq, size int64) bool {
	x := &m.crowds
	if x.now != nil && x.now.same(takers) && x.now.add(seq, size) {
		return true
	}
	if x.now != nil && x.now.same(takers) { // it was full, or one has left
		x.now, x.last, x.row = nil, append(x.last[:0], takers...), crowdRow-1
	}
	if len(takers) < 2 || len(takers) > planSize {
		return false
	}
	if !slices.EqualFunc(x.last, takers, alike) {
		x.last, x.row = append(x.last[:0], takers...), 0
		return false
	}
	if x.row++; x.row < crowdRow {
		return false
	}
	if !lent {
		takers = slices.Clone(takers)
	}
	if x.now = newCrowd(takers, size); x.now == nil {
		x.row = -crowdRow * crowdRow
		return false
	}
	return x.now.add(seq, size)
}

// newCrowd makes one of takers, if all are away and have room for messages of that size; else it returns nil.
func newCrowd(takers []taking, size int64) *crowd {
	c := &crowd{takers: takers, tokens: make([]byte, 0, crowdBytes), room: 1 << 62}
	for i := range takers {
		if t := &takers[i]; t.qos != takers[0].qos || t.retain != takers[0].retain || t.share != nil || !t.s.join(c, size) {
			c.end()
			return nil
		}
	}
	return c
}

// join makes s one of the crowd, if it may.
func (s *Session) join(c *crowd, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, ok := s.queue.(*storedQueue)
	if !ok || s.ended || q.hold || s.link.conn != nil {
		return false
	}
	room := s.m.o.QueueBytes - s.queue.Bytes() - s.flight.bytes
	if room < crowdRoom*size {
		return false
	}
	q.leave()
	q.seat = seat{crowd: c}
	c.room = min(c.room, room) // nobody else knows it yet
	return true
}

// catchUp takes over what came for the crowd.
func (q *storedQueue) catchUp() {
	c := q.seat.crowd
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	part := c.tokens[q.seat.at:len(c.tokens):len(c.tokens)]
	if len(part) == 0 {
		return
	}
	if len(part) <= smallChunk {
		part = slices.Clone(part) // it may be written to
	}
	if q.n == 0 {
		q.chunks, q.at, q.width = nil, 0, 0
	}
	q.chunks = append(q.chunks, part)
	q.n += c.n - q.seat.n
	q.bare += c.n - q.seat.n
	q.bytes += c.bytes - q.seat.bytes
	q.last = c.last
	q.seat = seat{c, len(c.tokens), c.n, c.bytes}
}

// leave ends the crowd, as one of it goes its own way.
func (q *storedQueue) leave() {
	if c := q.seat.crowd; c != nil {
		c.end()
		q.catchUp()
		q.seat = seat{}
	}
}
