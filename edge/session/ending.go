package session

import (
	"slices"

	"tidegate/buffer"
)

// ending is a session that has ended, with what is to be done about it without locks.
type ending struct {
	number uint64 // 0: the store does not know it
	recs   []buffer.Seq
	reason string
	// left is what was not delivered and may go to other members of shared subscriptions, or is only counted; done are stored
	// messages that the session needed otherwise.
	left []Entry
	done []buffer.Seq
}

// end forgets s and its subscriptions. finish, which has to be called without locks, gives what it had from shared
// subscriptions to other members and counts what is lost for that reason. The caller holds mu.
func (m *Manager) end(s *Session, reason string) {
	m.present(s)
	if m.sessions[s.id] == s {
		delete(m.sessions, s.id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	for f := range s.filters {
		m.tree.remove(s, f)
	}
	e := ending{reason: reason}
	for i := range s.flight.ring.len() {
		if o := s.flight.ring.at(i); o.state == sent {
			x := o.entry
			if x.QoS == 2 { // the client may have it, so that nobody else may get it any more [MQTT-4.8.2-5]
				x.share, x.shared = nil, false
			}
			e.left = append(e.left, x)
		}
	}
	if q, ok := s.queue.(*storedQueue); ok {
		q.leave()
		q.strip()
	}
	for s.queue.Len() > 0 {
		e.left = append(e.left, s.queue.Pop())
	}
	if s.j != nil {
		e.number, e.recs = s.j.number, slices.Clip(s.j.recs)
	}
	s.addLevels(-s.levels)
	s.m.memory.Add(-s.counted)
	s.counted = 0
	s.flight = flight{}
	s.filters, s.inbound, s.stock = nil, nil, nil
	s.wake.Broadcast()
	m.endings = append(m.endings, e)
}

// finish does what is left to do about sessions that have ended. No lock is held.
func (m *Manager) finish() {
	m.giveBack()
	m.mu.Lock()
	all := m.endings
	m.endings = nil
	m.mu.Unlock()
	if len(all) > 1 {
		all = joined(all)
	}
	for i := range all {
		if e := &all[i]; !m.finishOne(e) {
			m.mu.Lock()
			m.endings = append(m.endings, *e) // the next sweep tries again
			m.mu.Unlock()
		}
	}
}

// joined makes one of the endings of each session: its records go in one step.
func joined(all []ending) []ending {
	place := make(map[uint64]int)
	out := all[:0]
	for _, e := range all {
		if i, there := place[e.number]; there && e.number != 0 {
			out[i].recs = append(out[i].recs, e.recs...)
			out[i].left, out[i].done = append(out[i].left, e.left...), append(out[i].done, e.done...)
			continue
		}
		place[e.number] = len(out)
		out = append(out, e)
	}
	return out
}

// finishOne does so for one. It returns false when the store could not note it.
func (m *Manager) finishOne(e *ending) bool {
	m.passOn(e)
	if e.number == 0 {
		return true
	}
	if len(e.recs) > 0 { // else the store knows nothing of it
		end := []Record{{Queue: m.store.state, Data: appendHead(nil, kindEnd, e.number)}}
		_, pos, err := m.store.append(end...)
		if err != nil {
			return false
		}
		m.store.later(endedSession{m, e.number}, m.store.state, pos, append(e.recs, end[0].Seq)...)
	}
	for _, seq := range e.done {
		m.store.release(seq)
	}
	return true
}

// endedSession is one of which there may be records still.
type endedSession struct {
	m      *Manager
	number uint64
}

// regain takes records back: that the session has ended has to be noted again.
func (e endedSession) regain(seqs []buffer.Seq) {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	e.m.endings = append(e.m.endings, ending{number: e.number, recs: seqs})
}

// passOn gives what was left to other members of shared subscriptions and counts the rest.
func (m *Manager) passOn(e *ending) {
	lost := 0
	var read []buffer.Seq
	for i := range e.left {
		x := &e.left[i]
		switch {
		case x.QoS == 0:
		case x.seq == 0:
			if !m.reroute(x.share, *x) {
				lost++
			}
		case !m.store.refs.known(x.seq):
			continue // counted when the store lost it
		case x.shared:
			read = append(read, x.seq)
		default:
			lost++
		}
		if x.seq != 0 {
			e.done = append(e.done, x.seq)
		}
	}
	e.left = nil
	slices.Sort(read)
	for part := range slices.Chunk(read, stockLen) {
		got := make([]Entry, 0, len(part))
		filters := make([]string, 0, len(part))
		err := m.store.fetch(e.number, part, func(_ buffer.Seq, f fetched) {
			if f.msg != nil {
				got = append(got, Entry{Msg: f.msg, QoS: f.msg.QoS, Retain: f.msg.Retain})
				filters = append(filters, f.share)
			}
		})
		taken := 0
		for i := range got {
			if err == nil && m.reroute(m.tree.share(filters[i]), got[i]) {
				taken++
			}
		}
		lost += len(part) - taken
	}
	m.drop(e.reason, lost)
}
