package buffer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// Next fills b with durable records behind after, in order, at least one and about half a MiB at most, and waits until there is one. What was
// acknowledged, evicted, purged or damaged is left out. It may be called with any after: a lower one reads again. An error other than
// that of ctx, ErrClosed and ErrDropped is one of the disk; nothing is given up, and the call is to be repeated for as long as it takes.
// Only what could not be read for ten minutes, on a disk that otherwise works, is damaged.
func (q *Queue) Next(ctx context.Context, after Seq, b *Batch) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		found, err := q.read(after, b)
		if found || err != nil {
			return err
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
		case <-q.log.stop:
			return fmt.Errorf("read %s: %w", q.name, ErrClosed)
		}
	}
}

// read makes one attempt at Next. It returns false if nothing is there; the caller then waits.
func (q *Queue) read(after Seq, b *Batch) (bool, error) {
	q.log.mu.Lock()
	at := q.at
	q.log.mu.Unlock()
	left := at.segment()
	found, err := q.pull(after, b, &at, true)
	q.log.mu.Lock()
	q.at = at
	q.log.mu.Unlock()
	if left != at.segment() {
		q.log.closeIdle(left)
	}
	return found, err
}

// Scan calls f with the durable records behind after, in order, until f returns false or there are no more. It does not disturb Next
// and may run beside it. Rec.Data is valid during the call. Where the disk cannot be read it returns the error, unless the log was
// opened for reading only: then what cannot be read is left out, and counted as damaged in memory.
func (q *Queue) Scan(after Seq, f func(r Rec) bool) error {
	var b Batch
	var at place
	defer func() { q.log.closeIdle(at.segment()) }()
	for {
		left := at.segment()
		found, err := q.pull(after, &b, &at, false)
		if left != at.segment() {
			q.log.closeIdle(left)
		}
		if err != nil || !found {
			return err
		}
		for i := range b.Recs {
			if !f(b.Recs[i]) {
				return nil
			}
			after = b.Recs[i].Seq
		}
	}
}

// pull fills b with records behind after, from where at says if that fits. It returns false if there are none. drain says that it is for
// the one reader of the queue.
func (q *Queue) pull(after Seq, b *Batch, at *place, drain bool) (bool, error) {
	return q.pullTo(after, ^Seq(0), b, at, drain)
}

// pullTo is pull that stops early: what is behind upto is only read along.
func (q *Queue) pullTo(after, upto Seq, b *Batch, at *place, drain bool) (bool, error) {
	l := q.log
	for tries := 0; ; tries++ {
		l.mu.Lock()
		if err := q.usable(); err != nil {
			l.mu.Unlock()
			return false, fmt.Errorf("read %s: %w", q.name, err)
		}
		p, ok := l.plan(q, after, upto)
		if !ok {
			l.mu.Unlock()
			if drain {
				l.readAgain(q)
			}
			return false, nil
		}
		if at.extent == p.extent && at.seq <= after {
			p.off = at.off
		}
		l.mu.Unlock()

		res := p.run(b)

		if locked := (*KeyError)(nil); errors.As(res.err, &locked) {
			l.mu.Lock()
			l.unpin(p.seg)
			l.mu.Unlock()
			return false, fmt.Errorf("buffer: read %s: %w", p.seg.name, locked)
		}
		if res.err != nil && l.readOnly && tries < 5 {
			l.mu.Lock()
			l.unpin(p.seg)
			l.mu.Unlock()
			time.Sleep(firstReload)
			continue
		}
		if res.err != nil && !l.unreadable(q, p, res, drain) {
			return false, fmt.Errorf("buffer: read %s of %s: %w", p.seg.name, q.name, res.err)
		}
		if res.err == nil && drain {
			l.readAgain(q)
		}
		tries = 0
		l.mu.Lock()
		l.unpin(p.seg)
		damage, lost := l.noteDamage(q, p, res, b.Recs)
		if n := len(b.Recs); n > 0 {
			*at = place{p.extent, b.Recs[n-1].Seq, res.off}
		}
		q.dropDone(b)
		l.mu.Unlock()
		l.reportDamage(damage)
		q.reportLost(lost, p.seg.epoch)
		if len(b.Recs) > 0 {
			return true, nil
		}
		after = max(after, res.reached)
	}
}

// usable gives the error that ends reading. Log.mu is held.
func (q *Queue) usable() error {
	switch {
	case q.log.closed:
		return ErrClosed
	case q.dropped:
		return ErrDropped
	}
	return nil
}

// dropDone removes records that are done with from b. Log.mu is held.
func (q *Queue) dropDone(b *Batch) {
	n := len(b.Recs)
	if n == 0 || q.done.count(b.Recs[0].Seq, b.Recs[n-1].Seq) == 0 {
		return
	}
	b.Recs = slices.DeleteFunc(b.Recs, func(r Rec) bool { return q.done.has(r.Seq) })
}

// pass is one reading of a part of an extent.
type pass struct {
	log    *Log
	queue  uint64
	name   string // of the queue, for errors
	keys   keyring
	seg    *segment
	extent *extent // nil if it does not matter
	lo, hi Seq
	// enough, if it is not 0, ends the pass with the frame that holds it.
	enough   Seq
	off, end int64
}

// passResult tells how it went: where the next pass begins, and the damage met. With err the damage is only what would have to be given
// up, if the disk does not recover: what cannot be read now may be whole all the same.
type passResult struct {
	off     int64
	damage  []badRegion
	reached Seq // everything up to here was looked at
	err     error
}

type badRegion struct {
	off, end int64
	err      error
}

// plan finds the next extent of q with records behind after and up to upto, and pins its segment. Log.mu is held.
func (l *Log) plan(q *Queue, after, upto Seq) (pass, bool) {
	after = max(after, q.done.floor)
	i := q.search(after + 1)
	for i < len(q.extents) && q.done.count(max(after+1, q.extents[i].first), q.extents[i].last) == uint64(q.extents[i].last-max(after+1, q.extents[i].first)+1) {
		i++
	}
	if i == len(q.extents) || q.extents[i].first > upto {
		return pass{}, false
	}
	e := q.extents[i]
	e.seg.pins++
	return pass{
		log: l, queue: q.id, name: q.name, keys: q.keys, seg: e.seg, extent: e,
		lo: max(after+1, e.first), hi: e.last, enough: upto, off: e.start, end: e.end,
	}, true
}

// unpin lets go of a segment after reading. Log.mu is held.
func (l *Log) unpin(s *segment) {
	s.pins--
	if s.pins == 0 && s.dying {
		l.wakeCommitter()
	}
}

// run reads frames into b until it holds a good piece, without lock.
func (p pass) run(b *Batch) passResult {
	b.Recs = b.Recs[:0]
	res := passResult{off: p.off, reached: p.lo - 1}
	f, err := p.open()
	if err != nil {
		res.err = err
		if errors.Is(err, fs.ErrNotExist) {
			res.damage = append(res.damage, badRegion{p.off, p.end, err})
			res.reached = p.hi
		}
		return res
	}
	b.win.reset(f, p.seg.salt)
	b.unsealer.reset()
	for res.off < p.end {
		if n := len(b.Recs); n > 0 && (b.Recs[n-1].Seq >= p.last() || b.unsealer.size >= readBytes) {
			break
		}
		h, body, err := b.win.frame(res.off, p.end, len(b.Recs) == 0)
		if errors.Is(err, errOutside) {
			break
		}
		if err == nil {
			before := len(b.Recs)
			if err = p.decode(b, h, body, res.off); err == nil {
				res.off += h.total()
				continue
			}
			b.Recs = b.Recs[:before]
			if locked := (*KeyError)(nil); before == 0 && errors.As(err, &locked) {
				res.err = err
				return res
			}
		}
		if len(b.Recs) > 0 {
			break // the next pass begins with the bad region, so that what it cost is known exactly
		}
		next := p.end
		from := res.off + 1
		if h.length > 0 {
			from = res.off + h.total()
		}
		if at, ok := b.win.resync(from, p.end); ok {
			next = at
		}
		res.damage = append(res.damage, badRegion{res.off, next, err})
		res.off = next
	}
	b.win.ahead = 0
	if took := int(res.off - p.off); b.unsealer.size > took && len(res.damage) == 0 {
		b.win.ahead = max(took+took/4, 64<<10)
	}
	if n := len(b.Recs); n > 0 {
		res.reached = b.Recs[n-1].Seq
	} else {
		res.reached = p.hi
	}
	if len(res.damage) > 0 {
		res.err = b.win.err
	}
	return res
}

// last is the last record that is wanted. Those behind it in its frame are read along.
func (p pass) last() Seq {
	if p.enough > 0 {
		return min(p.hi, p.enough)
	}
	return p.hi
}

// open gives the segment's file, opening it if nobody did yet.
func (p pass) open() (File, error) {
	l := p.log
	l.fileMu.Lock()
	defer l.fileMu.Unlock()
	if p.seg.file == nil {
		f, err := l.fs.Open(p.seg.path(l.dir), l.readOnly)
		if err != nil {
			return nil, err
		}
		p.seg.file = f
	}
	return p.seg.file, nil
}

// decode appends the wanted records of the checked frame at off to b.
func (p pass) decode(b *Batch, h frameHeader, body []byte, off int64) error {
	if h.kind != frameCommit && h.kind != frameRelocated {
		return nil
	}
	at := off + frameHeaderLen
	for range h.sections {
		s, rest, err := nextSection(body)
		if err != nil {
			return err
		}
		place := at
		at += sectionHeaderLen + int64(s.stored)
		body = rest
		if s.kind != sectionRecords {
			continue
		}
		if b.entries, err = decodeIndex(b.entries[:0], s, p.seg.epoch); err != nil {
			return err
		}
		if !wanted(b.entries, p.queue, p.lo, p.hi) {
			continue
		}
		records, err := b.unsealer.records(&p.log.inflate, s, p.seg, place, p.keys, p.name)
		if err != nil {
			return err
		}
		if b.Recs, err = decodeRecords(b.Recs, records, s.count, b.entries, h.base, p.queue, p.lo, p.hi); err != nil {
			return err
		}
	}
	return nil
}
