package buffer

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	firstHeal = 100 * time.Millisecond
	lastHeal  = 10 * time.Second
)

// alarm reports a failing disk.
func (l *Log) alarm(err error) {
	l.mu.Lock()
	l.counts.alarms++
	l.counts.lastError = err
	l.mu.Unlock()
	l.log.Error("the disk failed", "err", err)
	if l.o.OnAlarm != nil {
		l.o.OnAlarm(err)
	}
}

// rewrite puts the frame, which still is in memory, into a new segment after writing or syncing failed. The old one is never written
// again: after a failed fsync nobody knows which of its unsynced bytes are on disk.
func (l *Log) rewrite(f *frameBuilder) (*segment, int64, error) {
	if f == nil {
		f = newFrame(frameCommit, nil, l.time.now())
		f.closeRecords(l.epoch)
	}
	return l.writeFrame(f, true)
}

// suspect marks a segment that could not be written or synced.
func (l *Log) suspect(s *segment) {
	l.mu.Lock()
	s.suspect = true
	l.mu.Unlock()
}

// giveUp fails everything that waits for the disk. Its sequences are not given again: nobody knows what a later start will find.
func (l *Log) giveUp(j job, saved []*Queue, cause error) {
	l.mu.Lock()
	for _, q := range saved {
		l.markDirty(q)
		q.urgent, q.announce = true, 2
	}
	frames := l.gathering
	if f := j.frame; f != nil && f.kind == frameCommit && f.count > 0 {
		frames = append([]*frameBuilder{f}, frames...)
	}
	l.gathering, l.gathered = nil, 0
	type loss struct {
		q    *Queue
		span span
	}
	var losses []loss
	for _, q := range l.order {
		if q.next-1 > q.stored {
			lo := q.stored + 1
			q.stored = q.next - 1
			q.failed += l.finish(q, lo, q.stored)
			q.urgent = true
			losses = append(losses, loss{q, span{lo, q.stored}})
		}
		if q.bound != nil {
			q.bound.pending -= q.pending
		}
		q.pending, q.gather = 0, nil
	}
	if len(frames) > 0 {
		lo, hi := frames[0].first, frames[len(frames)-1].last()
		l.losePos(lo, hi)
		l.settle(hi)
		l.counts.failed += hi - lo + 1
	}
	waiters := l.takeWaiters(l.nextPos - 1)
	l.failed, l.healGap = cause, firstHeal
	l.healAt = time.Now().Add(firstHeal)
	l.counts.lastError = cause
	l.mu.Unlock()
	err := fmt.Errorf("commit: %w: %w", ErrFailed, cause)
	for _, w := range waiters {
		w.f(err)
	}
	for _, x := range losses {
		x.q.report(Failed, []span{x.span}, l.Epoch()) // appended in this life of the log
	}
	l.log.Error("nothing can be written", "err", cause)
	if l.o.OnAlarm != nil {
		l.o.OnAlarm(cause)
	}
}

// heal tries to write again: a new segment with the state of all queues.
func (l *Log) heal(closing bool) (time.Duration, bool) {
	if wait := time.Until(l.healAt); wait > 0 && !closing {
		return wait, true
	}
	seg, err := l.roll(0)
	if err == nil {
		err = l.sync(seg)
	}
	l.mu.Lock()
	if err == nil {
		l.failed, l.healGap = nil, 0
		l.wakeFiller() // it makes no spare while nothing can be written
	} else {
		l.failed = err
		l.healGap = min(2*l.healGap, lastHeal)
		l.healAt = time.Now().Add(l.healGap)
		if closing {
			l.closeErr = errors.Join(l.closeErr, err)
		}
	}
	wait := l.healGap
	l.mu.Unlock()
	if err != nil {
		return wait, !closing
	}
	l.healed()
	return 0, true
}

// healed ends an alarm after something was written and synced without trouble.
func (l *Log) healed() {
	l.mu.Lock()
	alarmed := l.counts.lastError != nil
	l.counts.lastError = nil
	readable := l.stalled() == nil
	l.mu.Unlock()
	if !alarmed {
		return
	}
	l.log.Info("the disk can be written again")
	if readable && l.o.OnAlarm != nil {
		l.o.OnAlarm(nil)
	}
}

// removeSegment forgets a segment whose file is taken away. Log.mu is held; no reader has it pinned.
func (l *Log) removeSegment(s *segment) {
	s.gone = true
	l.segments = slices.DeleteFunc(l.segments, func(x *segment) bool { return x == s })
	l.dead = slices.DeleteFunc(l.dead, func(x *segment) bool { return x == s })
	l.fileMu.Lock()
	f := s.file
	s.file = nil
	l.fileMu.Unlock()
	if f != nil {
		if err := f.Close(); err != nil {
			l.log.Warn("closing a segment failed", "segment", s.name, "err", err)
		}
	}
}
