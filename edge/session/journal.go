package session

import (
	"encoding/binary"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// journal is what a session that is kept over a restart knows of its records in the store. Session.mu guards it, apart from
// number, which never changes.
type journal struct {
	number uint64
	// recs are its records: the newest snapshot and what follows. Those before it are acknowledged, but for some that a snapshot was to
	// replace which the disk failed to take.
	recs []buffer.Seq
	// whole and changed are the bytes of the newest snapshot and of the changes behind it.
	whole, changed int
	// pos is the position of the newest record.
	pos buffer.Pos
	// last is the newest message that was stored for the session.
	last buffer.Seq
	// moved says that messages were sent or acknowledged since that was written; stale that the disk is behind in more than
	// that, so that only a snapshot helps.
	moved, stale bool
	// exactly says that what was encoded last has QoS 2 in it.
	exactly bool
	// will is kept for the present connection, or pending.
	will *Will
	// due is when a pending will is due.
	due time.Time
	// left is when the connection ended.
	left time.Time
	// answers wait for the disk, in order.
	answers []answer
	// silent counts the SUBACKs among them: nothing is sent before they are.
	silent int
}

// minChanges is how many bytes of changes there may be, however small the snapshot.
const minChanges = 4 << 10

// write appends a record of s. mu is held.
func (s *Session) write(rec []byte) error {
	recs := []Record{{Queue: s.m.store.state, Data: rec}}
	_, pos, err := s.m.store.append(recs...)
	if err != nil {
		return err
	}
	s.wrote(recs[0], pos)
	return nil
}

func (s *Session) wrote(r Record, pos buffer.Pos) {
	s.j.recs = append(s.j.recs, r.Seq)
	s.j.changed += len(r.Data)
	s.j.pos = pos
}

// change writes a change of s that must be on disk before it shows, made by add, and then applies it, with mu held for both. It
// waits while too much waits for the disk. It reports whether conn is the session's connection still; where the store fails
// that connection is ended. Sessions that are not kept only apply.
func (s *Session) change(conn Conn, add func(b []byte) []byte, apply func()) bool {
	for {
		ok, err := s.tryChange(conn, add, apply)
		if err == nil || !s.awaitRoom(conn, err) {
			return ok
		}
	}
}

// tryChange makes one attempt at change.
func (s *Session) tryChange(conn Conn, add func(b []byte) []byte, apply func()) (ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.conn != conn || s.ended {
		return false, nil
	}
	if s.j != nil {
		if err := s.write(add(s.changes())); err != nil {
			return false, err
		}
	}
	apply()
	return true, nil
}

// awaitRoom waits where err passes with a commit. Otherwise it ends the connection and returns false.
func (s *Session) awaitRoom(conn Conn, err error) bool {
	if s.m.store.await(err) {
		return true
	}
	conn.Fail(err)
	return false
}

// changes begins a record of changes.
func (s *Session) changes() []byte { return appendHead(make([]byte, 0, 64), kindChanges, s.j.number) }

// receiveRecord is the record that a QoS 2 message with that identifier was received.
func (s *Session) receiveRecord(id uint16) []byte {
	return binary.AppendUvarint(append(s.changes(), changeReceive), uint64(id))
}

// willRecord is the record that w is the session's will.
func (s *Session) willRecord(w *Will) []byte { return appendWill(append(s.changes(), changeWill), w) }

// rode notes records of s that were appended with a message.
func (s *Session) rode(recs []Record, t message.Ticket) {
	if s.j == nil || len(recs) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		if r.Seq != 0 {
			s.wrote(r, t.Pos())
		}
	}
}

// keepsWill says whether the store keeps a will of s.
func (s *Session) keepsWill() bool {
	if s.j == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ended && s.j.will != nil
}

// willGone notes that the will was published, with the records that say so.
func (s *Session) willGone(recs []Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.j.will = nil
	for _, r := range recs {
		if r.Seq != 0 {
			s.wrote(r, s.m.store.pos.Load())
		} else {
			s.j.stale = true
		}
	}
}

// snapshot is all of s. mu is held.
func (s *Session) snapshot() []byte {
	st := state{
		number: s.j.number, client: s.id, user: s.user, expiry: s.expiry, attached: s.link.conn != nil, progress: s.progress(),
	}
	if !st.attached {
		st.away = time.Since(s.j.left)
	}
	if w := s.j.will; w != nil {
		c := *w
		if c.Pending {
			c.Due = max(time.Until(s.j.due), 0)
		}
		st.will = &c
	}
	for _, sub := range s.filters {
		st.subs = append(st.subs, sub)
	}
	for id := range s.inbound {
		st.receives = append(st.receives, id)
	}
	return appendSnapshot(nil, &st)
}

// progress says how far s has come with its stored messages. mu is held.
func (s *Session) progress() progress {
	p := progress{head: s.j.last + 1, next: s.flight.next}
	if q, ok := s.queue.(*storedQueue); ok {
		if seq := q.next(); seq != 0 {
			p.head = seq
		} else {
			p.head = max(p.head, q.last+1) // what came for a crowd does not change last
		}
	}
	for i := range s.flight.ring.len() {
		o := s.flight.ring.at(i)
		f := flown{id: s.flight.id(i), qos: o.entry.QoS}
		switch {
		case o.state == released:
			f.released = true
		case o.state == sent && o.entry.seq != 0:
			f.seq, f.retain, f.shared = o.entry.seq, o.entry.Retain, o.entry.shared
		default:
			continue
		}
		p.flight = append(p.flight, f)
	}
	return p
}

// rewrite appends a snapshot; the records before it are needed no more when that is on disk. The Manager's order and mu are held.
func (s *Session) rewrite() error {
	rec := s.snapshot()
	before := s.j.recs
	s.j.recs = nil
	if err := s.write(rec); err != nil {
		s.j.recs = before
		return err
	}
	s.j.whole, s.j.changed, s.j.moved, s.j.stale = len(rec), 0, false, false
	s.m.store.later(s, s.m.store.state, s.j.pos, before...)
	return nil
}

// regain takes records back that a snapshot was to replace which is not on disk: the next one has to.
func (s *Session) regain(seqs []buffer.Seq) {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.j.recs = append(s.j.recs, seqs...)
		s.j.stale = true
	}
	s.mu.Unlock()
	if ended {
		ended := endedSession{s.m, s.j.number}
		ended.regain(seqs)
	}
}

// flush writes what of s need not be on disk at once. The Manager's order is held.
func (s *Session) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.j == nil || s.ended:
	case s.j.stale || s.j.changed > max(s.j.whole, minChanges):
		return s.rewrite()
	case s.j.moved:
		return s.writeProgress()
	}
	return nil
}

// writeProgress appends how far s has come. mu is held.
func (s *Session) writeProgress() error {
	p := s.progress()
	if err := s.write(appendProgress(append(s.changes(), changeProgress), &p)); err != nil {
		return err
	}
	s.j.moved = false
	return nil
}

// Flush writes to the store what need not be there at once. An error passes; the next call tries again.
func (m *Manager) Flush() {
	if m.store == nil {
		return
	}
	m.finish()
	states, retained := m.store.takeGone()
	m.flushRetained(retained)
	m.mu.Lock()
	all := make([]*Session, 0, len(m.sessions))
	for _, s := range m.sessions {
		if s.j != nil {
			all = append(all, s)
		}
	}
	m.mu.Unlock()
	for _, s := range all {
		s.stain(states)
		m.order.Lock()
		err := s.flush()
		m.order.Unlock()
		if err != nil {
			return
		}
	}
	m.store.Settle()
}

// giveBack gives records back to their owners that stay because of a failure of the disk. When it returns all of them have theirs. No lock of
// a session and not mu is held.
func (m *Manager) giveBack() {
	if m.store == nil {
		return
	}
	m.returning.Lock()
	defer m.returning.Unlock()
	m.store.Settle()
	for _, r := range m.store.takeFailed() {
		r.of.regain(r.seqs)
	}
}

// stain marks s as stale where one of its records is gone from the disk.
func (s *Session) stain(gone map[buffer.Seq]bool) {
	if len(gone) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.j.recs {
		s.j.stale = s.j.stale || gone[r]
	}
}

// Ticket tells when everything that was written of the session so far is on disk.
func (s *Session) Ticket() message.Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.j == nil {
		return message.Ticket{}
	}
	return s.m.store.ticket(s.j.pos)
}

// Left notes that the client is gone, and what becomes of its will: kept is pending with its Due, or nil where there is none
// or it was published. The session may be one that has ended.
func (s *Session) Left(kept *Will) {
	if s.j == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.link.conn != nil {
		return // it has ended, or another connection has come and written its own state
	}
	s.j.will = kept
	if kept != nil {
		s.j.due = time.Now().Add(kept.Due)
	}
	b := appendDuration(append(s.changes(), changeDetach), s.expiry)
	b = appendWill(append(b, changeWill), kept)
	p := s.progress()
	if s.write(appendProgress(append(b, changeProgress), &p)) != nil {
		s.j.stale = true
		return
	}
	s.j.moved = false
}

// Secure makes sure that the session as it is now is on its way to the disk, and waits until it is there.
func (s *Session) Secure() error {
	if s.j == nil {
		return nil
	}
	for {
		s.m.order.Lock()
		s.mu.Lock()
		var err error
		if s.j.stale && !s.ended {
			err = s.rewrite()
		}
		t := s.m.store.ticket(s.j.pos)
		s.mu.Unlock()
		s.m.order.Unlock()
		if err == nil {
			return wait(t)
		}
		if !s.m.store.await(err) {
			return err
		}
	}
}

// wait waits until t is on disk or has failed.
func wait(t message.Ticket) error {
	if t.Durable() {
		return nil
	}
	done := make(chan error, 1)
	t.Done(func(err error) { done <- err })
	return <-done
}
