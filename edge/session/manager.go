package session

import (
	"container/list"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
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
	// MemoryBytes bounds what waits and is in flight in memory, for all sessions together: QoS 0, and everything of sessions that are
	// not stored. Beyond it a session that has much drops as much as it gets. 0 means twice QueueBytes.
	MemoryBytes int64
	// RetainedLimit is how many topics may have a retained message. 0 means none.
	RetainedLimit int
	// RetainedBytes bounds the memory that retained messages take. 0 means 64 MiB.
	RetainedBytes int64
	// MaxSessions bounds the sessions. A new one above it ends the one that has been without a connection for longest; where
	// all have one, there is one more. 0 means no bound.
	MaxSessions int
	// Store keeps sessions over a restart; nil: they end with the process.
	Store *Store
	// MaxExpiry bounds how long a session that was stored lives without a connection; 0: as it was granted.
	MaxExpiry time.Duration
	// Allow gives the Connect.Allow of a stored session, for its user and client identifier.
	Allow func(user, client string) func(topic string) bool
	// MaySubscribe says whether a stored session's subscription is allowed still; nil: all are.
	MaySubscribe func(user, client, filter string) bool
	// Logger gets what an operator should see; nil: none.
	Logger *slog.Logger
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
	dropRetained = DropRetained
	dropHandler  = "handler"     // the queue of a handler of this process was full
	dropStore    = "store_full"  // the oldest made room on the disk
	dropUnstored = "not_stored"  // it could not be kept on the disk
	dropDamaged  = "damaged"     // its bytes on the disk are bad, or were given up
	dropDenied   = "not_allowed" // the rules have changed while it waited
)

// DropRetained counts messages that were delivered but not retained, for RetainedLimit or RetainedBytes.
const DropRetained = "retained_limit"

// DropReasons returns all reasons that Options.Drop is called with.
func DropReasons() []string {
	return []string{
		dropSlow, dropFull, dropExpired, dropTooLarge, dropEnded, dropEvicted, dropRetained, dropHandler,
		dropStore, dropUnstored, dropDamaged, dropDenied,
	}
}

// Manager holds all sessions, subscriptions and retained messages. Its methods are safe for concurrent use; it starts no
// goroutine.
type Manager struct {
	o        Options
	tree     tree
	plans    plans
	memory   atomic.Int64 // of all sessions, see memory.go
	levels   atomic.Int64 // of all filters together
	retained retainedStore
	// retaining makes keeping a retained message and giving it out one step for each topic (by its hash), so that what
	// subscribers saw last is what is kept. It is taken before any other lock.
	retaining [16]sync.Mutex
	seed      maphash.Seed
	// batches lends encoding buffers to senders while they have something to send, ridings memory to publishers.
	batches, ridings sync.Pool

	store *Store
	// order is held while a message is appended to the store and queued in the sessions that take it, so that each has its
	// messages in the order of the store, and while a session is written whole. It is taken after retaining, before mu.
	order sync.Mutex

	crowds crowds // guarded by order

	// returning makes giveBack one step. It is taken after retaining and before mu.
	returning sync.Mutex

	// mu guards what follows. It is taken before a session's own mu, never after.
	mu       sync.Mutex
	sessions map[string]*Session
	away     list.List // of *Session: those without connection, who left first at the front
	endings  []ending  // sessions that ended, with what is to be done about it
	wills    []RestoredWill
	// unkept are topics whose retained message is not on disk as it is in memory.
	// The records are those of what the topics had before.
	unkept map[string][]buffer.Seq
}

// New returns a Manager with what its Store has kept, if there is one. What cannot be read is left out, counted and logged.
func New(o Options) *Manager {
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 2 * o.QueueBytes
	}
	if o.LiveBytes == 0 {
		o.LiveBytes = 4 << 20
	}
	if o.RetainedBytes == 0 {
		o.RetainedBytes = 64 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{o: o, store: o.Store, sessions: make(map[string]*Session), seed: maphash.MakeSeed()}
	m.retained.limit, m.retained.maxBytes = o.RetainedLimit, o.RetainedBytes
	if m.store != nil {
		m.restore()
	}
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

// Sweep ends the sessions whose expiry has passed, forgets expired retained messages, and writes to the store what need not
// be there at once. It returns the client identifiers of the sessions ended.
func (m *Manager) Sweep(now time.Time) (ended []string) {
	m.unretain(m.retained.sweep(now))
	m.plans.sweep(m.tree.version.Load())
	m.mu.Lock()
	for id, s := range m.sessions {
		if s.over(now) {
			m.end(s, dropEnded)
			ended = append(ended, id)
		}
	}
	m.mu.Unlock()
	m.finish()
	m.Flush()
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
