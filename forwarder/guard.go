package forwarder

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
)

const (
	// maxIdentities bounds the identities of commands that are remembered for one uplink; beyond it the oldest is forgotten, which is
	// counted. One takes about 100 bytes of memory.
	maxIdentities = 1 << 16
	// identityBytes bounds their records on disk; maxIdentities of them fit, each in a commit of its own.
	identityBytes = 16 << 20
)

// guard remembers the identities of the commands of one uplink that were delivered, in memory and in a queue of the log, so that none
// is delivered again after a restart either. One goroutine at a time may call look and remember.
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
	order []slot // by age; an older one of a key that is there twice means nothing
	head  int    // order begins here
}

// remembered is what is known of an identity.
type remembered struct {
	seq     buffer.Seq    // of its record; 0: it could not be appended
	pos     buffer.Pos    // of its append
	until   time.Duration // since guard.start
	durable bool
}

type slot struct {
	key commandKey
	seq buffer.Seq
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
	g := &guard{log: log, forgotten: forgotten, limit: maxIdentities, start: time.Now(), known: map[commandKey]remembered{}}
	var err error
	g.queue, err = log.Queue(name, buffer.QueueOptions{
		Bound: log.NewBound(identityBytes, buffer.DropOldest),
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
		g.known[key] = remembered{seq: rec.Seq, until: left, durable: true}
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

// openGuard opens the guard of an uplink some of whose commands are guarded.
func (o *output) openGuard(m *metrics) (err error) {
	if !slices.ContainsFunc(o.rules, func(r commandRule) bool { return r.id != "" && r.window > 0 }) {
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
	switch {
	case !ok:
		return unseen
	case e.until <= time.Since(g.start):
		delete(g.known, key)
		return unseen
	case !e.durable && e.seq != 0 && g.log.Durable(e.pos):
		e.durable = true
		g.known[key] = e
	}
	if !e.durable {
		return pending
	}
	return seen
}

// remember notes that the command of an identity was delivered, and returns when that is on disk. An error, of the disk or of ctx,
// means that it is not known to be: look says pending then, and remember has to be called again.
func (g *guard) remember(ctx context.Context, key commandKey, life time.Duration) error {
	g.mu.Lock()
	e, ok := g.known[key]
	g.mu.Unlock()
	if !ok {
		e.until = time.Since(g.start) + life
	}
	if e.seq == 0 {
		rec := []buffer.Record{{Queue: g.queue, Data: append([]byte{identityVersion}, key[:]...), Lifetime: life}}
		pos, err := g.log.Append(rec...)
		if err == nil {
			e.seq, e.pos = rec[0].Seq, pos
		}
		g.put(key, e)
		if err != nil {
			return fmt.Errorf("remember a command: %w", err)
		}
	}
	err := g.log.Wait(ctx, e.pos)
	switch {
	case err == nil:
		e.durable = true
	case ctx.Err() == nil:
		e.seq, e.pos = 0, 0 // it failed for good
	}
	g.mu.Lock()
	if _, ok := g.known[key]; ok {
		g.known[key] = e
	}
	g.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remember a command: %w", err)
	}
	return nil
}

// put keeps an identity that is new or has a new record.
func (g *guard) put(key commandKey, e remembered) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known[key] = e
	g.order = append(g.order, slot{key, e.seq})
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
		}
		if s.seq != 0 {
			done = append(done, s.seq)
		}
	}
	if g.head > len(g.order)/2 {
		n := copy(g.order, g.order[g.head:])
		g.order, g.head = g.order[:n], 0
	}
	if len(done) > 0 {
		g.queue.Ack(done...)
	}
}
