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
		over := b.used + b.pending - b.limit()
		if over <= 0 || b.policy != DropOldest {
			continue
		}
		if q, c := l.evictFrom(b, max(over, b.limit()/32)); q != nil {
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
		c := l.cut(q, lo, hi)
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

// evictForSpace is for a full disk: it takes the oldest records of the fullest bound that may drop any, until a segment is empty and its
// file can be used again.
func (l *Log) evictForSpace() {
	for {
		l.mu.Lock()
		var fullest *Bound
		for _, b := range l.bounds {
			if b.policy == DropOldest && b.used > 0 && (fullest == nil || b.used > fullest.used) {
				fullest = b
			}
		}
		if fullest == nil || slices.ContainsFunc(l.dead, func(s *segment) bool { return s.pins == 0 && s != l.anchor }) {
			l.mu.Unlock()
			return
		}
		q, c := l.evictFrom(fullest, max(l.segmentSize()/16, 1))
		l.mu.Unlock()
		if q == nil {
			return
		}
		l.giveAway(q, Evicted, c)
	}
}
