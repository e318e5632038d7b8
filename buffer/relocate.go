package buffer

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// A queue that is not drained pins segments in which the records of all others are long done with. When the files grow past what the
// bounds allow, what still lives in the emptiest segment is written again at the head, under its old sequences, and the
// segment is freed.

const (
	// crowded is how many small segments, left by restarts, are tolerated before they are joined.
	crowded = 32
	// worthMoving: a segment that is fuller than this is left alone, moving it gains too little.
	worthMoving = 0.75
	// moveShare bounds what is written by relocating: so many times what is appended.
	moveShare = 2
	// moveRetry is how long a segment is left alone after nothing in it could be read.
	moveRetry = 10 * time.Second
	// maxCredit is how much of that may be saved up.
	maxCredit = 256 << 20
)

// relocate moves one frame's worth of records. It returns false if there is nothing to do.
func (l *Log) relocate() (bool, error) {
	l.mu.Lock()
	s := l.emptiest()
	l.mu.Unlock()
	if s == nil {
		return false, nil
	}
	f := l.gatherFrom(s, nil)
	if f.count == 0 {
		return true, nil
	}
	return true, l.commit(job{frame: f, cursors: true, sync: true})
}

// gatherFrom gives a frame with live records of s, of the extents that which says, or of all where that is nil.
func (l *Log) gatherFrom(s *segment, which func(e *extent) bool) *frameBuilder {
	l.mu.Lock()
	s.pins++
	var parts []movePart
	for _, e := range s.extents {
		if e.live > 0 && (which == nil || which(e)) {
			parts = append(parts, movePart{e.queue, pass{log: l, queue: e.queue.id, name: e.queue.name, keys: e.queue.keys, seg: s, lo: e.first, hi: e.last, off: e.start, end: e.end}})
		}
	}
	l.mu.Unlock()
	slices.SortFunc(parts, func(a, b movePart) int {
		return cmp.Or(cmp.Compare(a.q.id, b.q.id), cmp.Compare(a.p.lo, b.p.lo))
	})

	limit := l.frameLimit()
	f := newFrame(frameRelocated, nil, l.time.now())
	var b Batch
	locked := false
	for _, p := range parts {
		if f.size >= limit {
			break
		}
		err := l.gather(f, p, &b, limit)
		if errors.As(err, new(*KeyError)) {
			locked = true // whose key nobody has stays where it is; the others need not wait for that
			continue
		}
		if err != nil {
			break
		}
	}
	l.mu.Lock()
	l.unpin(s)
	if (f.count == 0 || locked && f.size < limit) && s.live > 0 {
		s.stuckUntil = time.Now().Add(moveRetry)
	}
	f.first = l.durableNext()
	l.counts.relocated += int64(f.size)
	l.credit -= int64(f.size)
	l.mu.Unlock()
	l.closeIdle(s)
	if f.count > 0 {
		l.log.Debug("records relocated", "segment", s.name, "records", f.count)
	}
	return f
}

// movePart is an extent that is moved.
type movePart struct {
	q *Queue
	p pass
}

// gather puts the live records of a part into f, as long as that is not full. It returns the error of the disk, or a KeyError.
func (l *Log) gather(f *frameBuilder, part movePart, b *Batch, limit int) error {
	p, q := part.p, part.q
	entry := -1
	for p.lo <= p.hi && f.size < limit {
		res := p.run(b)
		if res.err != nil {
			return res.err
		}
		l.mu.Lock()
		damage, lost := l.noteDamage(q, p, res, b.Recs)
		q.dropDone(b)
		l.mu.Unlock()
		l.reportDamage(damage)
		q.reportLost(lost, p.seg.epoch)
		for i := range b.Recs {
			r := &b.Recs[i]
			if entry < 0 || f.entries[entry].epoch != r.Epoch {
				entry = f.entry(q, r.Epoch, r.Seq)
			}
			f.add(entry, r.Seq, r.received, r.expires, r.Data)
		}
		p.off, p.lo = res.off, res.reached+1
	}
	return nil
}

// emptiest gives the segment to be moved, nil if none needs to be. Log.mu is held.
func (l *Log) emptiest() *segment {
	for _, s := range l.segments {
		// Nobody knows which of its bytes are on the disk, so they are written again.
		if s.suspect && !s.stuck() && s.live > 0 {
			return s
		}
	}
	if l.active == nil || l.credit <= 0 {
		return nil
	}
	size := l.segmentSize()
	files, live, limit := int64(0), int64(0), 2*l.unbound+size
	for _, b := range l.bounds {
		limit += b.max
	}
	small := 0
	var best, oldestSmall *segment
	for _, s := range l.segments {
		files += s.size
		live += s.bytes
		if s == l.active || s.dying || s.stuck() || s.live == 0 {
			continue
		}
		if s.size <= size/8 {
			if small++; oldestSmall == nil {
				oldestSmall = s
			}
		}
		if best == nil || s.fullness() < best.fullness() {
			best = s
		}
	}
	for _, sp := range l.spares {
		files += sp.size
	}
	if live < files/2 {
		limit = max(limit-3*size, 4*size) // most of it is not needed: in time, so that the bound holds meanwhile
	}
	switch {
	case small > crowded:
		return oldestSmall
	case best == nil || best.fullness() > worthMoving:
		return nil
	case files > limit:
		return best
	case l.noSpace && best.bytes+best.bytes/4 < l.active.room():
		return best // it fits without a new segment
	}
	return nil
}

// stuck says that its records could not be read a moment ago, so it is not relocated now.
func (s *segment) stuck() bool { return time.Now().Before(s.stuckUntil) }

// fullness is the part of the room for frames that still is needed.
func (s *segment) fullness() float64 {
	return float64(s.bytes) / float64(max(s.limit()-dataStart-sealReserve(s.size), 1))
}
