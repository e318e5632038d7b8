// Package session is the delivery side of the local broker: which subscriber gets a message (tree.go, share.go), what
// is kept for topics (retained.go) and for clients (session.go, store.go), and how it is sent, acknowledged and sent again
// (sender.go, flight.go).
//
// A Session belongs to a client identifier and may outlive connections. All it sends goes through one ordered queue, QoS 0
// included, so that one place fixes the order on the wire, the packet identifiers, the in-flight window and the topic
// aliases. The package knows packets only as bytes to write; parsing, authentication and acknowledging of what clients
// publish are done by package edge. Start reading at Manager.
package session

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/message"
)

// Subscription is one topic filter with its options. It is never changed once given to a Session.
type Subscription struct {
	// Filter is a valid topic filter, with its $share prefix for a shared subscription.
	Filter string
	QoS    message.QoS
	// NoLocal: not for what the client itself published [MQTT-3.8.3-3].
	NoLocal bool
	// RetainAsPublished keeps the retain flag of what is sent [MQTT-3.3.1-13].
	RetainAsPublished bool
	// RetainHandling says when retained messages are sent on SUBSCRIBE: 0 always, 1 when the subscription is new, 2 never.
	RetainHandling byte
	// ID is the subscription identifier; 0: none.
	ID uint32

	ids []uint32
}

// Session is what is kept for one client identifier.
type Session struct {
	m    *Manager
	id   string
	user string
	live atomic.Bool  // connected; read without mu
	subs atomic.Int64 // ordinary subscriptions; read without mu

	// place is where it stands in Manager.away, guarded by Manager.mu; nil while it has a connection.
	place *list.Element

	// in is held while a packet of the client is handled, and to give the session another connection: what the old
	// connection had begun is finished before the new one's packets are looked at, and nothing of the old one comes after.
	// It is taken before the Manager's mu and before mu.
	in sync.Mutex

	// mu guards everything below. It is held while packets are encoded and handed to the connection, which never waits
	// for the peer, and never while anybody else's lock is taken but the tree's and the retained store's.
	mu      sync.Mutex
	wake    sync.Cond // the sender waits here for something to send
	filters map[string]*Subscription
	queue   Queue
	now     int64 // bytes of QoS 0 in queue, without what the retained store holds anyway
	flight  flight
	inbound map[uint16]message.Ticket // open QoS 2 receives
	link    link
	revoked revocation
	expiry  time.Duration
	expires time.Time // when a session without connection ends; zero while connected
	ended   bool
}

// link is what a session knows of its present connection.
type link struct {
	conn      Conn // nil: not connected
	version   byte
	maxPacket uint32 // 0: no limit
	aliasMax  uint16
	aliases   map[string]uint16
	allow     func(topic string) bool
}

func newSession(m *Manager, id, user string) *Session {
	s := &Session{m: m, id: id, user: user, queue: m.o.Store.Queue(id), filters: make(map[string]*Subscription)}
	s.wake.L = &s.mu
	s.flight.atMost = m.o.QueueBytes / 2
	return s
}

// Client returns the client identifier.
func (s *Session) Client() string { return s.id }

func (s *Session) client() string { return s.id }
func (s *Session) online() bool   { return s.live.Load() }
func (s *Session) several() bool  { return s.subs.Load() > 1 }

// Enter begins the handling of a packet that came by conn; Leave ends it. It reports whether conn is still the session's
// connection; if it is not, the packet must not be handled and Leave not be called.
func (s *Session) Enter(conn Conn) bool {
	s.in.Lock()
	s.mu.Lock()
	current := s.link.conn == conn
	s.mu.Unlock()
	if !current {
		s.in.Unlock()
	}
	return current
}

// Leave ends the handling of a packet.
func (s *Session) Leave() { s.in.Unlock() }

// deliver queues e. At the bound of QoS 0 for one client e itself is dropped; at the bound of the queue the oldest
// entries are, until e fits.
func (s *Session) deliver(e Entry) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended, !s.link.allow(e.Msg.Topic):
		return refused
	case e.QoS > 0:
		if e.polite && !s.fits(e.Size()) {
			return refused
		}
		s.makeRoom(e.Size())
	case s.link.conn == nil:
		return refused // QoS 0 is not kept for who is away [MQTT-3.1.2-23]
	case s.now+e.Size() > s.m.o.LiveBytes:
		s.m.drop(dropSlow, 1)
		return dropped
	default:
		s.now += e.Size()
	}
	s.queue.Append(e)
	s.wake.Signal()
	return queued
}

// fits reports whether size more bytes fit into the bound, which is for what waits and what is in flight together. At most
// half of it is in flight, so that what waits can make room.
func (s *Session) fits(size int64) bool {
	return s.queue.Bytes()+s.flight.bytes+size <= s.m.o.QueueBytes
}

// makeRoom drops the oldest entries until size more bytes fit or none waits any more.
func (s *Session) makeRoom(size int64) {
	for s.queue.Len() > 0 && !s.fits(size) {
		s.pop()
		s.m.drop(dropFull, 1)
	}
}

// pop takes the oldest entry out of the queue.
func (s *Session) pop() Entry {
	e := s.queue.Pop()
	s.revoked.passed()
	if e.QoS == 0 && !e.Stored {
		s.now -= e.Size()
	}
	return e
}

// Subscribe adds or replaces subscriptions, queues the retained messages they ask for, and writes ack (the SUBACK) to conn.
// A publisher that learnt of the SUBACK therefore reaches them, a retained message never overtakes a newer one, no message
// comes both as a retained one and as a new one, and nothing that the subscriptions bring arrives before the SUBACK. Nil entries of subs were refused.
func (s *Session) Subscribe(conn Conn, subs []*Subscription, ack []byte) {
	// What is published from here on either is retained before the subscriptions are there, or reaches them: never both.
	release := s.m.holdRetained()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer release()
	if s.link.conn != conn || s.ended {
		return // taken over meanwhile
	}
	fresh := make([]bool, len(subs))
	for i, sub := range subs {
		if sub == nil {
			continue
		}
		if sub.ID > 0 {
			sub.ids = []uint32{sub.ID}
		}
		_, had := s.filters[sub.Filter]
		fresh[i] = !had
		s.filters[sub.Filter] = sub
		if group, _ := splitShared(sub.Filter); !had && group == "" {
			s.subs.Add(1)
		}
		s.m.tree.add(s, sub)
	}
	for i, sub := range subs {
		if sub != nil && (sub.RetainHandling == 0 || sub.RetainHandling == 1 && fresh[i]) {
			s.queueRetained(sub)
		}
	}
	release()
	_, _ = conn.Write(ack) // nothing of the queue is sent before it: that takes mu; a broken connection is found by its reader
}

// queueRetained queues what the retained store has for sub; nothing for a shared subscription (MQTT 5, 4.8.2).
func (s *Session) queueRetained(sub *Subscription) {
	if group, _ := splitShared(sub.Filter); group != "" {
		return
	}
	s.m.retained.match(sub.Filter, time.Now(), func(m *message.Message) {
		if s.link.allow(m.Topic) {
			e := Entry{Msg: m, QoS: min(m.QoS, sub.QoS), Retain: true, IDs: sub.ids, Stored: true}
			if !s.fits(e.Size()) {
				s.m.drop(dropFull, 1)
				return
			}
			s.queue.Append(e)
		}
	})
	s.wake.Signal()
}

// Unsubscribe removes a subscription and reports whether there was one.
func (s *Session) Unsubscribe(conn Conn, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.conn != conn {
		return false
	}
	if _, had := s.filters[filter]; !had {
		return false
	}
	s.forget(filter)
	return true
}

// Filters returns how many subscriptions there are.
func (s *Session) Filters() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.filters)
}

// Receive reports whether the QoS 2 packet identifier id is in use by the client, and the ticket of that message.
func (s *Session) Receive(id uint16) (message.Ticket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.inbound[id]
	return t, known
}

// Received notes that the message with the QoS 2 packet identifier id was taken; a packet with it is a repetition until
// Release [MQTT-4.3.3-10].
func (s *Session) Received(id uint16, t message.Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inbound == nil {
		s.inbound = make(map[uint16]message.Ticket)
	}
	s.inbound[id] = t
}

// Forget undoes Received for a message that did not reach the disk, so that a packet with its identifier is a new one.
func (s *Session) Forget(id uint16, t message.Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inbound[id] == t {
		delete(s.inbound, id)
	}
}

// Open returns how many QoS 2 receives are open.
func (s *Session) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.inbound)
}

// Release ends the use of a QoS 2 packet identifier and reports whether it was in use.
func (s *Session) Release(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.inbound[id]
	delete(s.inbound, id)
	return known
}
