package buffer

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// errNoEnd says that an Append is not what Record.SameEnd asks for.
var errNoEnd = errors.New("the record before does not have it")

// size is the length of the record's data.
func (r *Record) size() int { return len(r.Data) + r.SameEnd }

// Append takes all recs over, or none, and returns at once with the position of the last: Durable, Notify and Wait tell when they are on
// disk. All of them stand in one frame, so after a crash either all are there or none. It fills in recs[i].Seq. The data are copied.
//
// Errors: ErrFull, ErrBusy, ErrTooLarge, ErrFailed, ErrClosed, ErrDropped, and one without a name where a SameEnd is more than the record before
// has; nothing was changed then.
func (l *Log) Append(recs ...Record) (Pos, error) {
	if len(recs) == 0 {
		return 0, nil
	}
	if l.readOnly {
		return 0, fmt.Errorf("append: %w", ErrReadOnly)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(recs); err != nil {
		return 0, fmt.Errorf("append: %w", err)
	}
	f, at := l.gatheringFrame(l.mortal(recs))
	before := f.size
	for i := range recs {
		r := &recs[i]
		q := r.Queue
		if q.gather != f {
			q.gather, q.entry = f, f.entry(q, l.epoch, q.next)
		}
		expires := int64(never)
		if r.Lifetime > 0 {
			expires = at + max(r.Lifetime.Milliseconds(), 1)
		}
		r.Seq = q.next
		if r.SameEnd > 0 {
			before := recs[i-1].Data
			f.addAlike(q.entry, q.next, at, expires, r.Data, before[len(before)-r.SameEnd:])
		} else {
			f.add(q.entry, q.next, at, expires, r.Data)
		}
		q.next++
		charge := chargeOf(r.size())
		q.pending += charge
		if q.bound != nil {
			q.bound.pending += charge
		}
	}
	l.nextPos += uint64(len(recs))
	added := int64(f.size - before)
	f.waiting += added
	l.gathered += added
	if f.count >= l.wakeAt || l.large(f) {
		l.wakeCommitter()
	}
	return l.nextPos - 1, nil
}

// mortal tells whether the age of recs matters. Log.mu is held.
func (l *Log) mortal(recs []Record) bool {
	return l.expiring || slices.ContainsFunc(recs, func(r Record) bool { return r.Lifetime > 0 })
}

// frameSpan is how long a frame takes records whose age matters: after a crash all of them are taken for as old as its first.
const frameSpan = 250 * time.Millisecond

// admit checks that recs can be taken, all of them.
func (l *Log) admit(recs []Record) error {
	if err := l.appendable(); err != nil {
		return err
	}
	err := l.fit(recs)
	for i := range recs {
		if q := recs[i].Queue; q != nil && q.bound != nil {
			q.bound.need = 0
		}
	}
	return err
}

// fit checks that there is room for recs, and leaves in Bound.need what it added up.
func (l *Log) fit(recs []Record) error {
	var size int64
	for i := range recs {
		q := recs[i].Queue
		if q == nil || q.log != l {
			return fmt.Errorf("record %d: no queue of this log: %w", i, ErrDropped)
		}
		if q.dropped {
			return fmt.Errorf("queue %s: %w", q.name, ErrDropped)
		}
		if recs[i].SameEnd != 0 && (i == 0 || recs[i-1].SameEnd != 0 || recs[i].SameEnd < 0 || recs[i].SameEnd > len(recs[i-1].Data)) {
			return fmt.Errorf("record %d of queue %s: an end of %d bytes: %w", i, q.name, recs[i].SameEnd, errNoEnd)
		}
		n := recs[i].size()
		if n > MaxRecordBytes {
			return fmt.Errorf("queue %s: %d bytes: %w", q.name, n, ErrTooLarge)
		}
		charge := chargeOf(n)
		size += charge
		if b := q.bound; b != nil {
			b.need += charge
			if err := b.admit(); err != nil {
				return fmt.Errorf("queue %s: %w", q.name, err)
			}
		}
	}
	if l.gathered > 0 && l.gathered+size > l.o.GatherBytes {
		return fmt.Errorf("%d bytes wait for the disk: %w", l.gathered, ErrBusy)
	}
	if size > maxFrameBytes {
		return fmt.Errorf("%d bytes at once: %w", size, ErrTooLarge)
	}
	return nil
}

// appendable gives the error that keeps anything from being appended.
func (l *Log) appendable() error {
	switch {
	case l.closing:
		return ErrClosed
	case l.failed != nil && isNoSpace(l.failed):
		return fmt.Errorf("%w: %w", ErrFull, l.failed)
	case l.failed != nil:
		return fmt.Errorf("%w: %w", ErrFailed, l.failed)
	}
	return nil
}

// maxFrameBytes bounds what one Append may hold, well below what 32 bits can count.
const maxFrameBytes = 4 * MaxRecordBytes

// gatheringFrame gives the frame that takes new records, and the log time at which they come in. Records in a frame share that of its
// first one, so that the clock is not read for each, unless they are mortal: behind a slow disk a frame may gather for long.
func (l *Log) gatheringFrame(mortal bool) (*frameBuilder, int64) {
	var at int64
	if mortal {
		at = l.time.now()
	}
	if n := len(l.gathering); n > 0 && l.gathering[n-1].size < l.frameLimitLocked() {
		f := l.gathering[n-1]
		switch {
		case !mortal:
			return f, f.base
		case at-f.base < frameSpan.Milliseconds():
			return f, max(at, f.base)
		}
	}
	var buf []byte
	if n := len(l.buffers); n > 0 {
		buf, l.buffers = l.buffers[n-1], l.buffers[:n-1]
	}
	if !mortal {
		at = l.time.now()
	}
	f := newFrame(frameCommit, buf, at)
	f.first, f.began = l.nextPos, time.Now()
	l.gathering = append(l.gathering, f)
	return f, at
}

// frameLimit is the size at which a frame is closed: small segments get small frames.
func (l *Log) frameLimit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frameLimitLocked()
}

func (l *Log) frameLimitLocked() int { return int(min(frameBytes, l.segmentSize()/4)) }

// Bound limits the bytes of one or more queues.
type Bound struct {
	log    *Log
	max    int64
	policy Policy
	queues []*Queue

	// used is what the stored records are charged, pending what waits for the disk, need what is being admitted.
	used, pending, need int64
	// ceiling is the limit while the disk has no room, else 0.
	ceiling int64
	// evicting names the queue of which an operator was told that it loses records, until there is room again.
	evicting string
}

// NewBound makes a bound of maxBytes, which counts what records take of the files, a part of it kept for files that are not full (see
// reserve), and not less than their data and a little for each. Queues join it by QueueOptions.
func (l *Log) NewBound(maxBytes int64, p Policy) *Bound {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &Bound{log: l, max: max(maxBytes, 1), policy: p}
	l.bounds = append(l.bounds, b)
	l.bounded += b.max
	return b
}

// Set changes the bound. Where it shrinks, DropOldest makes room at once.
func (b *Bound) Set(maxBytes int64, p Policy) {
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	b.log.bounded -= b.max
	b.max, b.policy = max(maxBytes, 1), p
	b.log.bounded += b.max
	b.log.wakeCommitter()
}

// Used tells how many bytes are charged to the bound, those on the way to the disk included, and how many it allows.
func (b *Bound) Used() (used, limit int64) {
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	return b.used + b.pending, b.limit()
}

// limit is how much may be used. It leaves room for the files that are not full: the segment being written, one kept ready, and the oldest
// one, of which a part is done with.
func (b *Bound) limit() int64 { return b.under(b.max - b.reserve()) }

// under is limit where the disk has room for most.
func (b *Bound) under(most int64) int64 {
	if b.ceiling > 0 {
		return min(b.ceiling, most)
	}
	return most
}

// reserve is the share of this bound in two segments, at most a quarter of it.
func (b *Bound) reserve() int64 {
	total := b.log.boundTotal()
	return reserveOf(b.max, total, b.log.segmentSize())
}

func reserveOf(bound, total, segment int64) int64 {
	return min(int64(float64(2*segment)*(float64(bound)/float64(total))), bound/4)
}

// LimitOf tells how much a bound of maxBytes allows in a log whose bounds, this one among them, are of total bytes together. It is for
// those who change a log in which the bounds are not made.
func (l *Log) LimitOf(maxBytes, total int64) int64 {
	maxBytes = max(maxBytes, 1)
	total = max(total, maxBytes)
	return maxBytes - reserveOf(maxBytes, total, l.o.segmentSize(total))
}

// admit checks that need more bytes fit.
func (b *Bound) admit() error {
	most := b.max - b.reserve()
	switch limit := b.under(most); {
	case b.need > most:
		return fmt.Errorf("%d bytes, room for %d: %w", b.need, most, ErrTooLarge)
	case b.used+b.pending+b.need <= limit:
		return nil
	case b.policy == Refuse:
		return fmt.Errorf("%d of %d bytes used: %w", b.used+b.pending, limit, ErrFull)
	case b.pending == 0 && b.need > limit:
		// Only while the disk has no room: no commit will change that.
		return fmt.Errorf("%d bytes, room for %d: %w", b.need, limit, ErrFull)
	case b.pending+b.need > limit:
		// What waits for the disk cannot be evicted yet.
		return fmt.Errorf("%d bytes of the bound wait for the disk: %w", b.pending, ErrBusy)
	}
	return nil
}
