// Package session is the delivery side of the local broker: which subscriber gets a message (tree.go, share.go), what
// is kept for topics (retained.go) and for clients (session.go, queue.go), and how it is sent, acknowledged and sent again
// (sender.go, flight.go).
//
// Sessions that outlive their connection, and retained messages, are kept over a restart where the Manager has a Store: queues
// in the gateway's log (store.go). A message is stored once, with the sessions that take it (publish.go, record.go), and is read
// back when it is sent (token.go). Who takes the messages of a topic is remembered (plan.go), and what sessions take together that are
// away is noted once for all of them (crowd.go). What changes in a session is written behind a snapshot of it (journal.go, state.go), and
// restore.go makes it all again. What a client is told waits until it is on disk; clean sessions and QoS 0 cost no disk.
//
// # Limits
//
//   - After a crash a QoS 1 message may come again that was acknowledged in the last second; QoS 2 is exactly once both ways.
//   - QoS 0 messages, and those that a SUBSCRIBE asked for and the store could not take, are in memory only.
//   - What the disk has lost is counted (session_drops_total, session_lost_records_total) and logged; a session whose snapshot
//     is lost is gone.
//
// A Session belongs to a client identifier and may outlive connections. All it sends goes through one ordered queue, QoS 0
// included, so that one place fixes the order on the wire, the packet identifiers, the in-flight window and the topic
// aliases. The package knows packets only as bytes to write; parsing, authentication and acknowledging of what clients
// publish are done by package edge. Start reading at Manager.
package session

import (
	"container/list"
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// Session is what is kept for one client identifier.
type Session struct {
	m    *Manager
	id   string
	user string
	j    *journal     // nil: the session is not kept over a restart; set before anybody else sees the session
	live atomic.Bool  // connected; read without mu
	subs atomic.Int64 // ordinary subscriptions; read without mu
	// allow is what Connect.Allow was at the last connection; read without mu.
	allow atomic.Pointer[func(topic string) bool]

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
	levels  int // of all filters together
	queue   Queue
	counted int64 // of what is in memory, in Manager.memory
	now     int64 // bytes of QoS 0 in queue, without what the retained store holds anyway
	flight  flight
	inbound map[uint16]message.Ticket // open QoS 2 receives
	stock   map[buffer.Seq]fetched    // messages that were read back and are to be sent next; nil: none
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
}

// newSession makes a session; kept says that it is to be kept over a restart.
func newSession(m *Manager, id, user string, kept bool) *Session {
	s := &Session{m: m, id: id, user: user, queue: &memoryQueue{}, filters: make(map[string]*Subscription)}
	s.wake.L = &s.mu
	s.flight.atMost = m.o.QueueBytes / 2
	if kept && m.store != nil {
		s.queue = &storedQueue{}
		s.j = &journal{number: m.store.newNumber(), last: buffer.Seq(m.store.last.Load()), stale: true}
	}
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
	case s.ended, !s.may(e.Msg.Topic):
		return refused
	case e.QoS > 0:
		if e.polite && (!s.fits(e.Size()) || s.j == nil && s.greedy(e.Size())) {
			return refused
		}
		if s.j != nil && e.seq == 0 && s.link.conn == nil {
			s.m.drop(dropUnstored, 1)
			return dropped
		}
		if s.makeRoom(e.Size()); !s.displace(e.Size()) {
			s.m.drop(dropFull, 1)
			return dropped
		}
	case s.link.conn == nil:
		return refused // QoS 0 is not kept for who is away [MQTT-3.1.2-23]
	case s.now+e.Size() > s.m.o.LiveBytes || s.greedy(e.Size()):
		s.m.drop(dropSlow, 1)
		return dropped
	default:
		s.now += e.Size()
	}
	s.queue.Append(e)
	s.account()
	s.wake.Signal()
	return queued
}

// may says whether the rules let s have messages of topic.
func (s *Session) may(topic string) bool { return (*s.allow.Load())(topic) }

// takes says what deliver would return for e now.
func (s *Session) takes(e Entry) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended, !s.may(e.Msg.Topic), e.QoS == 0 && s.link.conn == nil, e.QoS > 0 && e.polite && (!s.fits(e.Size()) || s.j == nil && s.greedy(e.Size())):
		return refused
	case e.QoS == 0 && (s.now+e.Size() > s.m.o.LiveBytes || s.greedy(e.Size())):
		s.m.drop(dropSlow, 1)
		return dropped
	}
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
		if e := s.pop(); s.done(&e) {
			s.m.drop(dropFull, 1)
		}
	}
}

// done says that s needs e no more. It reports whether e was there still: what the store has lost was counted then. mu is held.
func (s *Session) done(e *Entry) bool {
	if e.seq == 0 {
		return true
	}
	s.j.moved = true
	return s.m.store.release(e.seq)
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

// Bounds of what subscriptions take, in levels of filters: each is a node of the tree in memory, of 100 to 400 bytes where it is not
// shared. 64 bytes of a filter count as a level too.
const (
	maxLevels = 100_000 // of one session
	allLevels = 500_000 // of all; beyond that a session gets no more than fewLevels
	fewLevels = 500
)

// Room reports whether filter, which s may have already, may be subscribed to. n is how many filters may be in use at most, and
// more what this packet adds before it: filters and levels.
func (s *Session) Room(filter string, n int, more *Added) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filters[filter] != nil {
		return true
	}
	most := maxLevels
	if s.m.levels.Load() > allLevels {
		most = fewLevels
	}
	levels := levelsOf(filter)
	if len(s.filters)+more.filters >= n || s.levels+more.levels+levels > most {
		return false
	}
	more.filters++
	more.levels += levels
	return true
}

// Added is what a packet adds to a session's subscriptions.
type Added struct{ filters, levels int }

func levelsOf(filter string) int { return 1 + strings.Count(filter, "/") + len(filter)/64 }

// addLevels counts n more levels of filters. mu is held, or nobody else sees the session.
func (s *Session) addLevels(n int) {
	s.levels += n
	s.m.levels.Add(int64(n))
}

// Receive reports whether the QoS 2 packet identifier id is in use by the client, and the ticket of that message.
func (s *Session) Receive(id uint16) (message.Ticket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.inbound[id]
	return t, known
}

// received notes that the message with the QoS 2 packet identifier id was taken; a packet with it is a repetition until
// Release [MQTT-4.3.3-10].
func (s *Session) received(id uint16, t message.Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if s.inbound == nil {
		s.inbound = make(map[uint16]message.Ticket)
	}
	s.inbound[id] = t
}

// Forget undoes what Route noted for a message that did not reach the disk, so that a packet with its identifier is a new one.
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

// Release ends the use of a QoS 2 packet identifier and reports whether it was in use, and the ticket that the PUBCOMP has to
// wait for: the identifier may be used for another message then, also after a restart.
func (s *Session) Release(conn Conn, id uint16) (t message.Ticket, known bool) {
	s.mu.Lock()
	_, known = s.inbound[id]
	s.mu.Unlock()
	if !known {
		return s.Ticket(), false
	}
	s.change(conn, func(b []byte) []byte { return binary.AppendUvarint(append(b, changeRelease), uint64(id)) }, func() {
		delete(s.inbound, id)
	})
	return s.Ticket(), true
}
