package session

import (
	"slices"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// RestoredWill is the will of a client that was not there when the gateway was started.
type RestoredWill struct {
	Client string
	// Session is what keeps it.
	Session *Session
	*Will
}

// Wills returns the wills that were kept, once. Those of clients that were connected when the gateway ended without
// an orderly stop are not pending yet.
func (m *Manager) Wills() []RestoredWill {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.wills
	m.wills = nil
	return out
}

// restored is one session on its way back.
type restored struct {
	*state
	recs           []buffer.Seq
	whole, changed int
	s              *Session
	// flying says which messages are in flight, found that they are there.
	flying map[buffer.Seq]*flown
	found  map[buffer.Seq]int64
}

// restore makes everything that the store has. What it cannot read is left out, counted and logged.
func (m *Manager) restore() {
	st := m.store
	drop := m.drop
	st.drop.Store(&drop)
	begin := time.Now()
	all := m.restoreStates()
	inOrder := make([]*restored, 0, len(all))
	for _, r := range all {
		m.restoreSession(r)
		inOrder = append(inOrder, r)
	}
	n := m.restoreMessages(all)
	slices.SortFunc(inOrder, func(a, b *restored) int { return a.s.j.left.Compare(b.s.j.left) })
	for _, r := range inOrder {
		m.settleSession(r)
	}
	topics := m.restoreRetained()
	m.finish()
	m.Flush()
	if len(all)+topics+n > 0 {
		m.o.Logger.Info("sessions are back", "sessions", len(m.sessions), "messages", n, "retained", topics, "lost_records", st.Lost(),
			"took", time.Since(begin).Round(time.Millisecond))
	}
}

// restoreStates reads what is known of each session.
func (m *Manager) restoreStates() map[uint64]*restored {
	st := m.store
	all := make(map[uint64]*restored)
	var useless []buffer.Seq
	err := st.state.Scan(0, func(r buffer.Rec) bool {
		if !st.restoreState(all, &r) {
			useless = append(useless, r.Seq)
		}
		return true
	})
	if err != nil {
		m.unreadable(stateQueue, err)
	}
	// Of two sessions of one client the older one had ended.
	newest := make(map[string]*restored, len(all))
	for number, r := range all {
		older := newest[r.client]
		if older != nil && older.number > number {
			older = r
		} else {
			newest[r.client] = r
		}
		if older != nil {
			delete(all, older.number)
			useless = append(useless, older.recs...)
		}
	}
	st.state.Ack(useless...)
	return all
}

func (m *Manager) unreadable(queue string, err error) {
	m.store.lost.Add(1)
	m.o.Logger.Error("what is kept of sessions cannot be read; the gateway goes on without it", "queue", queue, "err", err)
}

// restoreState takes in one record. It returns false when the record is of no use.
func (st *Store) restoreState(all map[uint64]*restored, r *buffer.Rec) bool {
	d := decoder{b: r.Data}
	kind, number := d.stateHead()
	if d.err == nil {
		st.used(number)
	}
	age := st.log.Age(r)
	known := all[number]
	switch {
	case d.err != nil:
	case kind == kindSnapshot:
		if s := d.snapshot(number, age); d.err == nil {
			if known != nil {
				// The snapshots before it are needed no more: it is on the disk.
				st.state.Ack(known.recs...)
			}
			all[number] = &restored{state: s, recs: []buffer.Seq{r.Seq}, whole: len(r.Data)}
			return true
		}
	case kind == kindEnd:
		if known != nil {
			st.state.Ack(known.recs...)
		}
		delete(all, number)
		return false
	case kind == kindChanges && known != nil:
		d.changes(known.state, age)
		known.recs = append(known.recs, r.Seq)
		known.changed += len(r.Data)
		if d.err == nil {
			return true
		}
	}
	st.lost.Add(1)
	st.logger.Error("a record of a session cannot be used", "queue", stateQueue, "seq", r.Seq, "session", number, "err", d.err)
	return known != nil && kind == kindChanges
}

// restoreSession makes a session of what was read, without its messages and subscriptions.
func (m *Manager) restoreSession(r *restored) {
	s := &Session{m: m, id: r.client, user: r.user, queue: &storedQueue{}, filters: make(map[string]*Subscription)}
	s.wake.L = &s.mu
	s.flight.atMost = m.o.QueueBytes / 2
	s.j = &journal{number: r.number, recs: r.recs, whole: r.whole, changed: r.changed, last: buffer.Seq(m.store.last.Load()), will: r.will, stale: r.attached}
	s.j.pos = m.store.pos.Load()
	s.expiry = r.expiry
	if m.o.MaxExpiry > 0 {
		s.expiry = min(s.expiry, m.o.MaxExpiry)
	}
	now := time.Now()
	s.j.left = now
	if !r.attached {
		s.j.left = now.Add(-r.away)
	}
	s.expires = s.j.left.Add(s.expiry)
	if r.will != nil && r.will.Pending {
		s.j.due = now.Add(r.will.Due)
	}
	allow := func(string) bool { return true }
	if m.o.Allow != nil {
		allow = m.o.Allow(r.user, r.client)
	}
	s.allow.Store(&allow)
	for _, id := range r.receives {
		if s.inbound == nil {
			s.inbound = make(map[uint16]message.Ticket)
		}
		s.inbound[id] = message.Ticket{}
	}
	r.s = s
	r.flying = make(map[buffer.Seq]*flown)
	r.found = make(map[buffer.Seq]int64)
	for i := range r.progress.flight {
		if f := &r.progress.flight[i]; !f.released {
			r.flying[f.seq] = f
		}
	}
}

// restoreMessages queues the stored messages in the sessions that wait for them, and returns how many there are.
func (m *Manager) restoreMessages(all map[uint64]*restored) (n int) {
	st := m.store
	var useless []buffer.Seq
	err := st.messages.Scan(0, func(r buffer.Rec) bool {
		takers, msg, err := decodeStored(r.Data)
		if err != nil {
			st.lost.Add(1)
			m.o.Logger.Error("a stored message cannot be used", "queue", messagesQueue, "seq", r.Seq, "err", err)
			useless = append(useless, r.Seq)
			return true
		}
		waiting := 0
		size := sizeOf(&msg)
		for i := range takers {
			t := &takers[i]
			st.used(t.number)
			if x := all[t.number]; x != nil && x.take(t, r.Seq, size) {
				waiting++
			}
		}
		if waiting == 0 {
			useless = append(useless, r.Seq)
			return true
		}
		n++
		st.refs.add(r.Seq, waiting)
		for i := range takers {
			if x := all[takers[i].number]; x != nil {
				x.s.makeRoom(0)
			}
		}
		return true
	})
	if err != nil {
		m.unreadable(messagesQueue, err)
	}
	st.messages.Ack(useless...)
	return n
}

// take queues a stored message that names the session, unless it is done with it.
func (r *restored) take(t *taker, seq buffer.Seq, size int64) bool {
	if r.flying[seq] != nil {
		r.found[seq] = size
		return true
	}
	if seq < r.progress.head {
		return false
	}
	r.s.queue.Append(Entry{QoS: t.qos, Retain: t.retain, shared: t.share != "", seq: seq, size: size})
	return true
}

// settleSession puts the session in its place, or ends it where its time is over.
func (m *Manager) settleSession(r *restored) {
	s := r.s
	r.restoreFlight()
	for _, sub := range r.subs {
		if _, had := s.filters[sub.Filter]; !had {
			s.addLevels(levelsOf(sub.Filter))
		}
		s.filters[sub.Filter] = sub
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[s.id] = s
	if s.expiry <= 0 || s.over(time.Now()) {
		m.end(s, dropEnded)
		return
	}
	if r.attached {
		if q, ok := s.queue.(*storedQueue); ok {
			q.suspect(maxWindow) // what was sent in the last second is not known
		}
	}
	for _, sub := range r.subs {
		if m.o.MaySubscribe != nil && !m.o.MaySubscribe(s.user, s.id, sub.Filter) {
			m.o.Logger.Warn("a subscription is not allowed any more; it brings nothing", "client", s.id, "user", s.user, "filter", sub.Filter)
			sub.denied = true
			continue
		}
		if group, _ := splitShared(sub.Filter); group == "" {
			s.subs.Add(1)
		}
		m.tree.add(s, sub)
	}
	s.place = m.away.PushBack(s)
	if s.j.will != nil {
		m.wills = append(m.wills, RestoredWill{Client: s.id, Session: s, Will: s.j.will})
	}
}

// restoreFlight makes what is in flight, with its packet identifiers. Messages that the store has no more leave holes.
func (r *restored) restoreFlight() {
	f := &r.s.flight
	f.next = r.progress.next
	slices.SortStableFunc(r.progress.flight, func(a, b flown) int { return r.distance(a.id) - r.distance(b.id) })
	pad := func(id uint16) { // with holes, up to where id stands
		for f.ring.len() > 0 && f.ring.len() < f.place(id) {
			f.ring.push(outgoing{})
		}
	}
	for _, x := range r.progress.flight {
		size, found := r.found[x.seq]
		if !found && !x.released {
			continue
		}
		if f.ring.len() == 0 {
			f.first = x.id
		}
		pad(x.id)
		if f.ring.len() > f.place(x.id) {
			continue // the same identifier twice
		}
		o := outgoing{state: released, entry: Entry{QoS: 2}}
		if !x.released {
			o = outgoing{state: sent, size: size, entry: Entry{QoS: x.qos, Retain: x.retain, shared: x.shared, seq: x.seq, size: size}}
			f.bytes += size
		}
		f.ring.push(o)
	}
	if f.next > 0 {
		pad(f.next)
	}
}

// distance says how long ago an identifier was given: identifiers before the next one are the newest.
func (r *restored) distance(id uint16) int {
	next := max(int(r.progress.next), 1)
	return (int(id) - next + 2*lastID) % lastID
}

// restoreRetained reads the retained messages and returns how many there are.
func (m *Manager) restoreRetained() (n int) {
	st := m.store
	var useless []buffer.Seq
	err := st.retained.Scan(0, func(r buffer.Rec) bool {
		msg, err := decodeRetained(r.Data)
		if err != nil {
			st.lost.Add(1)
			m.o.Logger.Error("a retained message cannot be used", "queue", retainedQueue, "seq", r.Seq, "err", err)
			useless = append(useless, r.Seq)
			return true
		}
		msg.Expires = st.expires(&r)
		kept, old := m.retained.set(own(&msg), r.Seq)
		if old != 0 {
			useless = append(useless, old)
		}
		if !kept || len(msg.Payload) == 0 {
			useless = append(useless, r.Seq)
		}
		return true
	})
	if err != nil {
		m.unreadable(retainedQueue, err)
	}
	st.retained.Ack(useless...)
	return m.retained.len()
}
