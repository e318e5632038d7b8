package opcua

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"tidegate/message"
)

// fakeBus stands for the gateway: it keeps what is published, and says that it is on disk a little later.
type fakeBus struct {
	mu       sync.Mutex
	busy     bool
	offers   int // while it was
	refuse   map[string]error
	commit   time.Duration // how long a record takes to the disk
	messages []message.Message
	handlers map[string]message.Handler
	durable  uint64
	waiting  []pendingTicket
}

type pendingTicket struct {
	pos uint64
	f   func(error)
}

func newBus() *fakeBus {
	return &fakeBus{handlers: map[string]message.Handler{}, refuse: map[string]error{}, commit: 5 * time.Millisecond}
}

func (b *fakeBus) Publish(m message.Message) (message.Ticket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refuse[m.Topic]; err != nil {
		return message.Ticket{}, err
	}
	if b.busy {
		b.offers++
		return message.Ticket{}, fmt.Errorf("buffer full: %w", message.ErrBusy)
	}
	b.messages = append(b.messages, m)
	return message.NewTicket(b, uint64(len(b.messages))), nil
}

// Durable, Notify and Wait make the bus a message.Waiter.
func (b *fakeBus) Durable(pos uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return pos <= b.durable
}

func (b *fakeBus) Notify(pos uint64, f func(error)) {
	b.mu.Lock()
	if pos <= b.durable {
		b.mu.Unlock()
		f(nil)
		return
	}
	b.waiting = append(b.waiting, pendingTicket{pos, f})
	first := len(b.waiting) == 1
	commit := b.commit
	b.mu.Unlock()
	if first && commit >= 0 {
		time.AfterFunc(commit, func() { b.flush(nil) })
	}
}

func (b *fakeBus) Wait(context.Context, uint64) error { return nil }

// flush is one commit.
func (b *fakeBus) flush(err error) {
	b.mu.Lock()
	done := b.waiting
	b.waiting = nil
	if err == nil {
		b.durable = uint64(len(b.messages))
	}
	b.mu.Unlock()
	for _, w := range done {
		w.f(err)
	}
}

func (b *fakeBus) Subscribe(filter string, h message.Handler) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handlers[filter] = h
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.handlers, filter)
	}, nil
}

func (b *fakeBus) Retained(string) []message.Message { return nil }

func (b *fakeBus) refusals() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.offers
}

func (b *fakeBus) setBusy(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy = on
}

// deliver gives a message to whoever subscribes to its topic.
func (b *fakeBus) deliver(m message.Message) error {
	b.mu.Lock()
	h := b.handlers[m.Topic]
	b.mu.Unlock()
	if h == nil {
		return fmt.Errorf("nobody subscribes to %s", m.Topic)
	}
	return h(context.Background(), m)
}

// on returns what was published under a topic.
func (b *fakeBus) on(topic string) []message.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []message.Message
	for _, m := range b.messages {
		if m.Topic == topic {
			list = append(list, m)
		}
	}
	return list
}

func (b *fakeBus) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.messages)
}

// last waits for a value under a topic that satisfies ok, and returns its payload.
func (b *fakeBus) last(t *testing.T, topic string, timeout time.Duration, ok func(payload string) bool) string {
	t.Helper()
	timeout = max(timeout, time.Minute)
	deadline := time.Now().Add(timeout)
	seen := ""
	for time.Now().Before(deadline) {
		for _, m := range b.on(topic) {
			if seen = string(m.Payload); ok(seen) {
				return seen
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: not seen within %s; the last was %q", topic, timeout, seen)
	return ""
}

func anyPayload(string) bool { return true }

// tally of counters: what came of each one.
type counted struct {
	counters   int // that anything came of
	values     int // different ones
	repeated   int // came more than once
	lost       int // between the first and the last of a counter
	disordered int // first arrivals below an earlier one
	least      int // the lowest last value of all counters
}

// counters adds up the values of topics that begin with prefix and count up.
func (b *fakeBus) counters(t *testing.T, prefix string) counted {
	t.Helper()
	b.mu.Lock()
	messages := b.messages // only ever appended to; parsing 300,000 of them would hold the bridge up for seconds
	b.mu.Unlock()
	type state struct {
		seen        map[int]bool
		first, last int
	}
	all := map[string]*state{}
	var c counted
	for _, m := range messages {
		if len(m.Topic) < len(prefix) || m.Topic[:len(prefix)] != prefix {
			continue
		}
		var p struct {
			V *int   `json:"v"`
			Q string `json:"q"`
		}
		if err := json.Unmarshal(m.Payload, &p); err != nil {
			t.Fatalf("%s: %s: %v", m.Topic, m.Payload, err)
		}
		if p.V == nil {
			continue
		}
		s := all[m.Topic]
		if s == nil {
			s = &state{seen: map[int]bool{}, first: *p.V, last: *p.V}
			all[m.Topic] = s
		}
		switch {
		case s.seen[*p.V]:
			c.repeated++
			continue
		case *p.V < s.last:
			c.disordered++
			s.first = min(s.first, *p.V)
		}
		s.seen[*p.V] = true
		s.last = max(s.last, *p.V)
		c.values++
	}
	c.counters = len(all)
	for _, s := range all {
		c.lost += s.last - s.first + 1 - len(s.seen)
		if c.least == 0 || s.last < c.least {
			c.least = s.last
		}
	}
	return c
}

// highest is the highest value that a counter's topic has seen.
func (b *fakeBus) highest(topic string) int {
	highest := -1
	for _, m := range b.on(topic) {
		var p struct {
			V *int `json:"v"`
		}
		if json.Unmarshal(m.Payload, &p) == nil && p.V != nil {
			highest = max(highest, *p.V)
		}
	}
	return highest
}
