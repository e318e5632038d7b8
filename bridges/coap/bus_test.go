package coap

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"tidegate/access"
	"tidegate/message"
)

// bus is a bridges.Bus in memory, with a disk that the test commands.
type bus struct {
	disk disk

	mu        sync.Mutex
	refuse    func(message.Message) error // nil: everything is taken
	retained  map[string]message.Message
	published []message.Message
	counted   int
	forgetful bool // counts what is published and keeps none of it
}

func newBus() *bus { return &bus{retained: map[string]message.Message{}} }

func (b *bus) Publish(m message.Message) (message.Ticket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse != nil {
		if err := b.refuse(m); err != nil {
			return message.Ticket{}, err
		}
	}
	b.counted++
	if !b.forgetful {
		b.published = append(b.published, m)
	}
	if m.Retain {
		if len(m.Payload) == 0 {
			delete(b.retained, m.Topic)
		} else {
			b.retained[m.Topic] = m
		}
	}
	return b.disk.ticket(), nil
}

func (b *bus) Subscribe(string, message.Handler) (func(), error) { return func() {}, nil }

func (b *bus) Retained(filter string) []message.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m, ok := b.retained[filter]; ok {
		return []message.Message{m}
	}
	var out []message.Message
	for _, topic := range slices.Sorted(maps.Keys(b.retained)) {
		if message.Match(filter, topic) {
			out = append(out, b.retained[topic])
		}
	}
	return out
}

func (b *bus) retain(m message.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retained[m.Topic] = m
}

func (b *bus) setRefuse(f func(message.Message) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = f
}

// list returns what was published.
func (b *bus) list() []message.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.published)
}

// count returns how many messages with that payload were published.
func (b *bus) count(payload []byte) int {
	n := 0
	for _, m := range b.list() {
		if bytes.Equal(m.Payload, payload) {
			n++
		}
	}
	return n
}

// disk is a message.Waiter. Without a mode everything is durable at once.
type disk struct {
	mu      sync.Mutex
	slow    bool
	delay   func() time.Duration // nil: what is slow becomes durable by settle
	last    uint64
	waiting map[uint64]func(error)
	done    map[uint64]error
	// batch and gathered are of commits.
	batch    chan struct{}
	gathered []func(error)
}

func (d *disk) ticket() message.Ticket {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.slow {
		return message.Ticket{}
	}
	d.last++
	if d.delay != nil {
		pos := d.last
		time.AfterFunc(d.delay(), func() { d.settle(pos, nil) })
	}
	return message.NewTicket(d, d.last)
}

func (d *disk) setSlow(delay func() time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow, d.delay = true, delay
}

// settle makes one position durable, or fail.
func (d *disk) settle(pos uint64, err error) {
	d.mu.Lock()
	f := d.waiting[pos]
	delete(d.waiting, pos)
	if d.done == nil {
		d.done = map[uint64]error{}
	}
	d.done[pos] = err
	d.mu.Unlock()
	if f != nil {
		f(err)
	}
}

// settleAll makes everything durable, or fail.
func (d *disk) settleAll(err error) {
	d.mu.Lock()
	last := d.last
	d.mu.Unlock()
	for pos := uint64(1); pos <= last; pos++ {
		d.settle(pos, err)
	}
}

// pending is how many records wait for the disk.
func (d *disk) pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}

func (d *disk) Durable(pos uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	err, ok := d.done[pos]
	return ok && err == nil
}

func (d *disk) Notify(pos uint64, f func(error)) {
	d.mu.Lock()
	if d.batch != nil {
		d.gathered = append(d.gathered, f)
		d.mu.Unlock()
		select {
		case d.batch <- struct{}{}:
		default: // told already
		}
		return
	}
	err, ok := d.done[pos]
	if !ok {
		if d.waiting == nil {
			d.waiting = map[uint64]func(error){}
		}
		d.waiting[pos] = f
	}
	d.mu.Unlock()
	if ok {
		f(err)
	}
}

func (d *disk) Wait(ctx context.Context, pos uint64) error {
	done := make(chan error, 1)
	d.Notify(pos, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rules is an ACL that denies reading what begins with one of its topics.
type rules []string

func (r rules) Allow(_ access.Identity, action access.Action, topic string) bool {
	return message.ValidName(topic) == nil && (action == access.Publish || !slices.Contains(r, topic))
}

// commits makes durable what waits, all at once, again and again, until the test ends.
func (d *disk) commits(t testing.TB) {
	d.mu.Lock()
	d.slow, d.batch = true, make(chan struct{}, 1)
	d.mu.Unlock()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-d.batch:
			}
			d.mu.Lock()
			waiting := d.gathered
			d.gathered = nil
			d.mu.Unlock()
			for _, f := range waiting {
				f(nil)
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-ended
	})
}
