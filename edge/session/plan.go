package session

import (
	"hash/maphash"
	"slices"
	"sync/atomic"

	"tidegate/message"
)

// Devices publish to the same topics again and again, and who gets a message hangs on nothing but its topic, its QoS and its retain flag as
// long as no subscription, rule or session changes. So that is remembered for topics that come often.

// plans remembers for each topic, in the place that its hash says, who gets its messages.
type plans struct {
	places [1024]struct {
		plan atomic.Pointer[plan]
		seen atomic.Uint64 // the hash of the topic that came last and is not in plan
	}
	// last is the one that was made last: topics with the same takers share the list of them, by which a crowd is known.
	last atomic.Pointer[plan]
}

// plan is who gets messages of a topic. Nothing in it changes.
type plan struct {
	version uint64 // of the tree
	topic   string
	qos     message.QoS
	retain  bool
	picks   []pick // without the message
	takers  []taking
	header  []byte // of the record
}

// planSize is how many there are in a plan at most: with more of them finding out anew costs little in comparison.
const planSize = 64

// find decides who gets msg.
func (m *Manager) find(rd *riding, msg *message.Message, origin string) {
	version := m.tree.version.Load() // before looking
	hash := maphash.String(m.seed, msg.Topic)
	place := &m.plans.places[hash%uint64(len(m.plans.places))]
	if p := place.plan.Load(); p != nil && p.version == version && p.topic == msg.Topic && p.qos == msg.QoS && p.retain == msg.Retain {
		rd.takers, rd.header, rd.lent = p.takers, p.header, true
		for _, x := range p.picks {
			x.e.Msg = msg
			rd.picks = append(rd.picks, x)
		}
		return
	}
	rd.found = m.tree.match(msg.Topic, rd.found)
	fixed := len(rd.found) <= planSize && !slices.ContainsFunc(rd.found, func(f match) bool { return f.share != nil || f.sub.NoLocal })
	m.choose(rd, msg, origin)
	if !fixed || place.seen.Swap(hash) != hash {
		return
	}
	p := &plan{version: version, topic: msg.Topic, qos: msg.QoS, retain: msg.Retain, picks: slices.Clone(rd.picks)}
	if last := m.plans.last.Load(); last != nil && slices.EqualFunc(last.takers, rd.takers, equal) {
		p.takers, p.header = last.takers, last.header
	} else {
		p.takers, p.header = slices.Clone(rd.takers), appendTakers(nil, rd.takers)
	}
	for i := range p.picks {
		p.picks[i].e.Msg = nil
	}
	place.plan.Store(p)
	m.plans.last.Store(p)
}

// equal reports whether two deliveries are the same, but for what is not to be shared.
func equal(a, b taking) bool { return alike(a, b) && slices.Equal(a.ids, b.ids) }

// sweep forgets plans of earlier versions, which may name sessions that have ended.
func (p *plans) sweep(version uint64) {
	forget := func(at *atomic.Pointer[plan]) {
		if old := at.Load(); old != nil && old.version != version {
			at.CompareAndSwap(old, nil)
		}
	}
	for i := range p.places {
		forget(&p.places[i].plan)
	}
	forget(&p.last)
}

// RulesChanged says that what Connect.Allow answers may have changed.
func (m *Manager) RulesChanged() { m.tree.version.Add(1) }
