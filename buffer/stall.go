package buffer

import (
	"fmt"
	"slices"
	"time"
)

const (
	// stallTime is how long a reader stands before what cannot be read is given up, on a disk that otherwise works.
	stallTime = 10 * time.Minute
	// stallProof is how long ago an fsync may have worked that proves this.
	stallProof = time.Minute
)

// stall says since when the reader of a queue cannot read on.
type stall struct {
	seg   *segment
	off   int64
	since time.Time
	err   error
}

// unreadable notes that a pass failed. It returns true, with the segment still pinned, if what it could not read is to be given up;
// otherwise it lets go of the segment.
func (l *Log) unreadable(q *Queue, p pass, res passResult, drain bool) bool {
	if l.readOnly {
		return len(res.damage) > 0 // nothing is lost by it: the files stay as they are
	}
	now := time.Now()
	l.mu.Lock()
	begun := drain && q.stall.err == nil
	if drain && (q.stall.seg != p.seg || q.stall.off != p.off || begun) {
		q.stall = stall{seg: p.seg, off: p.off, since: now}
	}
	if drain {
		q.stall.err = res.err
	}
	works := l.failed == nil && now.Sub(l.lastSync) < stallProof
	over := drain && works && len(res.damage) > 0 && now.Sub(q.stall.since) >= stallTime
	if begun {
		l.counts.alarms++
	}
	if over {
		q.stall.since = now
		p.seg.held = true
	} else {
		l.unpin(p.seg)
	}
	l.mu.Unlock()
	if begun {
		err := fmt.Errorf("read %s: %w", p.seg.name, res.err)
		l.log.Error("reading the disk failed; records wait until it works", "queue", q.name, "segment", p.seg.name, "err", res.err)
		if l.o.OnAlarm != nil {
			l.o.OnAlarm(err)
		}
	}
	if over {
		l.log.Error("records are given up that could not be read for long", "queue", q.name, "segment", p.seg.name, "err", res.err)
	}
	return over
}

// readAgain ends the alarm of a reader that stood.
func (l *Log) readAgain(q *Queue) {
	l.mu.Lock()
	stood := q.stall.err != nil
	q.stall = stall{}
	well := l.counts.lastError == nil && l.stalled() == nil
	l.mu.Unlock()
	if !stood {
		return
	}
	l.log.Info("the disk can be read again", "queue", q.name)
	if well && l.o.OnAlarm != nil {
		l.o.OnAlarm(nil)
	}
}

// stalled gives the error that keeps a reader from reading on, if any. Log.mu is held.
func (l *Log) stalled() error {
	i := slices.IndexFunc(l.order, func(q *Queue) bool { return q.stall.err != nil && !q.dropped })
	if i < 0 {
		return nil
	}
	q := l.order[i]
	return fmt.Errorf("read %s of %s: %w", q.stall.seg.name, q.name, q.stall.err)
}
