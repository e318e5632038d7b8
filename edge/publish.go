package edge

import (
	"context"
	"fmt"
	"time"

	"tidegate/access"
	"tidegate/edge/session"
	"tidegate/message"
)

// Publish takes a message of a bridge: it is checked, handed to Ingest and given to local subscribers. Without an error
// the bridge acknowledges its device when the ticket is durable, not before; with one the message is still the bridge's.
// ID and Received are filled in when they are zero. Messages of CoAP and HTTP clients pass the rules as their user's; what
// other bridges publish under their configured topics needs no rule. Only the gateway itself publishes below tidegate/.
func (b *Broker) Publish(m message.Message) (message.Ticket, error) {
	return b.takeFrom(&m, func() (message.Ticket, error) {
		r, err := b.sessions.Route(session.Publication{Msg: &m, Take: b.take})
		return r.Ticket, err
	})
}

// Take is Publish for a message that local subscribers get in another way, or not at all.
func (b *Broker) Take(m message.Message) (message.Ticket, error) {
	return b.takeFrom(&m, func() (message.Ticket, error) { return b.take(&m, session.Riders{}) })
}

// Refused counts a message that a bridge refused by itself, for the reason err, which is one of package message's.
func (b *Broker) Refused(p message.Protocol, err error) { b.metrics.refuse(p, refusalOf(err).label) }

// takeFrom checks a message of a bridge before take, and counts a refusal.
func (b *Broker) takeFrom(m *message.Message, take func() (message.Ticket, error)) (message.Ticket, error) {
	stamp(m)
	err := b.admissible(m)
	if err == nil {
		var t message.Ticket
		if t, err = take(); err == nil {
			return t, nil
		}
	}
	b.metrics.refuse(m.Source.Protocol, refusalOf(err).label)
	return message.Ticket{}, err
}

// admissible reports why a message of a bridge may not be published; nil: it may.
func (b *Broker) admissible(m *message.Message) error {
	if err := validName(m.Topic); err != nil {
		return err
	}
	allowed := m.Source.Protocol == message.Self || !message.Reserved(m.Topic)
	if p := m.Source.Protocol; allowed && (p == message.CoAP || p == message.HTTP) {
		allowed = b.o.ACL.Allow(access.Identity{User: m.Source.User, Client: m.Source.Client}, access.Publish, m.Topic)
	}
	if !allowed {
		return fmt.Errorf("publish %q: %w", m.Topic, message.ErrNotAllowed)
	}
	return nil
}

// Deliver gives a message of the cloud to local subscribers; it is never handed to Ingest. nil means that every matching
// session and handler has it queued, on the disk where the session is kept there; message.ErrNoMatch that nobody subscribes to
// its topic; message.ErrBusy that a handler's queue was full or the disk could not take it: then nobody has got it. It waits
// for the disk, which may fail after that: others than the sessions that are kept have got it then.
func (b *Broker) Deliver(ctx context.Context, m message.Message) error {
	t, err := b.HandOver(ctx, m)
	if err != nil {
		return err
	}
	if err := t.Wait(ctx); err != nil {
		return fmt.Errorf("deliver %q: %w: %w", m.Topic, message.ErrBusy, err)
	}
	return nil
}

// HandOver is Deliver without the wait: the ticket is durable when the sessions that are kept have the message on the disk.
func (b *Broker) HandOver(_ context.Context, m message.Message) (message.Ticket, error) {
	if err := validName(m.Topic); err != nil {
		return message.Ticket{}, err
	}
	stamp(&m)
	r, err := b.sessions.Route(session.Publication{Msg: &m, Whole: true})
	switch {
	case err != nil:
		return message.Ticket{}, fmt.Errorf("deliver %q: %w: %w", m.Topic, message.ErrBusy, err)
	case r.Busy || r.Unstored:
		return message.Ticket{}, fmt.Errorf("deliver %q: %w", m.Topic, message.ErrBusy)
	case r.Matched == 0:
		return message.Ticket{}, fmt.Errorf("deliver %q: %w", m.Topic, message.ErrNoMatch)
	}
	return r.Ticket, nil
}

// Subscribe gives every message that filter selects to h, one after the other, on a goroutine of its own that ends with
// cancel or with Run. What h returns as an error is logged: the message was the handler's. Up to 1024 messages wait for h;
// more are dropped and counted.
func (b *Broker) Subscribe(filter string, h message.Handler) (cancel func(), err error) {
	if err := validFilter(filter); err != nil {
		return nil, fmt.Errorf("edge: subscribe: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, fmt.Errorf("edge: subscribe %q: %w", filter, message.ErrBusy)
	}
	run, cancel := b.sessions.Subscribe(filter, h, func(err error) {
		b.log.Warn("handler failed", "filter", filter, "error", err)
	})
	b.handlers.Go(func() { run(b.life) })
	return cancel, nil
}

// Retained returns the retained messages that filter selects, in no order.
func (b *Broker) Retained(filter string) []message.Message { return b.sessions.Retained(filter) }

func stamp(m *message.Message) {
	if m.ID.IsZero() {
		m.ID = message.NewID()
	}
	if m.Received.IsZero() {
		m.Received = time.Now()
	}
}
