package session

import (
	"hash/maphash"
	"slices"

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
	// Whole says that everybody gets the message or nobody does. Where a handler of this process has no room, or the store cannot
	// take the message, Route gives it to nobody and returns an error. It is for messages without Take.
	Whole bool
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
	for {
		r, err := m.Route(Publication{Msg: msg, Client: origin})
		if err == nil || !m.store.await(err) {
			return r.Matched, r.Busy
		}
	}
}

// Route takes p over: first Take, then everybody whose subscription selects the topic; the message is kept when it is to be
// retained. For sessions that are kept over a restart it is stored, once, in the same step as what Take stores. It does not
// wait for the disk. Without Take an error says that too much waits for it just then.
func (m *Manager) Route(p Publication) (Result, error) {
	if p.Msg.Retain {
		mu := &m.retaining[maphash.String(m.seed, p.Msg.Topic)%uint64(len(m.retaining))]
		mu.Lock()
		defer mu.Unlock()
	}
	if m.store != nil {
		return m.routeStored(&p)
	}
	if p.Whole && p.Take == nil {
		return m.routeWhole(&p)
	}
	var room [16]match
	return m.route(&p, m.tree.match(p.Msg.Topic, room[:0]))
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

// routeWhole is route for a message that everybody gets or nobody does.
func (m *Manager) routeWhole(p *Publication) (r Result, err error) {
	rd := m.riding()
	defer m.putRiding(rd)
	rd.found = m.tree.match(p.Msg.Topic, rd.found)
	m.choose(rd, p.Msg, p.Client)
	if !reserve(rd.picks) {
		return Result{}, errNoRoom
	}
	if p.Msg.Retain {
		m.retain(p.Msg, 0, 0)
	}
	for _, e := range m.give(p.Msg, &r, rd, 0) {
		if m.reroute(e.share, e) {
			r.Matched++
		}
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
	e.Msg = msg
	e.QoS, e.Retain, e.IDs, any = merge(found, msg, origin)
	return e, any
}

func merge(found []match, msg *message.Message, origin string) (qos message.QoS, retain bool, ids []uint32, any bool) {
	t := found[0].target
	own := origin != "" && t.client() == origin
	add := func(sub *Subscription) {
		if sub.NoLocal && own {
			return
		}
		qos = max(qos, min(sub.QoS, msg.QoS))
		retain = retain || msg.Retain && sub.RetainAsPublished
		if ids == nil {
			ids = sub.ids
		} else if sub.ids != nil {
			ids = append(ids[:len(ids):len(ids)], sub.ids...)
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
		slices.Sort(ids) // its own copy unless there is only one
	}
	return qos, retain, ids, any
}
