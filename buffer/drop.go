package buffer

import (
	"errors"
	"fmt"
)

// Purge gives up all records of the queue that are on disk and tells how many they were.
func (q *Queue) Purge() uint64 {
	l := q.log
	if l.readOnly {
		return 0
	}
	l.mu.Lock()
	cut := l.cut(q, Purged, 1, q.stored)
	q.purged += cut.count
	l.mu.Unlock()
	l.giveAway(q, Purged, cut)
	return cut.count
}

// Drop removes a queue and everything in it. Its name can be declared again and then begins anew.
func (l *Log) Drop(name string) error {
	if l.readOnly {
		return fmt.Errorf("buffer: drop %s: %w", name, ErrReadOnly)
	}
	l.mu.Lock()
	q := l.queues[name]
	if q == nil {
		l.mu.Unlock()
		return nil
	}
	cut := l.cut(q, Purged, 1, q.stored)
	q.purged += cut.count
	q.dropped = true
	l.markDirty(q)
	q.urgent = true
	delete(l.queues, name)
	q.wakeReader()
	l.wakeCommitter()
	l.mu.Unlock()
	l.giveAway(q, Purged, cut)
	return nil
}

// dropFunc gives the owner's callback.
func (q *Queue) dropFunc() func(*Queue, Reason, []Rec) {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return q.onDrop
}

// wakeReader lets the goroutine in Next look again, and those of the tails. Log.mu is held.
func (q *Queue) wakeReader() {
	signal := func(c chan struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	signal(q.wake)
	for _, t := range q.tails {
		signal(t.wake)
	}
}

// cutting is a range of records taken out of a queue, and where to read them for the last time. Their segments are pinned.
type cutting struct {
	count  uint64
	passes []pass
	spans  []span
}

// cut marks lo..hi as done with, so that nobody can acknowledge them any more. Log.mu is held; giveAway must follow without it.
func (l *Log) cut(q *Queue, why Reason, lo, hi Seq) cutting {
	var c cutting
	c.spans = q.done.missing(nil, lo, min(hi, q.stored))
	if q.onDrop != nil {
		for i := q.search(lo); i < len(q.extents) && q.extents[i].first <= hi; i++ {
			e := q.extents[i]
			e.seg.pins++
			c.passes = append(c.passes, pass{
				log: l, queue: q.id, name: q.name, keys: q.keys, seg: e.seg, lo: max(lo, e.first), hi: min(hi, e.last), off: e.start, end: e.end,
			})
		}
	}
	for i := q.search(lo); q.keepLosses && i < len(q.extents) && q.extents[i].first <= hi; i++ {
		e := q.extents[i]
		q.leaves(why, e.seg.epoch, overlap(nil, c.spans[max(len(c.spans)-maxLosses, 0):], e.first, e.last))
	}
	for _, s := range c.spans {
		c.count += l.finish(q, s.lo, s.hi)
	}
	q.urgent = q.urgent || c.count > 0
	l.wakeCommitter()
	return c
}

// giveAway hands the records of a cutting to the owner of the queue. Those that cannot be read are Damaged.
func (l *Log) giveAway(q *Queue, why Reason, c cutting) {
	var b Batch
	var lost []span
	var epoch uint64
	onDrop := q.dropFunc()
	for _, p := range c.passes {
		epoch = p.seg.epoch
		for p.lo <= p.hi {
			res := p.run(&b)
			at := p.lo
			for i := range b.Recs {
				lost = overlap(lost, c.spans, at, b.Recs[i].Seq-1)
				at = b.Recs[i].Seq + 1
			}
			if locked := (*KeyError)(nil); errors.As(res.err, &locked) {
				// What is given up needs no key; only its content remains unknown.
				l.giveAwaySealed(q, why, c.spans, p, &b.win)
				break
			}
			if res.err != nil {
				res.reached = p.hi
			}
			lost = overlap(lost, c.spans, at, res.reached)
			keepRecs(&b, c.spans)
			if len(b.Recs) > 0 && onDrop != nil {
				q.drop(onDrop, why, b.Recs)
			}
			p.off, p.lo = res.off, res.reached+1
		}
		l.mu.Lock()
		l.unpin(p.seg)
		l.mu.Unlock()
		l.closeIdle(p.seg)
	}
	if len(lost) > 0 {
		l.mu.Lock()
		for _, s := range lost {
			q.damaged += uint64(s.hi - s.lo + 1)
			l.counts.damaged += uint64(s.hi - s.lo + 1)
		}
		l.mu.Unlock()
		q.reportLost(lost, epoch)
	}
}

// giveAwaySealed tells the owner of records that nobody can read, by the index of their frames, that they are given up. w reads their segment.
func (l *Log) giveAwaySealed(q *Queue, why Reason, spans []span, p pass, w *window) {
	for off := p.off; off < p.end; {
		h, body, err := w.frame(off, p.end, true)
		if err != nil {
			return // what cannot be read either is found missing
		}
		off += h.total()
		for range h.sections {
			sec, rest, err := nextSection(body)
			if err != nil {
				return
			}
			body = rest
			if sec.kind != sectionRecords {
				continue
			}
			entries, err := decodeIndex(nil, sec, p.seg.epoch)
			if err != nil {
				return
			}
			for _, e := range entries {
				if lo, hi := max(e.first, p.lo), min(e.last, p.hi); e.queue == q.id && lo <= hi {
					q.report(why, overlap(nil, spans, lo, hi), e.epoch)
				}
			}
		}
	}
}

// overlap appends the parts of spans that lie in lo..hi.
func overlap(dst, spans []span, lo, hi Seq) []span {
	for _, s := range spans {
		if s.lo <= hi && s.hi >= lo {
			dst = append(dst, span{max(s.lo, lo), min(s.hi, hi)})
		}
	}
	return dst
}

// keepRecs leaves in b what lies in spans; both are sorted.
func keepRecs(b *Batch, spans []span) {
	kept, i := b.Recs[:0], 0
	for _, r := range b.Recs {
		for i < len(spans) && spans[i].hi < r.Seq {
			i++
		}
		if i < len(spans) && spans[i].lo <= r.Seq {
			kept = append(kept, r)
		}
	}
	b.Recs = kept
}
