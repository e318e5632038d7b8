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
	// blocks are of tokens as in storedQueue; the first has its sequence whole. They never move, as queues have parts of them, and grow
	// with what is in them.
	blocks [][]byte
	n      int
	total  int // bytes of tokens
	bytes  int64
	last   buffer.Seq
	// room is what every one of them may take still.
	room int64
}

const (
	crowdBytes = 16 << 10
	// firstBlock is the size of its first block of memory, lastBlock of the largest.
	firstBlock = 64
	lastBlock  = 4 << 10
	// crowdRow is how many messages have to have the same takers, one after the other, before they are taken for a crowd, and crowdRoom
	// how many more each has to have room for.
	crowdRow  = 8
	crowdRoom = 64
)

// seat is how far a queue has come with the crowd of its session.
type seat struct {
	crowd     *crowd
	block, at int
	n         int
	bytes     int64
}

// add notes a message for all. It reports false where the crowd has ended, and whether that is because it is full.
func (c *crowd) add(seq buffer.Seq, size int64) (added, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, false
	}
	if c.total > crowdBytes || c.room < size {
		c.closed = true
		return false, true
	}
	t := &c.takers[0]
	flags := flagsOf(t.qos, t.retain, false) | tokenSeq
	if c.n == 0 {
		flags |= tokenWhole
	}
	i := len(c.blocks) - 1
	if i < 0 || cap(c.blocks[i])-len(c.blocks[i]) < 3*binary.MaxVarintLen64 {
		c.blocks = append(c.blocks, make([]byte, 0, min(max(c.total, firstBlock), lastBlock)))
		i++
	}
	before := len(c.blocks[i])
	c.blocks[i] = appendToken(c.blocks[i], token{flags, size, seq}, c.last)
	c.total += len(c.blocks[i]) - before
	c.n++
	c.bytes += size
	c.room -= size
	c.last = seq
	return true, false
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
	if x.now != nil && x.now.same(takers) {
		added, full := x.now.add(seq, size)
		if added {
			return true
		}
		x.now, x.last, x.row = nil, append(x.last[:0], takers...), 0
		if full {
			x.row = crowdRow - 1
		}
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
	added, _ := x.now.add(seq, size)
	return added
}

// newCrowd makes one of takers, if all are away and have room for messages of that size; else it returns nil.
func newCrowd(takers []taking, size int64) *crowd {
	c := &crowd{takers: takers, room: 1 << 62}
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
	if c.n == q.seat.n {
		return
	}
	if q.n == 0 {
		q.chunks, q.at, q.width = nil, 0, 0
	}
	for i := q.seat.block; i < len(c.blocks); i++ {
		b := c.blocks[i]
		part := b[q.seat.at:len(b):len(b)]
		if q.seat.at = 0; len(part) <= max(smallChunk, cap(b)/2) {
			part = slices.Clone(part) // it may be written to, or is too little to keep the block for
		}
		if len(part) > 0 {
			q.chunks = append(q.chunks, part)
		}
	}
	q.n += c.n - q.seat.n
	q.bare += c.n - q.seat.n
	q.bytes += c.bytes - q.seat.bytes
	q.last = c.last
	q.seat = seat{c, len(c.blocks) - 1, len(c.blocks[len(c.blocks)-1]), c.n, c.bytes}
}

// leave ends the crowd, as one of it goes its own way.
func (q *storedQueue) leave() {
	if c := q.seat.crowd; c != nil {
		c.end()
		q.catchUp()
		q.seat = seat{}
	}
}
