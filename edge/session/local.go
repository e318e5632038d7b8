package session

import (
	"context"
	"sync"

	"tidegate/message"
)

// localQueue is how many messages wait for one handler of this process.
const localQueue = 1024

// local is a subscription of this process.
type local struct {
	mu    sync.Mutex // guards closed against deliver
	ch    chan *message.Message
	ended bool
	drop  func(string, int)
}

func (l *local) client() string { return "" }
func (l *local) online() bool   { return true }
func (l *local) several() bool  { return false }

// takes leaves it to deliver to find out.
func (l *local) takes(Entry) outcome { return queued }

func (l *local) deliver(e Entry) outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return refused
	}
	select {
	case l.ch <- e.Msg:
		return queued
	default:
		l.drop(dropHandler, 1)
		return dropped
	}
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
