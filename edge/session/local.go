package session

import (
	"context"
	"errors"
	"sync"

	"tidegate/message"
)

// localQueue is how many messages wait for one handler of this process.
const localQueue = 1024

// local is a subscription of this process.
type local struct {
	mu       sync.Mutex // guards what follows, and ch against being closed while deliver uses it
	reserved int        // places in ch that are given away
	ended    bool
	ch       chan *message.Message
	drop     func(string, int)
}

// errNoRoom says that a handler of this process has no room for a message that all are to get or nobody.
var errNoRoom = errors.New("a handler has no room")

// reserve keeps room for one message in all handlers of this process that are among picks, or in none.
func reserve(picks []pick) bool {
	for i := range picks {
		l, ok := picks[i].to.(*local)
		if ok && !l.reserve(1) {
			unreserve(picks[:i])
			return false
		}
		picks[i].e.reserved = ok
	}
	return true
}

// unreserve gives the room back.
func unreserve(picks []pick) {
	for i := range picks {
		if l, ok := picks[i].to.(*local); ok {
			l.reserve(-1)
		}
	}
}

// reserve gives n places away, or takes them back. It reports whether they are there; one that has ended needs none.
func (l *local) reserve(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended && n > 0 && len(l.ch)+l.reserved+n > cap(l.ch) {
		return false
	}
	l.reserved += n
	return true
}

func (l *local) client() string { return "" }
func (l *local) online() bool   { return true }
func (l *local) several() bool  { return false }

// takes leaves it to deliver to find out.
func (l *local) takes(Entry) outcome { return queued }

func (l *local) deliver(e Entry) outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.reserved {
		l.reserved--
	}
	switch {
	case l.ended:
		return refused
	case len(l.ch)+l.reserved < cap(l.ch): // only here something is added
		l.ch <- e.Msg
		return queued
	}
	l.drop(dropHandler, 1)
	return dropped
}

// Subscribe gives every message that filter selects, other than retained ones, to h, one after the other, from the
// goroutine that calls run. Up to 1024 messages wait; what comes at that bound is dropped and counted, and Publish says
// so. run returns when ctx ends or cancel is called; cancel may be called more than once.
func (m *Manager) Subscribe(filter string, h message.Handler, failed func(error)) (run func(context.Context), cancel func()) {
	l := &local{ch: make(chan *message.Message, localQueue), drop: m.drop}
	m.tree.add(l, &Subscription{Filter: filter, QoS: 2, RetainAsPublished: true})
	cancel = func() {
		m.tree.remove(l, filter)
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.ended {
			l.ended = true
			close(l.ch)
		}
	}
	run = func(ctx context.Context) {
		for {
			select {
			case <-ctx.Done():
				return
			case msg, ok := <-l.ch:
				if !ok || ctx.Err() != nil {
					return
				}
				if err := h(ctx, *msg); err != nil {
					failed(err)
				}
			}
		}
	}
	return run, cancel
}
