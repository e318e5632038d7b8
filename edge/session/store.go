package session

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// The queues of sessions in the log.
const (
	messagesQueue = "session/messages" // every message that somebody takes who is kept, once (record.go)
	stateQueue    = "session/state"    // what is known of each session (state.go)
	retainedQueue = "session/retained" // the retained message of each topic (record.go)
)

// Queues returns the names of the queues that sessions have in the log.
func Queues() []string { return []string{messagesQueue, stateQueue, retainedQueue} }

// Record is what is appended to the log.
type Record = buffer.Record

// Riders are records of sessions that are appended in the same step as the message they belong to.
type Riders struct {
	// Must are part of taking the message over: without them it must not be taken.
	Must []Record
	// May are left out where the log has no room for them; their Seq stays 0 then.
	May []Record
	// Message says that the first of May is what stands before the message: the bytes of that, as its AppendBinary writes them, are to
	// follow there. Its ID may be that of a copy.
	Message bool
}

// Store keeps sessions in queues of a log, beside those of the uplinks and under the same fsync. One Manager uses it.
type Store struct {
	log                       *buffer.Log
	logger                    *slog.Logger
	messages, state, retained *buffer.Queue
	bound                     *buffer.Bound // of messages

	// refs counts, for each stored message, the sessions that are not done with it.
	refs refs
	// last is the sequence of the message stored last, pos the position of what was appended last.
	last, pos atomic.Uint64
	// readers lends the memory for reading back; its capacity bounds how many sessions do so at a time.
	readers chan *buffer.Batch
	// drop counts messages that are lost on disk: nil until there is a Manager. The log may find some as soon as it knows the queues.
	drop atomic.Pointer[func(reason string, n int)]
	// torn says that records of sessions or retained messages are gone from the disk that are known in memory.
	torn atomic.Bool
	lost atomic.Uint64

	mu     sync.Mutex // guards what follows; no other lock is taken under it but the log's
	acks   ring[pendingAck]
	due    []buffer.Seq // memory of settle
	failed []returned   // for Manager.giveBack
	number uint64       // of the newest session
	// goneStates and goneRetained are what torn is about.
	goneStates   map[buffer.Seq]bool
	goneRetained []buffer.Seq
}

// pendingAck is a record that is needed no more once pos is on disk: what stands in its place is there, or it is itself.
type pendingAck struct {
	pos buffer.Pos
	q   *buffer.Queue
	seq buffer.Seq
	of  owner
}

// owner gets records back that stay, because the disk has failed to take what was to stand in their place. No lock is held.
type owner interface{ regain(seqs []buffer.Seq) }

// returned are records that belong together.
type returned struct {
	pos  buffer.Pos
	of   owner
	seqs []buffer.Seq
}

// fetchers is how many sessions read from the disk at a time. Each may take a MiB or two of memory meanwhile.
const fetchers = 4

// OpenStore declares the queues of sessions in l. maxBytes bounds what is stored of messages for all sessions together; the
// oldest make room. Nothing is read before New.
func OpenStore(l *buffer.Log, maxBytes int64, logger *slog.Logger) (*Store, error) {
	st := &Store{log: l, logger: logger, readers: make(chan *buffer.Batch, fetchers), bound: l.NewBound(maxBytes, buffer.DropOldest)}
	for range fetchers {
		st.readers <- &buffer.Batch{}
	}
	var err error
	for _, q := range []struct {
		at   **buffer.Queue
		name string
		o    buffer.QueueOptions
	}{
		{&st.messages, messagesQueue, buffer.QueueOptions{Bound: st.bound, OnDrop: st.messagesGone}},
		{&st.state, stateQueue, buffer.QueueOptions{OnDrop: st.recordsGone}},
		{&st.retained, retainedQueue, buffer.QueueOptions{OnDrop: st.recordsGone}},
	} {
		if *q.at, err = l.Queue(q.name, q.o); err != nil {
			return nil, fmt.Errorf("session: open store: %w", err)
		}
	}
	st.last.Store(uint64(st.messages.Stats().Next - 1))
	return st, nil
}

// Used returns how many bytes of messages are stored for sessions, and the bound.
func (st *Store) Used() (used, limit int64) { return st.bound.Used() }

// Lost counts records of sessions that were lost to damage since the start.
func (st *Store) Lost() uint64 { return st.lost.Load() }

// messagesGone is told of stored messages that are there no more, although somebody waits for them.
func (st *Store) messagesGone(_ *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
	reason := dropDamaged
	switch why {
	case buffer.Evicted:
		reason = dropStore
	case buffer.Expired:
		reason = dropExpired
	case buffer.Failed:
		reason = dropUnstored
	case buffer.Damaged:
		st.lost.Add(uint64(len(recs)))
	case buffer.Purged:
	}
	n := 0
	for i := range recs {
		n += st.refs.take(recs[i].Seq)
	}
	if drop := st.drop.Load(); drop != nil {
		(*drop)(reason, n)
	}
}

// recordsGone is told of records of sessions and of retained messages that are there no more. What is known in memory is
// written again; expired retained messages are known to be gone.
func (st *Store) recordsGone(q *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
	if why == buffer.Expired {
		return
	}
	if why == buffer.Damaged {
		st.lost.Add(uint64(len(recs)))
		st.logger.Error("records of sessions are lost", "queue", q.Name(), "records", len(recs))
	}
	st.mu.Lock()
	for i := range recs {
		if q == st.retained {
			st.goneRetained = append(st.goneRetained, recs[i].Seq)
			continue
		}
		if st.goneStates == nil {
			st.goneStates = make(map[buffer.Seq]bool)
		}
		st.goneStates[recs[i].Seq] = true
	}
	st.mu.Unlock()
	st.torn.Store(true)
}

// append appends recs in one step and returns the ticket of that.
func (st *Store) append(recs ...buffer.Record) (message.Ticket, buffer.Pos, error) {
	pos, err := st.log.Append(recs...)
	if err != nil {
		return message.Ticket{}, 0, fmt.Errorf("store for sessions: %w", err)
	}
	st.appended(pos)
	return st.ticket(pos), pos, nil
}

// appended remembers the last position.
func (st *Store) appended(pos buffer.Pos) {
	for last := st.pos.Load(); pos > last && !st.pos.CompareAndSwap(last, pos); last = st.pos.Load() {
	}
}

func (st *Store) ticket(pos buffer.Pos) message.Ticket { return message.NewTicket(st.log, pos) }

// busyPause is how long to wait where too much waits for the disk and none of it is ours.
const busyPause = 20 * time.Millisecond

// await reports whether err passes with a commit, after waiting for one.
func (st *Store) await(err error) bool {
	if !errors.Is(err, buffer.ErrBusy) {
		return false
	}
	if t := st.ticket(st.pos.Load()); !t.Durable() {
		if wait(t) == nil {
			return true
		}
	}
	time.Sleep(busyPause)
	return true
}

// later acknowledges seqs of q as soon as pos is on disk. Where the disk fails to take that, their owner gets them back
// (Manager.giveBack); without one they are of no use either way.
func (st *Store) later(of owner, q *buffer.Queue, pos buffer.Pos, seqs ...buffer.Seq) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, seq := range seqs {
		st.acks.push(pendingAck{pos, q, seq, of})
	}
	st.settle()
}

// Settle acknowledges what waited for something that is on disk now.
func (st *Store) Settle() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.settle()
}

// settle acknowledges what belongs together at once: a session must not be found with a part of its records. What belongs together has one
// position; otherwise positions are in no order. mu is held.
func (st *Store) settle() {
	var q *buffer.Queue
	st.due = st.due[:0]
	for st.acks.len() > 0 {
		a := st.acks.at(0)
		settled, err := st.log.Settled(a.pos)
		if !settled {
			break
		}
		if err != nil && a.of != nil {
			st.fail(a)
		} else {
			if q != a.q && len(st.due) > 0 {
				q.Ack(st.due...)
				st.due = st.due[:0]
			}
			q = a.q
			st.due = append(st.due, a.seq)
		}
		st.acks.pop()
	}
	if len(st.due) > 0 {
		q.Ack(st.due...)
	}
}

// fail notes a record that stays. mu is held.
func (st *Store) fail(a *pendingAck) {
	if n := len(st.failed); n > 0 && st.failed[n-1].pos == a.pos && st.failed[n-1].of == a.of {
		st.failed[n-1].seqs = append(st.failed[n-1].seqs, a.seq)
		return
	}
	st.failed = append(st.failed, returned{a.pos, a.of, []buffer.Seq{a.seq}})
}

// takeFailed returns what is to be given back.
func (st *Store) takeFailed() []returned {
	st.mu.Lock()
	defer st.mu.Unlock()
	failed := st.failed
	st.failed = nil
	return failed
}

// newNumber gives a number for a session.
func (st *Store) newNumber() uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.number++
	return st.number
}

// used notes that a number was given before.
func (st *Store) used(number uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.number = max(st.number, number)
}

// release says that one session is done with the message seq. It reports whether the message was known still.
func (st *Store) release(seq buffer.Seq) bool {
	left, known := st.refs.release(seq)
	if known && left == 0 && len(st.messages.Ack(seq)) == 0 {
		st.later(nil, st.messages, st.pos.Load(), seq) // its receiver was quicker than the disk
	}
	return known
}

// fetched is a message that was read back, for one session.
type fetched struct {
	msg   *message.Message // nil: it is there no more
	ids   []uint32
	share string
}

// fetch reads the messages seqs, which must rise, for the session with that number, and gives each to f: with nil those that
// are there no more. What is not on disk yet is waited for.
func (st *Store) fetch(number uint64, seqs []buffer.Seq, f func(buffer.Seq, fetched)) error {
	if len(seqs) == 0 {
		return nil
	}
	if seqs[len(seqs)-1] > st.messages.Stored() {
		done := make(chan struct{})
		st.ticket(st.pos.Load()).Done(func(error) { close(done) })
		<-done
	}
	b := <-st.readers
	defer func() { st.readers <- b }()
	i := 0
	err := st.messages.Fetch(seqs, b, func(r buffer.Rec) {
		for ; seqs[i] < r.Seq; i++ {
			f(seqs[i], fetched{})
		}
		f(r.Seq, st.read(number, &r))
		i++
	})
	if err != nil {
		return fmt.Errorf("read stored messages: %w", err)
	}
	for ; i < len(seqs); i++ {
		f(seqs[i], fetched{})
	}
	return nil
}

// read decodes a stored message. Its expiry counts on by the log's clock.
func (st *Store) read(number uint64, r *buffer.Rec) fetched {
	takers, msg, err := decodeStored(r.Data)
	if err != nil {
		return fetched{}
	}
	for i := range takers {
		if t := &takers[i]; t.number == number {
			msg.Expires = st.expires(r)
			return fetched{msg: own(&msg), ids: t.ids, share: t.share}
		}
	}
	return fetched{}
}

// expires returns when a record's message expires; zero: never.
func (st *Store) expires(r *buffer.Rec) time.Time {
	life := r.Lifetime()
	if life == 0 {
		return time.Time{}
	}
	return time.Now().Add(life - st.log.Age(r))
}

// own copies what a decoded message shares with the bytes it was read from.
func own(m *message.Message) *message.Message {
	c := *m
	c.Payload = append([]byte(nil), m.Payload...)
	if m.CorrelationData != nil {
		c.CorrelationData = append([]byte{}, m.CorrelationData...)
	}
	return &c
}

// lifetime is how long m is worth keeping from now on; 0: without end.
func lifetime(m *message.Message) time.Duration {
	if m.Expires.IsZero() {
		return 0
	}
	return max(time.Until(m.Expires), time.Millisecond)
}

// takeGone returns the records that were lost from the disk since it was called last, those of sessions and those of
// retained messages.
func (st *Store) takeGone() (states map[buffer.Seq]bool, retained []buffer.Seq) {
	if !st.torn.Swap(false) {
		return nil, nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	states, retained = st.goneStates, st.goneRetained
	st.goneStates, st.goneRetained = nil, nil
	return states, retained
}
