package buffer

import (
	"slices"
	"sort"
	"time"
)

// Queue is one named sequence of records in a Log. One goroutine at a time may call Next; everything else may be called by any.
type Queue struct {
	log *Log
	// id names the queue on disk.
	id   uint64
	name string
	// keys does not change after the log was opened.
	keys keyring

	// Log.mu guards the rest.

	bound  *Bound
	maxAge time.Duration
	onDrop func(q *Queue, why Reason, recs []Rec)
	// declared says that Log.Queue was called for it in this process.
	declared, dropped bool
	// stayPut and keepLosses are QueueOptions.Stays and KeepLosses.
	stayPut, keepLosses bool
	// next is the sequence the next append gets; stored is the last one that is on disk or given up.
	next, stored Seq
	// done holds what is not needed any more: every sequence up to stored that is not in it is in one of the extents.
	done    seqSet
	extents []*extent
	// records and bytes sum the extents' live ones. pending is charged for what waits for the disk.
	records uint64
	bytes   int64
	pending int64

	// losses is kept for the owner, leaving what is on its way to him; see loss.go.
	losses  lossList
	leaving []Loss
	// unheard is what was found damaged before the queue had an owner that could be told.
	unheard []lostSpan

	evicted, damaged, purged, expired, failed uint64
	// damagedBefore is what damaged was at Open.
	damagedBefore uint64

	// dirty says that done changed since it was last written, from dirtySince on. urgent: the next frame must carry it.
	dirty, urgent bool
	dirtySince    time.Time
	// announce counts in how many more frames the name is written: two, so that one bad frame does not cost it.
	announce int

	// gather and entry: where the gathering frame keeps this queue's records.
	gather *frameBuilder
	entry  int

	// wake is for the one goroutine in Next; tails are other readers.
	wake  chan struct{}
	tails []*Tail
	// at is where Next left off.
	at         place
	stall      stall
	times      times
	missingBuf []span
}

// place is a position in an extent: its frames from off on hold everything of it behind seq.
type place struct {
	extent *extent
	seq    Seq
	off    int64
}

func (p place) segment() *segment {
	if p.extent == nil {
		return nil
	}
	return p.extent.seg
}

func newQueue(l *Log, id uint64, name string) *Queue {
	q := &Queue{log: l, id: id, name: name, next: 1, announce: 2, wake: make(chan struct{}, 1)}
	q.keys, _ = l.keysOf(name)
	return q
}

// Name is the queue's name.
func (q *Queue) Name() string { return q.name }

// Epoch is the log's epoch: the one new records get.
func (q *Queue) Epoch() uint64 { return q.log.Epoch() }

// Floor is the last sequence of those, from the first on, that are all done with.
func (q *Queue) Floor() Seq {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return q.done.floor
}

// Ack says that the records are needed no more, in any order. It gives back those that were still stored, in the memory of seqs; the others
// are unknown, or were acknowledged, evicted, purged or lost before. It does not wait for the disk: an acknowledgement lost in a
// crash only means that the record is sent again.
func (q *Queue) Ack(seqs ...Seq) []Seq {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return q.ack(seqs)
}

// ack is Ack with Log.mu held.
func (q *Queue) ack(seqs []Seq) []Seq {
	l, n := q.log, 0
	for i := 0; i < len(seqs); {
		lo, hi := seqs[i], seqs[i]
		start := i
		for i++; i < len(seqs) && seqs[i] == hi+1; i++ {
			hi = seqs[i]
		}
		if hi > q.stored || lo == 0 || q.done.count(lo, hi) > 0 {
			// Rare: a part of the run is done with already.
			for _, seq := range seqs[start:i] {
				if seq != 0 && l.finish(q, seq, seq) == 1 {
					seqs[n] = seq
					n++
				}
			}
			continue
		}
		l.finish(q, lo, hi)
		n += copy(seqs[n:], seqs[start:i])
	}
	return seqs[:n]
}

// finish marks lo..hi as done with and tells how many of them were not yet. Log.mu is held.
func (l *Log) finish(q *Queue, lo, hi Seq) uint64 {
	hi = min(hi, q.stored)
	q.missingBuf = q.done.missing(q.missingBuf[:0], lo, hi)
	var n uint64
	for _, m := range q.missingBuf {
		n += uint64(m.hi - m.lo + 1)
		q.done.add(m.lo, m.hi)
		dead := false
		for i := q.search(m.lo); i < len(q.extents) && q.extents[i].first <= m.hi; i++ {
			e := q.extents[i]
			l.setLive(e, e.live-uint64(min(m.hi, e.last)-max(m.lo, e.first)+1))
			dead = dead || e.live == 0
		}
		if dead {
			q.removeDead(m.lo, m.hi)
		}
	}
	if n > 0 {
		l.markDirty(q)
	}
	return n
}

// markDirty notes that the state of q must be written. Log.mu is held.
func (l *Log) markDirty(q *Queue) {
	if !q.dirty {
		q.dirty, q.dirtySince = true, time.Now()
		l.dirty = append(l.dirty, q)
		l.wakeCommitter()
	}
}

// search gives the first extent that ends at or behind seq.
func (q *Queue) search(seq Seq) int {
	return sort.Search(len(q.extents), func(i int) bool { return q.extents[i].last >= seq })
}

// removeDead takes dead extents touching lo..hi off the list. At its start that costs nothing.
func (q *Queue) removeDead(lo, hi Seq) {
	i := q.search(lo)
	j := i
	for j < len(q.extents) && q.extents[j].first <= hi {
		j++
	}
	if i == 0 {
		for i < j && q.extents[i].live == 0 {
			q.extents[i] = nil
			q.extents = q.extents[1:]
			j--
		}
	}
	kept := slices.DeleteFunc(q.extents[i:j:j], func(e *extent) bool { return e.live == 0 })
	if i+len(kept) < j {
		q.extents = slices.Delete(q.extents, i+len(kept), j)
	}
}
