package session

import (
	"time"

	"tidegate/buffer"
)

const (
	// stockBytes is about how much is read back for one session at a time, stockLen how many messages at most.
	stockBytes = 64 << 10
	stockLen   = 256
	// stockPause is how long to wait before the disk is read again that could not be read.
	stockPause = 500 * time.Millisecond
)

// restock reads back what is to be sent next to conn and is not at hand. Only the sender calls it.
func (s *Session) restock(conn Conn) {
	if s.j == nil {
		return
	}
	wanted := s.wanted(conn)
	if len(wanted) == 0 {
		return
	}
	got := make(map[buffer.Seq]fetched, len(wanted))
	err := s.m.store.fetch(s.j.number, wanted, func(seq buffer.Seq, f fetched) { got[seq] = f })
	s.mu.Lock()
	if s.link.conn == conn {
		if s.stock == nil {
			s.stock = make(map[buffer.Seq]fetched, len(got))
		}
		for seq, f := range got {
			s.stock[seq] = f
		}
	}
	s.mu.Unlock()
	if err != nil {
		s.m.o.Logger.Warn("stored messages of a session cannot be read; trying again", "client", s.id, "err", err)
		time.Sleep(stockPause)
	}
}

// wanted returns the sequences of the messages that are to be sent next and that have to be read; nil when what comes next is
// at hand.
func (s *Session) wanted(conn Conn) (seqs []buffer.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.conn != conn || s.silent() || !s.ready() || s.stocked() {
		return nil
	}
	s.stock = nil // what is left in it was dropped meanwhile
	size := int64(0)
	add := func(seq buffer.Seq, n int64) bool {
		seqs = append(seqs, seq)
		size += n
		return size < stockBytes && len(seqs) < stockLen
	}
	for i := s.flight.resend; i < s.flight.ring.len(); i++ {
		if o := s.flight.ring.at(i); o.state == sent && o.entry.seq != 0 && o.entry.Msg == nil && !add(o.entry.seq, o.size) {
			return seqs
		}
	}
	if q, ok := s.queue.(*storedQueue); ok {
		q.each(func(t token) bool {
			if t.flags&tokenHeld != 0 || t.seq == 0 {
				return t.flags&tokenHeld == 0 // what is held comes first, and more is read then
			}
			return add(t.seq, t.size)
		})
	}
	return seqs
}

// stocked reports whether what comes next is at hand. mu is held; ready has said that there is something.
func (s *Session) stocked() bool {
	var e *Entry
	if s.flight.resend < s.flight.ring.len() {
		o := s.flight.ring.at(s.flight.resend)
		if o.state != sent {
			return true
		}
		e = &o.entry
	} else if e = s.queue.Peek(); e == nil {
		return true
	}
	if e.Msg != nil || e.seq == 0 {
		return true
	}
	_, ok := s.stock[e.seq]
	return ok
}

// load gives e its message from the stock. It returns false where the store has it no more. mu is held.
func (s *Session) load(e *Entry) bool {
	if e.Msg != nil {
		return true
	}
	f := s.stock[e.seq]
	delete(s.stock, e.seq)
	if f.msg == nil {
		if s.done(e) {
			s.m.drop(dropDamaged, 1) // nobody has counted it
		}
		return false
	}
	e.Msg, e.IDs = f.msg, f.ids
	return true
}

// secured sees to it that what was encoded with QoS 2 is known on the disk before it is sent: its packet identifiers, and
// which are released. It waits for that.
func (s *Session) secured() error {
	if s.j == nil {
		return nil
	}
	for {
		s.mu.Lock()
		if !s.j.exactly || s.ended {
			s.mu.Unlock()
			return nil
		}
		err := s.writeProgress()
		t := s.m.store.ticket(s.j.pos)
		s.mu.Unlock()
		if err == nil {
			return wait(t)
		}
		if !s.m.store.await(err) {
			return err
		}
	}
}
