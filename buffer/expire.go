package buffer

import (
	"sync"
	"time"
)

const (
	// expireEvery is how often the log looks for records that expired where nobody reads them.
	expireEvery = time.Second
	// expirySpread is how far apart the ages, and the expiries, within one extent may lie: an extent leaves when its last record expired.
	expirySpread = 5 * time.Minute
	// expireBytes is about how much is given up between two commits.
	expireBytes = 1 << 20
)

// expiry is the committer's round through all queues for extents in which everything expired. It goes on where it left off, a piece at a
// time and in turns with commits, so that neither a large backlog nor many extents hold up a device.
type expiry struct {
	// due is when the next round begins, queue and after how far this one has come.
	due   time.Time
	queue int
	after Seq
	// took says that the last step gave records up: then it is a commit's turn.
	took bool

	// turn is taken out while records are given up, and for good by StopExpiring.
	turn     chan struct{}
	stopOnce sync.Once
}

func newExpiry() expiry {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return expiry{turn: turn}
}

// StopExpiring ends giving up records because of their age, for an owner who will no longer count them. When it returns no OnDrop with
// Expired is called any more. Reading and everything else goes on; the next Open begins anew.
func (l *Log) StopExpiring() {
	l.expiry.stopOnce.Do(func() { <-l.expiry.turn })
}

// expireSome gives up a piece of what expired, and tells whether there was any. Who reads a record before that decides himself.
func (l *Log) expireSome() bool {
	x := &l.expiry
	if x.took {
		x.took = false
		return false
	}
	if time.Now().Before(x.due) {
		return false
	}
	select {
	case <-x.turn:
		defer func() { x.turn <- struct{}{} }()
	default:
		return false // stopped, or about to be
	}
	l.mu.Lock()
	q, c := l.cutExpired()
	l.mu.Unlock()
	if q == nil {
		x.due, x.queue, x.after = time.Now().Add(expireEvery), 0, 0
		return false
	}
	l.giveAway(q, Expired, c)
	x.took = true
	return true
}

// cutExpired takes a run of expired extents out of the next queue that has any. It returns nil at the end of a round. A queue without an
// owner is left alone: nobody would hear of it. Log.mu is held.
func (l *Log) cutExpired() (*Queue, cutting) {
	if !l.expiring {
		return nil, cutting{}
	}
	x := &l.expiry
	for at := l.time.now(); x.queue < len(l.order); x.queue, x.after = x.queue+1, 0 {
		q := l.order[x.queue]
		if !q.declared {
			continue
		}
		if lo, hi := q.firstExpired(at, x.after); lo > 0 {
			x.after = hi
			c := l.cut(q, Expired, lo, hi)
			q.expired += c.count
			return q, c
		}
	}
	return nil, cutting{}
}

// firstExpired gives the first run behind after of records in extents of which all records expired, 0 if there is none.
func (q *Queue) firstExpired(at int64, after Seq) (lo, hi Seq) {
	old := int64(-1 << 62)
	if q.maxAge > 0 {
		old = at - q.maxAge.Milliseconds()
	}
	var bytes int64
	for _, e := range q.extents[q.search(after+1):] {
		expired := e.live > 0 && (e.expires <= at || e.newest <= old)
		switch {
		case expired && lo == 0:
			lo, hi = e.first, e.last
		case expired && e.first == hi+1 && bytes < expireBytes:
			hi = e.last
		case lo > 0:
			return lo, hi
		}
		if expired {
			bytes += e.end - e.start
		}
	}
	return lo, hi
}
