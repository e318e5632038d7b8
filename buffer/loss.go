package buffer

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// An owner who tells others what left his queue without Ack cannot do so at once, and must not forget it in a crash. So the log keeps it for
// him, until he kept it himself, in each frame beside the state of the queue that says that those records are done with: either both are
// on disk or the records still are.

// Loss is a run of records that left a queue without Ack, or by AckLost.
type Loss struct {
	// Why is OwnReason or above where the owner gave it.
	Why Reason
	// Epoch is that of the records, see Rec; of Damaged ones it is that of the file they stood in, or 0 where that is not known.
	Epoch uint64
	// First and Last are both in it.
	First, Last Seq
}

// OwnReason is the first of the reasons that are the owner's, up to 255.
const OwnReason Reason = 16

// maxLosses is how many runs are kept for the owner of a queue, who is expected to note them within seconds; beyond it the oldest are let go.
const maxLosses = 128

// lossList is what the owner of a queue has not noted yet, oldest first.
type lossList struct {
	list []Loss
	// total counts the records that ever were in it, noted those of them that are not any more.
	total, noted uint64
}

func (x *Loss) count() uint64 { return uint64(x.Last-x.First) + 1 }

// add appends a run.
func (s *lossList) add(x Loss) {
	s.total += x.count()
	if n := len(s.list); n > 0 {
		if o := &s.list[n-1]; o.Why == x.Why && o.Epoch == x.Epoch && o.Last+1 == x.First {
			o.Last = x.Last
			return
		}
	}
	s.list = append(s.list, x)
	if len(s.list) > maxLosses {
		s.note(s.noted + s.list[0].count())
	}
}

// note lets go of the first records, up to mark of all there ever were.
func (s *lossList) note(mark uint64) {
	for len(s.list) > 0 && s.noted < mark {
		x := &s.list[0]
		n := min(x.count(), mark-s.noted)
		s.noted += n
		if x.First += Seq(n); x.First > x.Last {
			s.list = slices.Delete(s.list, 0, 1)
		}
	}
}

// join takes the later of two states of the list.
func (s *lossList) join(o *lossList) {
	if o.total > s.total || o.total == s.total && o.noted > s.noted {
		*s = lossList{slices.Clone(o.list), o.total, o.noted}
	}
}

// Losses gives what left the queue without Ack since it was declared with KeepLosses, apart from what was noted: in this process, or in one
// before it that ended too early. What OnDrop has not returned from is not in it. They are at most 128 runs, the oldest first; beyond that the
// oldest are let go. mark is for Noted.
func (q *Queue) Losses() (losses []Loss, mark uint64) {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return slices.Clone(q.losses.list), q.losses.total
}

// Noted says that the owner keeps what Losses gave with mark himself. It does not wait for the disk: after a crash within SaveEvery they may
// be among the Losses again.
func (q *Queue) Noted(mark uint64) {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	if before := q.losses.noted; mark > before {
		q.losses.note(mark)
		q.log.markDirty(q)
	}
}

// AckLost is Ack for records of which lost are, for the owner, lost: runs of one record each, in the order of seqs. Those that were still
// stored are found in Losses then. It gives back what Ack does.
func (q *Queue) AckLost(seqs []Seq, lost []Loss) []Seq {
	l := q.log
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh := q.ack(seqs)
	at := 0
	for _, x := range lost {
		if i := slices.Index(fresh[at:], x.First); i >= 0 {
			q.lost(x)
			at += i + 1
		}
	}
	return fresh
}

// lost notes a loss for the owner, if he wants that. Log.mu is held.
func (q *Queue) lost(x Loss) {
	if q.keepLosses {
		q.losses.add(x)
		q.log.markDirty(q)
	}
}

// leaves notes spans of the queue that are done with from now on, of which the owner is about to be told: what is written meanwhile has them
// too. That goes on where he is not known yet. Log.mu is held.
func (q *Queue) leaves(why Reason, epoch uint64, spans []span) {
	if q.declared && !q.keepLosses {
		return
	}
	for _, s := range spans[max(len(spans)-maxLosses, 0):] {
		q.leaving = append(q.leaving, Loss{why, epoch, s.lo, s.hi})
	}
	q.leaving = q.leaving[max(len(q.leaving)-maxLosses, 0):]
}

// drop tells the owner that records are gone, and keeps that for him.
func (q *Queue) drop(onDrop func(*Queue, Reason, []Rec), why Reason, recs []Rec) {
	onDrop(q, why, recs)
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	for i := range recs {
		q.lost(Loss{why, recs[i].Epoch, recs[i].Seq, recs[i].Seq})
		q.told(recs[i].Seq)
	}
}

// told takes a record out of those of which the owner is about to be told. Log.mu is held.
func (q *Queue) told(seq Seq) {
	for i := range q.leaving {
		x := &q.leaving[i]
		switch {
		case seq < x.First || seq > x.Last:
			continue
		case x.First == x.Last:
			q.leaving = slices.Delete(q.leaving, i, i+1)
		case seq == x.First:
			x.First++
		case seq == x.Last:
			x.Last--
		default:
			rest := *x
			x.Last, rest.First = seq-1, seq+1
			q.leaving = slices.Insert(q.leaving, i+1, rest)
		}
		return
	}
}

// allLosses is what is written of the losses. Log.mu is held.
func (q *Queue) allLosses() lossList {
	if len(q.leaving) == 0 {
		return q.losses
	}
	all := lossList{slices.Clone(q.losses.list), q.losses.total, q.losses.noted}
	for _, x := range q.leaving {
		all.add(x)
	}
	return all
}

// appendLosses appends what is kept for the owner of a queue.
func appendLosses(b []byte, queue uint64, s *lossList) []byte {
	b = binary.AppendUvarint(b, queue)
	b = binary.AppendUvarint(b, s.noted)
	b = binary.AppendUvarint(b, uint64(len(s.list)))
	var before Loss
	for _, x := range s.list {
		b = append(b, byte(x.Why))
		b = binary.AppendVarint(b, int64(x.Epoch-before.Epoch))
		b = binary.AppendVarint(b, int64(x.First-before.Last))
		b = binary.AppendUvarint(b, uint64(x.Last-x.First))
		before = x
	}
	return b
}

// decodeLosses reads a section of losses, by queue.
func decodeLosses(s section) (map[uint64]lossList, error) {
	if !s.plain() {
		return nil, fmt.Errorf("losses: %w", errBadContent)
	}
	d := decoder{b: s.bytes}
	all := map[uint64]lossList{}
	for range s.count {
		id := d.uvarint()
		x := lossList{noted: d.uvarint()}
		x.total = x.noted
		n := d.uvarint()
		if d.bad || n > uint64(len(d.b)) {
			return nil, fmt.Errorf("losses: %w", errBadContent)
		}
		var before Loss
		for range n {
			why := d.bytes(1)
			epoch, first := before.Epoch+uint64(d.varint()), before.Last+Seq(d.varint())
			before = Loss{Epoch: epoch, First: first, Last: first + Seq(d.uvarint())}
			if d.bad || before.First == 0 || before.Last < before.First {
				return nil, fmt.Errorf("losses: %w", errBadContent)
			}
			before.Why = Reason(why[0])
			x.list = append(x.list, before)
			x.total += before.count()
		}
		all[id] = x
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("losses: %w", errBadContent)
	}
	return all, nil
}
