package buffer

import "time"

const (
	// expireEvery is how often the log looks for records that expired where nobody reads them.
	expireEvery = time.Second
	// expirySpread is how far apart the ages, and the expiries, within one extent may lie: an extent leaves when its last record expired.
	expirySpread = 5 * time.Minute
)

// expireDue gives up the records that expired, an extent at a time. Who reads a record before that decides himself.
func (l *Log) expireDue() {
	now := time.Now()
	if now.Before(l.expireAt) {
		return
	}
	l.mu.Lock()
	expiring := l.expiring
	l.mu.Unlock()
	if !expiring {
		return
	}
	l.expireAt = now.Add(expireEvery)
	at := l.time.now()
	for {
		l.mu.Lock()
		q, c := l.expireSome(at)
		l.mu.Unlock()
		if q == nil {
			return
		}
		l.giveAway(q, Expired, c)
	}
}

// expireSome takes a run of expired extents out of the first queue that has any. It returns nil if there is none. Log.mu is held.
func (l *Log) expireSome(at int64) (*Queue, cutting) {
	for _, q := range l.order {
		if lo, hi := q.firstExpired(at); lo > 0 {
			c := l.cut(q, lo, hi)
			q.expired += c.count
			return q, c
		}
	}
	return nil, cutting{}
}

// firstExpired gives the first run of records in extents of which all records expired, 0 if there is none.
func (q *Queue) firstExpired(at int64) (lo, hi Seq) {
	old := int64(-1 << 62)
	if q.maxAge > 0 {
		old = at - q.maxAge.Milliseconds()
	}
	for _, e := range q.extents {
		expired := e.live > 0 && (e.expires <= at || e.newest <= old)
		switch {
		case expired && lo == 0:
			lo, hi = e.first, e.last
		case expired && e.first == hi+1:
			hi = e.last
		case lo > 0:
			return lo, hi
		}
	}
	return lo, hi
}
