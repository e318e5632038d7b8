package forwarder

import (
	"cmp"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
)

// lane is one queue in front of an uplink, with the accounting of what leaves it.
type lane struct {
	kind   pipeline.Lane
	queue  *buffer.Queue
	uplink int
	ledger *ledger
	gaps   *gaps           // nil: nobody is told of what will not come; guarded by mu
	damage chan<- struct{} // is told when unknown grew

	// epoch stands in for that of a record of which only the sequence is known.
	epoch uint64
	// unnamed counts the records whose route is not known: at the start all that are on disk.
	unnamed *cell

	// mu guards the accounting. It is never held while calling the log.
	mu sync.Mutex
	// census tells which of the records found at the start are counted.
	census census
	// unknown records were counted as buffered and then lost by the disk, which leaves open whose they were. See attribute.
	unknown int64
}

func newLane(kind pipeline.Lane, uplink int, l *ledger, g *gaps, damage chan<- struct{}) *lane {
	return &lane{kind: kind, uplink: uplink, ledger: l, gaps: g, damage: damage, unnamed: l.cell(nil, uplink, kind)}
}

// open declares the queue in the log. What is in it is counted before that, because the buffer may evict as soon as it
// knows the bound; so is what was found damaged in it, which it reports right then.
func (l *lane) open(log *buffer.Log, name string, bound *buffer.Bound, maxAge time.Duration) error {
	if q := log.Lookup(name); q != nil {
		s := q.Stats()
		l.census.top = s.Next - 1
		l.unnamed.recovered.Add(int64(s.Records + s.Unheard))
		l.unnamed.buffered.Add(int64(s.Records + s.Unheard))
	}
	l.epoch = log.Epoch()
	return l.declare(log, name, bound, maxAge)
}

// adopt gives a lane of records that no uplink sent to the uplink that they are for.
func (l *lane) adopt(log *buffer.Log, g *gaps, bound *buffer.Bound, maxAge time.Duration) error {
	l.mu.Lock()
	l.gaps = g
	l.mu.Unlock()
	return l.declare(log, l.queue.Name(), bound, maxAge)
}

// declare tells the log what the queue may keep.
func (l *lane) declare(log *buffer.Log, name string, bound *buffer.Bound, maxAge time.Duration) error {
	q, err := log.Queue(name, buffer.QueueOptions{Bound: bound, MaxAge: maxAge, OnDrop: l.dropped, KeepLosses: true})
	if err == nil && l.queue == nil { // it is the same one each time
		l.queue = q
	}
	return err
}

// ackList gathers records that leave a lane together.
type ackList struct {
	seqs   []buffer.Seq
	leaves []leaving
	lost   []buffer.Loss // those that do not reach the cloud
}

type leaving struct {
	f *flight
	p place
}

func (a *ackList) add(f *flight, p place) {
	a.seqs = append(a.seqs, f.seq)
	a.leaves = append(a.leaves, leaving{f, p})
	if p != placeDelivered {
		a.lost = append(a.lost, buffer.Loss{Why: reasonOf(p), Epoch: f.epoch, First: f.seq, Last: f.seq})
	}
}

func (a *ackList) reset() {
	clear(a.leaves)
	a.seqs, a.leaves, a.lost = a.seqs[:0], a.leaves[:0], a.lost[:0]
}

// release acknowledges records in the buffer and counts them where they went. One that the buffer had pushed out in the
// meantime was counted as evicted and is not counted again, even if the cloud has it.
func (l *lane) release(a *ackList) {
	if len(a.lost) > 0 { // then there is somebody to be told: only a lane of an uplink is released
		l.gaps.store.entering.RLock()
		defer l.gaps.store.entering.RUnlock()
	}
	fresh := l.queue.AckLost(a.seqs, a.lost)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range a.leaves {
		if len(fresh) == 0 || fresh[0] != k.f.seq {
			continue
		}
		fresh = fresh[1:]
		l.leave(k.f.cell, k.f.seq, k.p)
		if k.p != placeDelivered {
			l.gaps.add(gapKey{k.f.epoch, l.kind, k.p.String()}, k.f.seq)
		}
	}
}

// dropped counts records that left the buffer without an acknowledgement. It is called by the buffer, maybe from within
// Append, and must not call it.
func (l *lane) dropped(_ *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
	p := placeOf(why)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range recs {
		r := &recs[i]
		switch p {
		case placeDamaged:
			l.lost(r.Seq)
		case placeRefused:
			// Who brought them gets an error and still has them; receipts count them, knowing their route.
		default:
			route, _, _ := splitRecord(r.Data)
			l.leave(l.ledger.cell(route, l.uplink, l.kind), r.Seq, p)
		}
		l.gaps.add(gapKey{cmp.Or(r.Epoch, l.epoch), l.kind, p.String()}, r.Seq)
	}
}

// placeOf is where records go that left the buffer for a reason. Those of this package are the places, from OwnReason on.
func placeOf(why buffer.Reason) place {
	switch why {
	case buffer.Evicted:
		return placeEvicted
	case buffer.Expired:
		return placeExpired
	case buffer.Purged:
		return placePurged
	case buffer.Damaged:
		return placeDamaged
	case buffer.Failed:
		return placeRefused
	}
	return min(place(max(why-buffer.OwnReason, 0)), placeCount-1)
}

// reasonOf is what placeOf makes p of.
func reasonOf(p place) buffer.Reason { return buffer.OwnReason + buffer.Reason(p) }

// leave moves one record of a cell from the buffer to a place. One that the census did not count is counted as found here,
// and the census will pass over it.
func (l *lane) leave(c *cell, seq buffer.Seq, p place) {
	c.places[p].Add(1)
	if l.census.uncounted(seq) {
		l.found(c)
		if seq > l.census.at {
			l.census.left.add(seq)
		}
		return
	}
	c.buffered.Add(-1)
}

// lost counts a record that the disk lost, of which only the sequence is known.
func (l *lane) lost(seq buffer.Seq) {
	if l.census.uncounted(seq) {
		l.leave(l.unnamed, seq, placeDamaged)
		return
	}
	l.unknown++
	select {
	case l.damage <- struct{}{}:
	default:
	}
}
