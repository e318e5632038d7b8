package buffer

import (
	"context"
	"fmt"
	"slices"
)

// waiter is a callback for a position.
type waiter struct {
	pos Pos
	f   func(error)
}

// posRange is a range of positions, both ends included.
type posRange struct{ lo, hi Pos }

// Durable tells whether the record with position p, and all before it that did not fail, are on disk.
func (l *Log) Durable(p Pos) bool {
	if p > l.settled.Load() {
		return false
	}
	if !l.anyLost.Load() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.lostPos(p)
}

// Settled tells whether it is decided what becomes of the record with position p, and then the error that keeps it from being durable. A log
// that is closed decides nothing any more.
func (l *Log) Settled(p Pos) (bool, error) {
	switch {
	case p > l.settled.Load():
		return false, nil
	case !l.anyLost.Load():
		return true, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outcome(p)
}

// Notify calls f once: with nil when the record with position p is durable, at once if it is, else with the error that prevents it. f runs
// on the committing goroutine: it must be quick and must not wait for the log.
func (l *Log) Notify(p Pos, f func(error)) {
	l.mu.Lock()
	done, err := l.outcome(p)
	if !done {
		l.waiters = append(l.waiters, waiter{p, f})
	}
	l.mu.Unlock()
	if done {
		f(err)
	}
}

// Wait blocks until the record with position p is durable, or cannot be, or ctx ends.
func (l *Log) Wait(ctx context.Context, p Pos) error {
	if l.Durable(p) {
		return nil
	}
	done := make(chan error, 1)
	l.Notify(p, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WaitAll waits until everything appended so far is durable, after which Queue.Stats counts it among the records. It returns ErrFailed where
// the record appended last cannot be, ErrClosed, or the error of ctx.
func (l *Log) WaitAll(ctx context.Context) error {
	l.mu.Lock()
	p := l.nextPos - 1
	l.mu.Unlock()
	return l.Wait(ctx, p)
}

// settle notes that everything up to p is durable or lost. Log.mu is held.
func (l *Log) settle(p Pos) {
	l.durable = p
	l.settled.Store(p)
}

// outcome tells what became of p. Log.mu is held.
func (l *Log) outcome(p Pos) (bool, error) {
	switch {
	case p == 0:
		return true, nil
	case l.lostPos(p):
		return true, fmt.Errorf("commit: %w", ErrFailed)
	case p <= l.durable:
		return true, nil
	case l.closed:
		return true, fmt.Errorf("commit: %w", ErrClosed)
	}
	return false, nil
}

// lostPos tells whether p failed.
func (l *Log) lostPos(p Pos) bool {
	return slices.ContainsFunc(l.lost, func(r posRange) bool { return r.lo <= p && p <= r.hi })
}

// maxLostRanges bounds the memory of failed positions. Beyond it neighbours are joined: a durable record between them then
// counts as failed, which is wrong to the safe side.
const maxLostRanges = 256

// losePos notes that lo..hi will never be durable. Log.mu is held.
func (l *Log) losePos(lo, hi Pos) {
	l.anyLost.Store(true)
	if n := len(l.lost); n > 0 && l.lost[n-1].hi+1 >= lo {
		l.lost[n-1].hi = hi
		return
	}
	l.lost = append(l.lost, posRange{lo, hi})
	if len(l.lost) > maxLostRanges {
		l.lost[1].lo = l.lost[0].lo
		l.lost = l.lost[1:]
	}
}

// takeWaiters removes the waiters for positions up to p and returns them. Log.mu is held.
func (l *Log) takeWaiters(p Pos) []waiter {
	var out []waiter
	keep := l.waiters[:0]
	for _, w := range l.waiters {
		if w.pos <= p {
			out = append(out, w)
		} else {
			keep = append(keep, w)
		}
	}
	clear(l.waiters[len(keep):])
	l.waiters = keep
	return out
}
