package buffer

import (
	"context"
	"fmt"
	"slices"
)

// Tail is a second reader of a queue, beside the goroutine in Queue.Next: with it, what comes in can be read while Next is still far
// behind. It gives up nothing: what cannot be read is left for Next. One goroutine at a time may use it. Close must be called.
type Tail struct {
	q    *Queue
	wake chan struct{}
	at   place
}

// Tail makes another reader of q.
func (q *Queue) Tail() *Tail {
	t := &Tail{q: q, wake: make(chan struct{}, 1)}
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	q.tails = append(q.tails, t)
	return t
}

// Close ends the use of t.
func (t *Tail) Close() {
	l := t.q.log
	l.mu.Lock()
	t.q.tails = slices.DeleteFunc(t.q.tails, func(x *Tail) bool { return x == t })
	l.mu.Unlock()
	l.closeIdle(t.at.segment())
	t.at = place{}
}

// Next is Queue.Next, apart from what that gives up.
func (t *Tail) Next(ctx context.Context, after Seq, b *Batch) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		left := t.at.segment()
		found, err := t.q.pull(after, b, &t.at, false)
		if left != t.at.segment() {
			t.q.log.closeIdle(left)
		}
		if found || err != nil {
			return err
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
		case <-t.q.log.stop:
			return fmt.Errorf("read %s: %w", t.q.name, ErrClosed)
		}
	}
}

// Needed tells whether any of the records lo..hi is not done with yet.
func (q *Queue) Needed(lo, hi Seq) bool {
	if lo > hi {
		return false
	}
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return q.done.count(lo, hi) < uint64(hi-lo)+1
}

// Stored is the last sequence that is on disk, or was: the next record to be read behind it is one that is not durable yet.
func (q *Queue) Stored() Seq {
	q.log.mu.Lock()
	defer q.log.mu.Unlock()
	return q.stored
}
