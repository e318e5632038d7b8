package forwarder

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
	"tidegate/message"
)

const (
	// maxIdentities bounds the identities of commands that are remembered for one uplink; beyond it the oldest is forgotten, which is
	// counted. One takes about 110 bytes of memory.
	maxIdentities = 1 << 16
	// identityBytes bounds their records on disk; maxIdentities of them fit, each in a commit of its own.
	identityBytes = 16 << 20
)

// guard remembers the identities of the commands of one uplink that were delivered, in memory and in a queue of the log, so that none
// is delivered again after a restart either. One goroutine at a time may call look, delivered and remember.
//
// A record is
//
//	+---------+--------------------------+
//	| version | commandKey, 16 bytes     |
//	| 1       |                          |
//	+---------+--------------------------+
//
// and its lifetime in the log, which runs on the machine's monotonic clock across restarts, is how long it is remembered.
type guard struct {
	log       *buffer.Log
	queue     *buffer.Queue
	forgotten prometheus.Counter // before their time
	limit     int                // of identities
	start     time.Time

	// mu guards what follows. It is not held while something is appended or waited for.
	mu    sync.Mutex
	known map[commandKey]remembered
	open  map[commandKey]opening
	order []slot // by age; an older one of a key that is there twice means nothing
	head  int    // order begins here
}

// remembered is what is known of an identity.
type remembered struct {
	seq   buffer.Seq    // of its record; 0: it has none
	until time.Duration // since guard.start
}

// opening is an identity that is not known to be on disk.
type opening struct {
	pos    buffer.Pos     // of the append of its record
	kept   message.Ticket // of the local side, for the command
	listed bool           // in guard.order without a record
}

// slot is the place of an identity in guard.order.
type slot struct {
	key commandKey
	seq buffer.Seq // 0: without a record
}

// sighting is what guard.look says of an identity.
type sighting int

const (
	unseen  sighting = iota
	pending          // its command was delivered, and it is not known to be on disk
	seen             // its command was delivered, and it is on disk
)

// identitiesName is the name of the queue that keeps the identities of an uplink's commands.
func identitiesName(uplink string) string { return "commands/" + uplink }

const (
	identityVersion = 1
	identityLen     = 1 + len(commandKey{})
)

// openGuard declares the queue and takes in what an earlier process left.
func openGuard(log *buffer.Log, name string, forgotten prometheus.Counter) (*guard, error) {
	g := &guard{log: log, forgotten: forgotten, limit: maxIdentities, start: time.Now()}
	g.known, g.open = map[commandKey]remembered{}, map[commandKey]opening{}
	var err error
	g.queue, err = log.Queue(name, buffer.QueueOptions{
		Bound: log.NewBound(identityBytes, buffer.DropOldest),
		Stays: true, // without them a command that is replayed would be carried out again
		OnDrop: func(_ *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
			if why == buffer.Evicted || why == buffer.Damaged { // this process still knows them, the next one will not
				g.forgotten.Add(float64(len(recs)))
			}
		},
	})
	if err != nil {
		return nil, err
	}
	var useless []buffer.Seq
	err = g.queue.Scan(0, func(rec buffer.Rec) bool {
		left := rec.Lifetime() - log.Age(&rec)
		if len(rec.Data) != identityLen || rec.Data[0] != identityVersion || left <= 0 {
			useless = append(useless, rec.Seq)
			return true
		}
		key := commandKey(rec.Data[1:])
		g.known[key] = remembered{seq: rec.Seq, until: left}
		g.order = append(g.order, slot{key, rec.Seq})
		return true
	})
	g.queue.Ack(useless...)
	if err != nil {
		return nil, err
	}
	g.trim()
	g.warmUp()
	return g, nil
}

// warmUp appends a record that means nothing, so that the log has begun its new file when the first identity comes. That takes many
// times as long as a commit, and a command whose identity waits for it would come again after a crash meanwhile.
func (g *guard) warmUp() {
	rec := []buffer.Record{{Queue: g.queue, Data: []byte{0}, Lifetime: time.Second}}
	if pos, err := g.log.Append(rec...); err == nil { // else the disk fails, and the first identity will tell
		g.log.Notify(pos, func(error) { g.queue.Ack(rec[0].Seq) })
	}
}

// openGuard opens the guard of an uplink some of whose commands are guarded, unless it is open.
func (o *output) openGuard(m *metrics) (err error) {
	if o.guard != nil || !slices.ContainsFunc(o.rules, func(r commandRule) bool { return r.id != "" && r.window > 0 }) {
		return nil
	}
	if o.guard, err = openGuard(o.log, identitiesName(o.name), m.forgot.WithLabelValues(o.name)); err != nil {
		return err
	}
	return m.showIdentities(o.name, o.guard)
}

// look tells whether the command of an identity was delivered before.
func (g *guard) look(key commandKey) sighting {
	g.mu.Lock()
	defer g.mu.Unlock()
	e, ok := g.known[key]
	o, open := g.open[key]
	switch {
	case !ok:
		return unseen
	case e.until <= time.Since(g.start):
		g.forget(key)
		return unseen
	case !open:
		return seen
	case e.seq != 0 && g.log.Durable(o.pos) && o.kept.Durable():
		delete(g.open, key)
		return seen
	}
	return pending
}

// delivered notes that the command of an identity was delivered, for life. The local side has it on disk when t is durable.
func (g *guard) delivered(key commandKey, t message.Ticket, life time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known[key] = remembered{until: time.Since(g.start) + life}
	g.open[key] = opening{kept: t}
}

// remember puts the identity of a command that was delivered on disk, and waits for that and for what the local side keeps of the command.
// Where the disk failed the local side, the identity is forgotten: the command has to be delivered again. After another error, of the disk or
// of ctx, look says pending, and remember has to be called again.
func (g *guard) remember(ctx context.Context, key commandKey) error {
	g.mu.Lock()
	e, o := g.known[key], g.open[key]
	g.mu.Unlock()
	if e.seq == 0 {
		life := max(e.until-time.Since(g.start), time.Millisecond)
		rec := []buffer.Record{{Queue: g.queue, Data: append([]byte{identityVersion}, key[:]...), Lifetime: life}}
		pos, err := g.log.Append(rec...)
		if err == nil {
			e.seq, o.pos = rec[0].Seq, pos
		}
		g.mu.Lock()
		g.put(key, e, o)
		g.mu.Unlock()
		if err != nil {
			return fmt.Errorf("remember a command: %w", err)
		}
	}
	err := g.log.Wait(ctx, o.pos)
	kept := o.kept.Wait(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case ctx.Err() != nil && (err != nil || kept != nil):
		return fmt.Errorf("remember a command: %w", ctx.Err())
	case kept != nil:
		g.forget(key)
		return fmt.Errorf("deliver command: %w", kept)
	case err != nil: // it failed for good
		e.seq = 0
		g.put(key, e, o)
		return fmt.Errorf("remember a command: %w", err)
	}
	delete(g.open, key)
	return nil
}

// forget lets go of an identity; mu is held.
func (g *guard) forget(key commandKey) {
	if e := g.known[key]; e.seq != 0 {
		g.queue.Ack(e.seq)
	}
	delete(g.known, key)
	delete(g.open, key)
}

// put keeps an identity that has a new record, or lost it; mu is held.
func (g *guard) put(key commandKey, e remembered, o opening) {
	if e.seq != 0 || !o.listed {
		g.order = append(g.order, slot{key, e.seq})
	}
	o.listed = o.listed || e.seq == 0
	g.known[key], g.open[key] = e, o
	g.trim()
}

// size returns how many identities are remembered.
func (g *guard) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trim()
	return len(g.known)
}

// trim forgets what is too old or too much, the oldest first; mu is held, or nobody else has g yet.
func (g *guard) trim() {
	now := time.Since(g.start)
	var done []buffer.Seq
	for ; g.head < len(g.order); g.head++ {
		s := g.order[g.head]
		e, ok := g.known[s.key]
		current := ok && e.seq == s.seq
		if current && e.until > now {
			if len(g.order)-g.head <= g.limit {
				break
			}
			g.forgotten.Inc()
		}
		if current {
			delete(g.known, s.key)
			delete(g.open, s.key)
		}
		if s.seq != 0 {
			done = append(done, s.seq)
		}
	}
	if g.head > 1000+len(g.order)/8 {
		n := copy(g.order, g.order[g.head:])
		g.order, g.head = g.order[:n], 0
	}
	if len(done) > 0 {
		g.queue.Ack(done...)
	}
}
