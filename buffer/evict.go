package buffer

import "slices"

// evictOverBound makes room in every bound that what waits for the disk would overfill.
func (l *Log) evictOverBound() {
	for {
		l.mu.Lock()
		q, c := l.evictSome()
		l.mu.Unlock()
		if q == nil {
			return
		}
		l.giveAway(q, Evicted, c)
	}
}

// evictSome takes the oldest records out of the first bound that is over its limit: about a thirty-second of the bound, so that it
// is not done for every record. It returns nil if there is none. Log.mu is held.
func (l *Log) evictSome() (*Queue, cutting) {
	for _, b := range l.bounds {
		l.noteRoom(b)
		// Not the lowered limit of a full disk: there only emptying a whole segment helps, see evictForSpace.
		over := b.used + b.pending - (b.max - b.reserve())
		if over <= 0 || b.policy != DropOldest {
			continue
		}
		if q, c := l.evictFrom(b, max(over, b.max/32)); q != nil {
			return q, c
		}
	}
	return nil, cutting{}
}

// evictFrom takes about size bytes of the oldest records out of the first queue of b that has any. Log.mu is held.
func (l *Log) evictFrom(b *Bound, size int64) (*Queue, cutting) {
	for _, q := range b.queues {
		if q.records == 0 || len(q.extents) == 0 {
			continue
		}
		lo, hi := q.extents[0].first, Seq(0)
		for _, e := range q.extents {
			bytes := e.liveBytes()
			if bytes <= size {
				hi = e.last
				if size -= bytes; size <= 0 {
					break
				}
				continue
			}
			hi = q.part(e, size)
			break
		}
		l.noteEvicting(b, q)
		c := l.cut(q, Evicted, lo, hi)
		q.evicted += c.count
		l.counts.evicted += c.count
		return q, c
	}
	return nil, cutting{}
}

// part gives the sequence up to which the live records of e make up about size bytes, at least one of them.
func (q *Queue) part(e *extent, size int64) Seq {
	n := uint64(float64(e.live)*float64(size)/float64(e.liveBytes())) + 1
	for _, s := range q.done.missing(nil, e.first, e.last) {
		if have := uint64(s.hi-s.lo) + 1; have < n {
			n -= have
			continue
		}
		return s.lo + Seq(n) - 1
	}
	return e.last
}

// evictForSpace is for a full disk: it evicts what still is needed of one segment, so that its file, of at least so many bytes, can be
// used again. It reports false if no segment can be emptied in this way.
func (l *Log) evictForSpace(least int64) bool {
	l.mu.Lock()
	s := l.expendable(least)
	if s == nil {
		l.mu.Unlock()
		return false
	}
	type part struct {
		q *Queue
		c cutting
	}
	var parts []part
	for _, e := range slices.Clone(s.extents) {
		if e.live == 0 {
			continue
		}
		l.noteEvicting(e.queue.bound, e.queue)
		c := l.cut(e.queue, Evicted, e.first, e.last)
		e.queue.evicted += c.count
		l.counts.evicted += c.count
		parts = append(parts, part{e.queue, c})
	}
	l.mu.Unlock()
	for _, p := range parts {
		l.giveAway(p.q, Evicted, p.c)
	}
	l.noteEvicted()
	return true
}

// noteEvicted writes the state of the queues where that fits behind what is in the active segment, as the file that holds what was evicted
// is about to be used for something else: without that a kill in between would make it seem damaged.
func (l *Log) noteEvicted() {
	s := l.active
	if !s.writable() {
		return
	}
	l.mu.Lock()
	f := l.checkpoint()
	l.mu.Unlock()
	if int64(len(f.buf)) > s.tight() {
		return
	}
	off := s.end
	if l.put(f, s) == nil && l.sync(s) == nil {
		l.publish(job{frame: f, sync: true}, s, off)
	}
}

// stays reports whether its records may not be evicted.
func (e *extent) stays() bool {
	q := e.queue
	return q.stayPut && !q.log.desperate || q.bound == nil || q.bound.policy != DropOldest
}

// expendable gives the segment to be emptied on a full disk: the oldest whose records may all be evicted, and if possible one that holds
// only records of queues which are the first to be evicted from. Its file has at least so many bytes. Log.mu is held.
func (l *Log) expendable(least int64) *segment {
	var second *segment
	for _, s := range l.segments {
		if s.live == 0 || s.size < least || !l.emptiable(s) {
			continue
		}
		first := true
		for _, e := range s.extents {
			first = first && (e.live == 0 || e.queue.bound.queues[0] == e.queue)
		}
		switch {
		case first:
			return s
		case second == nil:
			second = s
		}
	}
	return second
}

// emptiable reports whether a segment has nothing that keeps its file from being used again, or only what may be evicted. Log.mu is held.
func (l *Log) emptiable(s *segment) bool {
	if s.pins > 0 || s.suspect || s.held || s == l.active || s == l.anchor {
		return false
	}
	return !slices.ContainsFunc(s.extents, func(e *extent) bool { return e.live > 0 && e.stays() })
}

// noteEvicting tells an operator once that a bound begins to lose records, and why. Log.mu is held.
func (l *Log) noteEvicting(b *Bound, q *Queue) {
	if b.evicting != "" {
		return
	}
	b.evicting = q.name
	reason := "the bound is reached"
	if l.noSpace {
		reason = "the disk has no room"
	}
	l.log.Warn("the oldest records are being evicted", "queue", q.name, "reason", reason, "used", b.used+b.pending, "bound", b.max)
}

// noteRoom tells when a bound that lost records has room again: an eighth of it, so that this is not told after each eviction.
// Log.mu is held.
func (l *Log) noteRoom(b *Bound) {
	if limit := b.limit(); b.evicting != "" && !l.noSpace && b.used+b.pending <= limit-limit/8 {
		l.log.Info("no more records are evicted", "queue", b.evicting, "used", b.used+b.pending, "bound", b.max)
		b.evicting = ""
	}
}
