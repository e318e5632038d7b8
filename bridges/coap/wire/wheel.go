package wire

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// tick is the resolution of deadlines.
	tick = 50 * time.Millisecond
	// wheelTicks bounds how far away a deadline may be: 102 s, where the longest is 48 s.
	wheelTicks = 2048
)

// timer is a deadline of an exchange. The wheel's mu guards it.
type timer struct {
	next, prev *timer
	due        int64 // tick; 0: not set
	exchange   *Exchange
}

// wheel holds deadlines. Setting and clearing one takes the same short time however many there are, which matters because
// every request that waits for the disk has one, and hardly any of them is ever due.
type wheel struct {
	start time.Time
	wake  chan struct{} // capacity 1: a deadline was set while there was none

	// mu is taken after a shard's mu, never before.
	mu    sync.Mutex
	spoke [wheelTicks]*timer
	count int
	last  int64 // all deadlines up to this tick were handed out
	idle  bool  // run sleeps until there is something to do
}

func (w *wheel) init(start time.Time) {
	w.start, w.wake = start, make(chan struct{}, 1)
}

func (w *wheel) tickOf(t time.Time) int64 { return int64(t.Sub(w.start) / tick) }

// set makes t due after d, at least one tick and at most one turn of the wheel. It replaces an earlier deadline.
func (w *wheel) set(t *timer, d time.Duration) {
	began := time.Now()
	now, due := w.tickOf(began), w.tickOf(began.Add(d+tick-1)) // never early
	w.mu.Lock()
	w.remove(t)
	if w.count == 0 {
		w.last = max(w.last, now-1)
	}
	t.due = min(max(due, w.last+1), w.last+wheelTicks)
	at := &w.spoke[t.due%wheelTicks]
	if t.next = *at; t.next != nil {
		t.next.prev = t
	}
	*at = t
	w.count++
	idle := w.idle
	w.idle = false
	w.mu.Unlock()
	if idle {
		select {
		case w.wake <- struct{}{}:
		default: // woken already
		}
	}
}

// clear takes the deadline of t away.
func (w *wheel) clear(t *timer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(t)
}

// remove is clear for callers that hold mu.
func (w *wheel) remove(t *timer) {
	if t.due == 0 {
		return
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.spoke[t.due%wheelTicks] = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.next, t.prev, t.due = nil, nil, 0
	w.count--
}

// advance appends the exchanges that are due now to due. Their deadlines are cleared.
func (w *wheel) advance(due []*Exchange) []*Exchange {
	now := w.tickOf(time.Now())
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; w.count > 0 && w.last < now; w.last++ {
		first := len(due)
		at := &w.spoke[(w.last+1)%wheelTicks]
		for *at != nil {
			t := *at
			due = append(due, t.exchange)
			w.remove(t)
		}
		slices.Reverse(due[first:]) // those that were set first come first
	}
	return due
}

// run hands what is due to fire and calls sweep now and then, until ctx ends. While there is nothing to wait for it sleeps
// for the time between two sweeps.
func (w *wheel) run(ctx context.Context, fire func(*Exchange), sweep func()) {
	const between = 10 * time.Second
	var due []*Exchange
	swept := time.Now()
	sleep := time.NewTimer(between)
	defer sleep.Stop()
	for {
		w.mu.Lock()
		w.idle = w.count == 0
		wait := between
		if !w.idle {
			wait = tick
		}
		w.mu.Unlock()
		sleep.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-sleep.C:
		}
		due = w.advance(due)
		for _, x := range due {
			fire(x)
		}
		clear(due)
		due = due[:0]
		if time.Since(swept) >= between {
			sweep()
			swept = time.Now()
		}
	}
}
