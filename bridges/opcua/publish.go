package opcua

import (
	"context"
	"errors"
	"sync"
	"time"

	"tidegate/bridges/opcua/link"
	"tidegate/message"
)

// While the gateway cannot take a value it is offered again after busyFirst, then after twice as long, up to busyLimit: the
// gateway counts each offer that it refuses.
const (
	busyFirst = 500 * time.Millisecond
	busyLimit = 2 * time.Second
)

// Take publishes the values of one notification, as fast as the bus takes them and without waiting for the disk. done is
// called when the last of them is there.
func (b *Bridge) Take(ctx context.Context, values []link.Value, done func(error)) {
	t := &tally{left: len(values) + 1, done: done}
	settle := t.settle
	now := time.Now()
	for i := range values {
		ticket, err := b.offer(ctx, b.message(&values[i], now))
		switch {
		case err == nil:
			ticket.Done(settle)
		case ctx.Err() != nil:
			return // the server keeps what is not acknowledged
		default:
			b.refused(values[i].Item, err)
			settle(nil) // nor would it be taken the next time: it must not hold up the others
		}
	}
	settle(nil)
}

// tally counts the values of one notification down.
type tally struct {
	mu   sync.Mutex
	left int
	err  error
	done func(error)
}

// settle is told that one value is on disk, or never will be. It does not block.
func (t *tally) settle(err error) {
	t.mu.Lock()
	if err != nil && t.err == nil {
		t.err = err
	}
	t.left--
	last, first := t.left == 0, t.err
	t.mu.Unlock()
	if last {
		t.done(first)
	}
}

// message makes of a value what is published.
func (b *Bridge) message(v *link.Value, now time.Time) message.Message {
	m := message.Message{
		ID: message.NewIDAt(now), Topic: b.nodes[v.Item].topic, QoS: 1, PayloadUTF8: true, Received: now,
		Source:     message.Source{Protocol: message.OPCUA, Client: b.name},
		SourceTime: sourceTime(v.Source),
	}
	if b.c.Format == "value" {
		m.Payload, m.ContentType = appendBare(make([]byte, 0, 24), v.DataValue), "text/plain"
		return m
	}
	m.Payload, m.ContentType = appendJSON(make([]byte, 0, 96), v.DataValue), "application/json"
	return m
}

// sourceTime is the time of the source where nanoseconds since 1970 can say it; clocks of devices may show any year.
func sourceTime(d link.DateTime) time.Time {
	t := d.Time()
	if d.IsZero() || t.Year() < firstYear || t.Year() > lastYear {
		return time.Time{}
	}
	return t
}

// offer publishes m. A gateway that cannot take it now is asked again until it can or ctx ends: meanwhile the server is
// asked for nothing more, and keeps what comes.
func (b *Bridge) offer(ctx context.Context, m message.Message) (message.Ticket, error) {
	ticket, err := b.o.Bus.Publish(m)
	if !errors.Is(err, message.ErrBusy) {
		return ticket, err
	}
	since := time.Now()
	b.log.Warn("the gateway takes no values now; the OPC UA server keeps them", "error", err)
	for wait := busyFirst; ; wait = min(2*wait, busyLimit) {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return message.Ticket{}, context.Cause(ctx)
		case <-timer.C:
		}
		if ticket, err = b.o.Bus.Publish(m); !errors.Is(err, message.ErrBusy) {
			b.log.Info("the gateway takes values again", "after", time.Since(since).Round(time.Millisecond))
			return ticket, err
		}
	}
}

// refused counts a value that the gateway will never take, and says so once per node.
func (b *Bridge) refused(item int, err error) {
	b.figures.refused.Add(1)
	if _, said := b.figures.said.LoadOrStore(item, true); !said {
		b.log.Error("the gateway refuses the values of a node", "node", b.nodes[item].id, "topic", b.nodes[item].topic, "error", err)
	}
}
