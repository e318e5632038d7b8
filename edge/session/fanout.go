package session

import (
	"errors"
	"slices"

	"tidegate/buffer"
	"tidegate/message"
)

// pick is a delivery of what is not stored: e for to.
type pick struct {
	to target
	e  Entry
}

// taking is a delivery of what is stored, to a session that is kept.
type taking struct {
	s      *Session
	ids    []uint32
	share  *share // it came through; nil: the session's own subscription
	qos    message.QoS
	retain bool
}

// entry is the delivery of msg, without the store.
func (t *taking) entry(msg *message.Message) Entry {
	return Entry{Msg: msg, IDs: t.ids, QoS: t.qos, Retain: t.retain, share: t.share, shared: t.share != nil}
}

// riding is what one message needs on its way through the store, used again by another.
type riding struct {
	found  []match
	picks  []pick
	takers []taking
	header []byte // of the record of takers; nil: to be made
	lent   bool   // takers are those of a plan, which is not to be changed
	bytes  []byte
	must   []Record
	may    []Record
	// message and retained say which of may they are; -1: none.
	message, retained int
}

// ridingKeep is the largest memory that is kept after a large message.
const ridingKeep = 64 << 10

func (m *Manager) riding() *riding {
	if r, ok := m.ridings.Get().(*riding); ok {
		return r
	}
	return &riding{}
}

func (m *Manager) putRiding(r *riding) {
	clear(r.picks) // messages; the rest only points to sessions, and to its own memory
	if r.lent {
		r.takers, r.lent = nil, false
	}
	r.header = nil
	r.found, r.picks, r.takers, r.must, r.may = r.found[:0], r.picks[:0], r.takers[:0], r.must[:0], r.may[:0]
	if cap(r.bytes) > ridingKeep {
		r.bytes = nil
	}
	m.ridings.Put(r)
}

// routeStored is Route where there is a store: who gets the message is decided first, then it is taken over together with the
// records that this makes, and then it is given to them.
func (m *Manager) routeStored(p *Publication) (Result, error) {
	rd := m.riding()
	defer m.putRiding(rd)
	m.find(rd, p.Msg, p.Client)
	if p.Whole && !reserve(rd.picks) {
		return Result{}, errNoRoom
	}
	m.board(rd, p)
	var r Result
	var again []Entry
	var err error
	if len(rd.must)+len(rd.may) == 0 {
		again, err = m.handOver(p, rd, &r)
	} else {
		m.order.Lock()
		again, err = m.handOver(p, rd, &r)
		m.order.Unlock()
	}
	if err != nil {
		if p.Whole {
			unreserve(rd.picks)
		}
		return Result{}, err
	}
	for i := range again { // a member of a shared subscription left in this very moment
		if m.reroute(again[i].share, again[i]) {
			r.Matched++
		}
	}
	return r, nil
}

// choose decides who gets msg, before it is known whether it can be taken over.
func (m *Manager) choose(rd *riding, msg *message.Message, origin string) {
	for i := range rd.found {
		f := &rd.found[i]
		switch {
		case f.share != nil:
			f.share.offer(Entry{Msg: msg, QoS: msg.QoS, Retain: msg.Retain}, func(t target, e Entry) bool {
				if t.takes(e) != queued {
					return false
				}
				if s, ok := t.(*Session); ok && s.j != nil && e.QoS > 0 {
					rd.takers = append(rd.takers, taking{s, e.IDs, f.share, e.QoS, e.Retain})
				} else {
					e.polite = false
					rd.picks = append(rd.picks, pick{t, e})
				}
				return true
			})
		case f.target == nil: // merged into an earlier one
		default:
			qos, retain, ids, any := merge(rd.found[i:], msg, origin)
			s, ok := f.target.(*Session)
			switch {
			case !any:
			case ok && s.j != nil && qos > 0:
				if s.may(msg.Topic) {
					rd.takers = append(rd.takers, taking{s, ids, nil, qos, retain})
				}
			default:
				rd.picks = append(rd.picks, pick{f.target, Entry{Msg: msg, QoS: qos, Retain: retain, IDs: ids}})
			}
		}
	}
}

// board makes the records that are to be stored with a message.
func (m *Manager) board(rd *riding, p *Publication) {
	rd.message, rd.retained = -1, -1
	rd.bytes = rd.bytes[:0]
	if s := p.Session; s != nil && s.j != nil {
		rd.must = append(rd.must, Record{Queue: m.store.state, Data: s.receiveRecord(p.ID)})
	}
	if s := p.Will; s != nil && s.keepsWill() {
		rd.must = append(rd.must, Record{Queue: m.store.state, Data: s.willRecord(nil)})
	}
	life := lifetime(p.Msg)
	if len(rd.takers) > 0 {
		b, err := append(rd.bytes, rd.header...), error(nil)
		if rd.header == nil {
			b = appendTakers(b, rd.takers)
		}
		if p.Take == nil { // else who takes the message adds it
			b, err = p.Msg.AppendBinary(b)
		}
		if err == nil {
			rd.bytes = b
			rd.message = len(rd.may)
			rd.may = append(rd.may, Record{Queue: m.store.messages, Data: b, Lifetime: life})
		}
	}
	if !p.Msg.Retain || !kept(p.Msg) {
		return
	}
	keep := p.Msg
	if !m.retained.fits(p.Msg) {
		keep = gone(p.Msg)
	}
	if m.owes(p.Msg.Topic) || len(keep.Payload) > 0 || m.retained.has(p.Msg.Topic) {
		at := len(rd.bytes)
		if b, err := appendRetained(rd.bytes, keep); err == nil {
			rd.bytes = b
			rd.retained = len(rd.may)
			rd.may = append(rd.may, Record{Queue: m.store.retained, Data: b[at:], Lifetime: life})
		}
	}
}

// handOver lets the message be taken over, keeps it where it is to be retained, and gives it to those who were chosen. The
// order is held where there are riders. It returns the entries of shared subscriptions that need another member.
func (m *Manager) handOver(p *Publication, rd *riding, r *Result) (again []Entry, err error) {
	if r.Ticket, err = m.takeOver(p, rd); err != nil {
		return nil, err
	}
	if p.Msg.Retain {
		var seq buffer.Seq
		if rd.retained >= 0 {
			seq = rd.may[rd.retained].Seq
		} else if pos := m.store.pos.Load(); kept(p.Msg) && pos > r.Ticket.Pos() {
			r.Ticket = m.store.ticket(pos) // that the topic has nothing may be on its way to the disk still
		}
		m.retain(p.Msg, seq, m.store.pos.Load())
	}
	var seq buffer.Seq
	if rd.message >= 0 {
		seq = rd.may[rd.message].Seq
	}
	return m.give(p.Msg, r, rd, seq), nil
}

// takeOver calls Take, or appends the riders where there is none. The order is held where there are riders.
func (m *Manager) takeOver(p *Publication, rd *riding) (t message.Ticket, err error) {
	switch {
	case p.Take != nil:
		if t, err = p.Take(p.Msg, Riders{Must: rd.must, May: rd.may, Message: rd.message == 0}); err != nil {
			return t, err
		}
		m.store.appended(t.Pos())
	case len(rd.must)+len(rd.may) > 0:
		all := append(slices.Clone(rd.must), rd.may...)
		t, _, err = m.store.append(all...)
		switch {
		case err == nil:
			copy(rd.must, all)
			copy(rd.may, all[len(rd.must):])
		case p.Whole, errors.Is(err, buffer.ErrBusy): // the latter passes
			return t, err
		} // else it is given to whom it can be given, and counted as not stored
	}
	if s := p.Session; s != nil {
		s.received(p.ID, t)
		s.rode(rd.must, t)
	}
	if s := p.Will; s != nil && len(rd.must) > 0 {
		s.willGone(rd.must)
	}
	return t, nil
}

// give delivers to those who were chosen. seq is that of the stored message, 0 when it was not stored.
func (m *Manager) give(msg *message.Message, r *Result, rd *riding, seq buffer.Seq) (again []Entry) {
	for i := range rd.picks {
		x := &rd.picks[i]
		got := x.to.deliver(x.e)
		r.count(x.to, got)
		if got == refused && x.e.share != nil && x.e.QoS > 0 {
			again = append(again, x.e)
		}
	}
	if len(rd.takers) == 0 {
		return again
	}
	if seq != 0 {
		m.store.last.Store(uint64(seq))
		m.store.refs.add(seq, len(rd.takers))
	}
	r.Unstored = seq == 0
	size := sizeOf(msg)
	if seq != 0 && m.take(rd.takers, rd.lent, seq, size) {
		r.Matched += len(rd.takers)
		return again
	}
	for i := range rd.takers {
		x := &rd.takers[i]
		var got outcome
		if seq != 0 {
			got = x.s.deliverStored(x, msg, seq, size)
		} else {
			got = x.s.deliver(x.entry(msg))
		}
		r.count(x.s, got)
		if got == refused && x.share != nil {
			again = append(again, x.entry(msg))
		}
	}
	return again
}

// deliverStored queues what is in the store as seq. A session that has ended meanwhile is done with it.
func (s *Session) deliverStored(x *taking, msg *message.Message, seq buffer.Seq, size int64) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		s.m.store.release(seq)
		return refused
	}
	s.makeRoom(size)
	s.j.last = seq
	if q, ok := s.queue.(*storedQueue); ok && !q.hold {
		q.add(x.qos, x.retain, x.share != nil, seq, size)
		return queued // nobody is there to be woken
	}
	e := x.entry(msg)
	e.seq, e.size = seq, size
	s.queue.Append(e)
	s.wake.Signal()
	return queued
}

// reroute gives e to another member of its shared subscription and reports whether one took it. No lock is held.
func (m *Manager) reroute(sh *share, e Entry) bool {
	if sh == nil || e.Msg == nil {
		return false
	}
	e = Entry{Msg: e.Msg, QoS: e.Msg.QoS, Retain: e.Retain}
	if m.store == nil {
		return sh.deliver(e)
	}
	p := Publication{Msg: unretained(e.Msg)}
	for tries := 0; tries < 4; {
		rd := m.riding()
		rd.found = append(rd.found, match{share: sh})
		m.choose(rd, e.Msg, "")
		nobody := len(rd.picks)+len(rd.takers) == 0
		m.board(rd, &p)
		var r Result
		m.order.Lock()
		_, err := m.handOver(&p, rd, &r)
		m.order.Unlock()
		m.putRiding(rd)
		switch {
		case nobody || r.Matched > 0:
			return r.Matched > 0
		case err == nil || !m.store.await(err):
			tries++
		}
	}
	return false
}

// unretained is m as one that is not to be kept again.
func unretained(m *message.Message) *message.Message {
	if !m.Retain {
		return m
	}
	c := *m
	c.Retain = false
	return &c
}
