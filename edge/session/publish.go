package session

import (
	"hash/maphash"
	"slices"

	"tidegate/buffer"
	"tidegate/message"
)

// Publication is a message on its way to everybody whose subscription selects its topic, with what belongs to it.
type Publication struct {
	// Msg is not changed and must not be afterwards.
	Msg *message.Message
	// Client is the client identifier of the publisher, for No Local; empty for others.
	Client string
	// Take takes the message over for others than subscribers, with records of this package in the same step. Its error ends
	// the publication before anybody got anything. nil: there are only subscribers.
	Take func(*message.Message, Riders) (message.Ticket, error)
	// Session received the message with QoS 2 and the packet identifier ID, which is noted with it; nil: no such thing.
	Session *Session
	ID      uint16
	// Will is the session whose kept will this is; it is kept no more then. nil: no such thing.
	Will *Session
}

// Result says what became of a Publication.
type Result struct {
	// Matched is how many took it.
	Matched int
	// Busy says that a handler of this process could not.
	Busy bool
	// Unstored says that a session that is kept may lose it in a restart: the store could not take it.
	Unstored bool
	// Ticket tells when everything that Take and the store took is on disk.
	Ticket message.Ticket
}

// Publish gives msg to everybody whose subscription selects its topic and keeps it when it is to be retained. origin is
// the client identifier of the publisher, for No Local; empty for others. It returns how many took it; busy reports that
// a handler of this process could not. msg is not changed and must not be afterwards.
func (m *Manager) Publish(msg *message.Message, origin string) (matched int, busy bool) {
	r, _ := m.Route(Publication{Msg: msg, Client: origin}) // without Take there is no error
	return r.Matched, r.Busy
}

// Route takes p over: first Take, then everybody whose subscription selects the topic; the message is kept when it is to be
// retained. For sessions that are kept over a restart it is stored, once, in the same step as what Take stores. It does not
// wait for the disk.
func (m *Manager) Route(p Publication) (Result, error) {
	if p.Msg.Retain {
		mu := &m.retaining[maphash.String(m.seed, p.Msg.Topic)%uint64(len(m.retaining))]
		mu.Lock()
		defer mu.Unlock()
	}
	var room [16]match
	found := m.tree.match(p.Msg.Topic, room[:0])
	if m.store == nil {
		return m.route(&p, found)
	}
	return m.routeStored(&p, found)
}

// route is Route where nothing is stored.
func (m *Manager) route(p *Publication, found []match) (Result, error) {
	var r Result
	var err error
	if p.Take != nil {
		if r.Ticket, err = p.Take(p.Msg, Riders{}); err != nil {
			return Result{}, err
		}
	}
	if p.Session != nil {
		p.Session.received(p.ID, r.Ticket)
	}
	if p.Msg.Retain {
		m.retain(p.Msg, 0, 0)
	}
	for i := range found {
		f := &found[i]
		var got outcome
		switch {
		case f.share != nil:
			if f.share.deliver(Entry{Msg: p.Msg, QoS: p.Msg.QoS, Retain: p.Msg.Retain}) {
				got = queued
			}
		case f.target == nil: // merged into an earlier one
			continue
		default:
			if e, any := entryFor(found[i:], p.Msg, p.Client); any {
				got = f.target.deliver(e)
			}
		}
		r.count(f.target, got)
	}
	return r, nil
}

// count notes what became of the message at t.
func (r *Result) count(t target, got outcome) {
	switch got {
	case queued:
		r.Matched++
	case dropped:
		_, handler := t.(*local)
		r.Busy = r.Busy || handler
	case refused:
	}
}

// entryFor merges all subscriptions among found of the first match's target into one entry for msg: with the highest QoS
// [MQTT-3.3.5-1] and every subscription identifier [MQTT-3.3.4-4]. any is false when none of them wants it.
func entryFor(found []match, msg *message.Message, origin string) (e Entry, any bool) {
	t := found[0].target
	own := origin != "" && t.client() == origin
	e = Entry{Msg: msg}
	add := func(sub *Subscription) {
		if sub.NoLocal && own {
			return
		}
		e.QoS = max(e.QoS, min(sub.QoS, msg.QoS))
		e.Retain = e.Retain || msg.Retain && sub.RetainAsPublished
		if e.IDs == nil {
			e.IDs = sub.ids
		} else if sub.ids != nil {
			e.IDs = append(e.IDs[:len(e.IDs):len(e.IDs)], sub.ids...)
		}
		any = true
	}
	add(found[0].sub)
	if t.several() {
		for i := 1; i < len(found); i++ {
			if found[i].target == t {
				add(found[i].sub)
				found[i].target = nil
			}
		}
	}
	slices.Sort(e.IDs) // its own copy unless there is only one
	return e, any
}

// pick is a delivery that was decided on: e for to.
type pick struct {
	to target
	e  Entry
}

// stored reports whether the message of p is to be stored for its taker.
func (p *pick) stored() bool {
	s, ok := p.to.(*Session)
	return ok && s.j != nil && p.e.QoS > 0
}

// choose decides who gets msg, before it is known whether it can be taken over.
func (m *Manager) choose(picks []pick, found []match, msg *message.Message, origin string) []pick {
	for i := range found {
		f := &found[i]
		switch {
		case f.share != nil:
			f.share.offer(Entry{Msg: msg, QoS: msg.QoS, Retain: msg.Retain}, func(t target, e Entry) bool {
				if t.takes(e) != queued {
					return false
				}
				e.polite = false
				picks = append(picks, pick{t, e})
				return true
			})
		case f.target == nil:
		default:
			if e, any := entryFor(found[i:], msg, origin); any {
				picks = append(picks, pick{f.target, e})
			}
		}
	}
	return picks
}

// riding is memory for the riders of one message.
type riding struct {
	picks  []pick
	takers []taker
	bytes  []byte
	must   []Record
	may    []Record
}

// ridingKeep is the largest memory that is kept after a large message.
const ridingKeep = 64 << 10

func (m *Manager) riding() *riding {
	if r, ok := m.riders.Get().(*riding); ok {
		return r
	}
	return &riding{}
}

func (m *Manager) putRiding(r *riding) {
	clear(r.picks)
	clear(r.takers)
	clear(r.must)
	clear(r.may)
	r.picks, r.takers, r.must, r.may = r.picks[:0], r.takers[:0], r.must[:0], r.may[:0]
	if cap(r.bytes) > ridingKeep {
		r.bytes = nil
	}
	m.riders.Put(r)
}

// routeStored is Route where there is a store.
func (m *Manager) routeStored(p *Publication, found []match) (Result, error) {
	rd := m.riding()
	defer m.putRiding(rd)
	rd.picks = m.choose(rd.picks, found, p.Msg, p.Client)
	message, retained := m.board(rd, p)
	var r Result
	var err error
	ordered := len(rd.must)+len(rd.may) > 0
	if ordered {
		m.order.Lock()
	}
	r.Ticket, err = m.takeOver(p, rd)
	if err != nil {
		if ordered {
			m.order.Unlock()
		}
		return Result{}, err
	}
	if p.Msg.Retain {
		var seq buffer.Seq
		if retained >= 0 {
			seq = rd.may[retained].Seq
		}
		m.retain(p.Msg, seq, m.store.pos.Load())
	}
	var seq buffer.Seq
	if message >= 0 {
		seq = rd.may[message].Seq
	}
	again := m.give(&r, rd, seq)
	if ordered {
		m.order.Unlock()
	}
	for i := range again { // a member of a shared subscription left in this very moment
		if m.reroute(again[i].share, again[i]) {
			r.Matched++
		}
	}
	return r, nil
}

// board makes the records that are to be stored with a message, and returns which of rd.may are the message itself and the
// retained message; -1: not among them.
func (m *Manager) board(rd *riding, p *Publication) (message, retained int) {
	message, retained = -1, -1
	rd.bytes = rd.bytes[:0]
	if s := p.Session; s != nil && s.j != nil {
		rd.must = append(rd.must, Record{Queue: m.store.state, Data: s.receiveRecord(p.ID)})
	}
	if s := p.Will; s != nil && s.keepsWill() {
		rd.must = append(rd.must, Record{Queue: m.store.state, Data: s.willRecord(nil)})
	}
	for i := range rd.picks {
		if x := &rd.picks[i]; x.stored() && (x.e.share != nil || x.to.takes(x.e) == queued) {
			rd.takers = append(rd.takers, takerOf(x.to, &x.e))
		}
	}
	life := lifetime(p.Msg)
	if len(rd.takers) > 0 {
		if b, err := appendStored(rd.bytes, rd.takers, p.Msg); err == nil {
			rd.bytes = b
			message = len(rd.may)
			rd.may = append(rd.may, Record{Queue: m.store.messages, Data: b, Lifetime: life})
		}
	}
	if p.Msg.Retain && kept(p.Msg) {
		keep := p.Msg
		if !m.retained.fits(p.Msg) {
			keep = gone(p.Msg)
		}
		if len(keep.Payload) > 0 || m.retained.has(p.Msg.Topic) {
			at := len(rd.bytes)
			if b, err := appendRetained(rd.bytes, keep); err == nil {
				rd.bytes = b
				retained = len(rd.may)
				rd.may = append(rd.may, Record{Queue: m.store.retained, Data: b[at:], Lifetime: life})
			}
		}
	}
	return message, retained
}

func takerOf(t target, e *Entry) taker {
	s, _ := t.(*Session)
	x := taker{number: s.j.number, qos: e.QoS, retain: e.Retain, ids: e.IDs}
	if e.share != nil {
		x.share = e.share.filter
	}
	return x
}

// takeOver calls Take, or appends the riders where there is none. The order is held where there are riders.
func (m *Manager) takeOver(p *Publication, rd *riding) (t message.Ticket, err error) {
	switch {
	case p.Take != nil:
		if t, err = p.Take(p.Msg, Riders{Must: rd.must, May: rd.may}); err != nil {
			return t, err
		}
		m.store.appended(t.Pos())
	case len(rd.must)+len(rd.may) > 0:
		all := append(slices.Clone(rd.must), rd.may...)
		for {
			if t, _, err = m.store.append(all...); err == nil || !m.store.await(err) {
				break
			}
		}
		if err == nil {
			copy(rd.must, all)
			copy(rd.may, all[len(rd.must):])
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

// give delivers to those who were picked. seq is that of the stored message, 0 when it was not stored. It returns the entries
// of shared subscriptions that need another member.
func (m *Manager) give(r *Result, rd *riding, seq buffer.Seq) (again []Entry) {
	if seq != 0 {
		m.store.last.Store(uint64(seq))
		m.store.refs.add(seq, len(rd.takers))
	}
	next := 0
	for i := range rd.picks {
		x := &rd.picks[i]
		taken := x.stored() && next < len(rd.takers) && rd.takers[next].number == x.to.(*Session).j.number
		if taken {
			next++
			x.e.seq = seq
			r.Unstored = r.Unstored || seq == 0
		}
		got := x.to.deliver(x.e)
		r.count(x.to, got)
		if got == queued {
			continue
		}
		if taken && seq != 0 {
			m.store.release(seq)
		}
		if x.e.share != nil && x.e.QoS > 0 {
			again = append(again, x.e)
		}
	}
	return again
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
	for range 4 {
		var p pick
		if !sh.offer(e, func(t target, c Entry) bool {
			c.polite = false
			p = pick{t, c}
			return t.takes(c) == queued
		}) {
			return false
		}
		if !p.stored() {
			if p.to.deliver(p.e) == queued {
				return true
			}
			continue
		}
		if m.storeFor(p.to, &p.e) == queued {
			return true
		}
	}
	return false
}

// storeFor stores e for one session and queues it there.
func (m *Manager) storeFor(t target, e *Entry) outcome {
	b, err := appendStored(nil, []taker{takerOf(t, e)}, e.Msg)
	if err != nil {
		return refused
	}
	recs := []Record{{Queue: m.store.messages, Data: b, Lifetime: lifetime(e.Msg)}}
	m.order.Lock()
	defer m.order.Unlock()
	for {
		if _, _, err = m.store.append(recs...); err == nil || !m.store.await(err) {
			break
		}
	}
	if err == nil {
		e.seq = recs[0].Seq
		m.store.last.Store(uint64(e.seq))
		m.store.refs.add(e.seq, 1)
	}
	got := t.deliver(*e)
	if got != queued && e.seq != 0 {
		m.store.release(e.seq)
	}
	return got
}
