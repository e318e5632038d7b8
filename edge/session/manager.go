package session

import (
	"container/list"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"tidegate/message"
)

// Options are the bounds of a Manager.
type Options struct {
	// QueueBytes bounds what waits for one session and what it was sent and has not acknowledged, together; at most half of
	// it is in flight. The oldest of what waits is dropped at the bound. 0 means 64 MiB.
	QueueBytes int64
	// LiveBytes bounds the QoS 0 part of it, for a client that is connected and slow; what comes is dropped at the bound.
	// 0 means 4 MiB.
	LiveBytes int64
	// RetainedLimit is how many topics may have a retained message. 0 means none.
	RetainedLimit int
	// RetainedBytes bounds the memory that retained messages take. 0 means 64 MiB.
	RetainedBytes int64
	// MaxSessions bounds the sessions. A new one above it ends the one that has been without a connection for longest; where
	// all have one, there is one more. 0 means no bound.
	MaxSessions int
	// Store makes the queues; nil means Memory.
	Store Store
	// Drop counts messages that are not delivered, with one of DropReasons. It must not block. nil means not counted.
	Drop func(reason string, n int)
	// Evicted is told the client identifier of a session that MaxSessions ended. It must not block and not call the Manager.
	// nil: nobody is told.
	Evicted func(client string)
}

// Why a message is not delivered.
const (
	dropSlow     = "slow"          // QoS 0, and the client takes too little
	dropFull     = "queue_full"    // the oldest made room
	dropExpired  = "expired"       // its expiry interval passed while it waited
	dropTooLarge = "too_large"     // for the client's Maximum Packet Size
	dropEnded    = "ended"         // the session ended
	dropEvicted  = "session_limit" // the session ended because there are too many
	dropRevoked  = "not_allowed"   // the rules changed while it waited
	dropRetained = DropRetained
	dropHandler  = "handler" // the queue of a handler of this process was full
)

// DropRetained counts messages that were delivered but not retained, for RetainedLimit or RetainedBytes.
const DropRetained = "retained_limit"

// DropReasons returns all reasons that Options.Drop is called with.
func DropReasons() []string {
	return []string{dropSlow, dropFull, dropExpired, dropTooLarge, dropEnded, dropEvicted, dropRevoked, dropRetained, dropHandler}
}

// Manager holds all sessions, subscriptions and retained messages. Its methods are safe for concurrent use; it starts no
// goroutine.
type Manager struct {
	o        Options
	tree     tree
	retained retainedStore
	// retaining makes keeping a retained message and giving it out one step for each topic (by its hash), so that what
	// subscribers saw last is what is kept. It is taken before any other lock.
	retaining [16]sync.Mutex
	seed      maphash.Seed
	// batches lends encoding buffers to senders while they have something to send.
	batches sync.Pool

	// mu guards sessions and away. It is taken before a session's own mu, never after.
	mu       sync.Mutex
	sessions map[string]*Session
	away     list.List // of *Session: those without connection, who left first at the front
}

// New returns an empty Manager.
func New(o Options) *Manager {
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.LiveBytes == 0 {
		o.LiveBytes = 4 << 20
	}
	if o.RetainedBytes == 0 {
		o.RetainedBytes = 64 << 20
	}
	if o.Store == nil {
		o.Store = Memory{}
	}
	m := &Manager{o: o, sessions: make(map[string]*Session), seed: maphash.MakeSeed()}
	m.retained.limit, m.retained.maxBytes = o.RetainedLimit, o.RetainedBytes
	return m
}

// holdRetained keeps retained messages from changing until the returned function is called, which may be done more than once.
func (m *Manager) holdRetained() (release func()) {
	for i := range m.retaining {
		m.retaining[i].Lock()
	}
	return sync.OnceFunc(func() {
		for i := range m.retaining {
			m.retaining[i].Unlock()
		}
	})
}

func (m *Manager) drop(reason string, n int) {
	if m.o.Drop != nil && n > 0 {
		m.o.Drop(reason, n)
	}
}

// end forgets s and its subscriptions. What it had from shared subscriptions goes to other members; what is lost is
// counted for that reason. The caller holds mu.
func (m *Manager) end(s *Session, reason string) {
	m.present(s)
	if m.sessions[s.id] == s {
		delete(m.sessions, s.id)
		m.o.Store.Remove(s.id)
	}
	s.mu.Lock()
	s.ended = true
	for f := range s.filters {
		m.tree.remove(s, f)
	}
	var left []Entry
	for i := range s.flight.ring.len() {
		if o := s.flight.ring.at(i); o.state == sent {
			left = append(left, o.entry)
		}
	}
	for s.queue.Len() > 0 {
		left = append(left, s.queue.Pop())
	}
	s.flight = flight{}
	s.filters, s.inbound = nil, nil
	s.wake.Broadcast()
	s.mu.Unlock()
	lost := 0
	for _, e := range left {
		if e.QoS > 0 && (e.share == nil || !e.share.deliver(e)) {
			lost++
		}
	}
	m.drop(reason, lost)
}

// Sweep ends the sessions whose expiry has passed and forgets expired retained messages. It returns the client
// identifiers of the sessions ended.
func (m *Manager) Sweep(now time.Time) (ended []string) {
	m.retained.sweep(now)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.sessions {
		if s.over(now) {
			m.end(s, dropEnded)
			ended = append(ended, id)
		}
	}
	return ended
}

// Connected reports whether the client's session has a connection.
func (m *Manager) Connected(client string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[client]
	return s != nil && s.live.Load()
}

// Len returns how many sessions there are.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// Publish gives msg to everybody whose subscription selects its topic and keeps it when it is to be retained. origin is
// the client identifier of the publisher, for No Local; empty for others. It returns how many took it; busy reports that
// a handler of this process could not. msg is not changed and must not be afterwards.
func (m *Manager) Publish(msg *message.Message, origin string) (matched int, busy bool) {
	if msg.Retain {
		mu := &m.retaining[maphash.String(m.seed, msg.Topic)%uint64(len(m.retaining))]
		mu.Lock()
		defer mu.Unlock()
		if !m.retained.set(msg) {
			m.drop(dropRetained, 1)
		}
	}
	var room [16]match
	found := m.tree.match(msg.Topic, room[:0])
	for i := range found {
		f := &found[i]
		var got outcome
		switch {
		case f.share != nil:
			if f.share.deliver(Entry{Msg: msg, QoS: msg.QoS, Retain: msg.Retain}) {
				got = queued
			}
		case f.target == nil: // merged into an earlier one
			continue
		default:
			got = deliverTo(found[i:], msg, origin)
		}
		switch got {
		case queued:
			matched++
		case dropped:
			_, handler := f.target.(*local)
			busy = busy || handler
		}
	}
	return matched, busy
}

// deliverTo delivers msg once for all of the first match's target's subscriptions among found: with the highest QoS
// [MQTT-3.3.5-1] and every subscription identifier [MQTT-3.3.4-4].
func deliverTo(found []match, msg *message.Message, origin string) outcome {
	t := found[0].target
	own := origin != "" && t.client() == origin
	e := Entry{Msg: msg}
	any := false
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
	if !any {
		return refused
	}
	slices.Sort(e.IDs) // its own copy unless there is only one
	return t.deliver(e)
}

// Retained returns the retained messages that filter selects.
func (m *Manager) Retained(filter string) []message.Message {
	var out []message.Message
	m.retained.match(filter, time.Now(), func(r *message.Message) { out = append(out, *r) })
	return out
}

// Subscribers returns the client identifiers whose subscriptions select topic, shared ones not among them.
func (m *Manager) Subscribers(topic string) []string {
	var out []string
	for _, f := range m.tree.match(topic, nil) {
		if f.target != nil {
			out = append(out, f.target.client())
		}
	}
	return out
}
