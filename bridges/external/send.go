package external

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/bridges"
	"tidegate/message"
)

// deliverTimeout bounds the wait for the broker's acknowledgement of a command.
const deliverTimeout = 10 * time.Second

// codeTakenOver is the reason code of a DISCONNECT for a client whose identifier another one has.
const codeTakenOver = 0x8E

var (
	errAway    = fmt.Errorf("%w: the broker of the devices is away", message.ErrBusy)
	errDropped = errors.New("dropped: the broker is away, or too slow")
)

// answerError translates the reason code of a PUBACK into the words between packages. 0x10 says that nobody subscribes.
func answerError(code byte) error {
	switch {
	case code == 0x10:
		return message.ErrNoMatch
	case code < 0x80:
		return nil
	}
	kind := message.ErrBusy
	switch code {
	case 0x87:
		kind = message.ErrNotAllowed
	case 0x90, 0x99:
		kind = message.ErrInvalid
	case 0x95:
		kind = message.ErrTooLarge
	}
	return fmt.Errorf("%w: the broker answers %#x (%s)", kind, code, codeText(code))
}

// shared is the bus of the other bridges.
type shared struct {
	bridges.Bus
	b *Bridge
}

// Share returns a bus for the other bridges: what they publish there goes to bus, and once taken to the broker as well, where
// the local subscribers are. While the broker is away it waits in memory, within a bound at which the oldest is dropped and
// counted.
func (b *Bridge) Share(bus bridges.Bus) bridges.Bus { return shared{bus, b} }

func (s shared) Publish(m message.Message) (message.Ticket, error) {
	t, err := s.Bus.Publish(m)
	if err == nil {
		s.b.out.forward(m)
	}
	return t, err
}

// Tell keeps what the gateway says about itself or one of its parts current at the broker. m is retained; a later message on the
// same topic takes its place.
func (b *Bridge) Tell(m message.Message) { b.out.tell(m) }

// Deliver publishes a message of the cloud. nil means that the broker acknowledged it; message.ErrNoMatch that nobody
// subscribes there, message.ErrBusy that it is away or did not answer: it may have got the message all the same.
func (b *Bridge) Deliver(ctx context.Context, m message.Message) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deliverTimeout, fmt.Errorf("%w: no acknowledgement within %s", message.ErrBusy, deliverTimeout))
	defer cancel()
	if err := b.deliver(ctx, m); err != nil {
		return fmt.Errorf("broker: publish %q: %w", m.Topic, err)
	}
	return nil
}

func (b *Bridge) deliver(ctx context.Context, m message.Message) error {
	answer := make(chan error, 1)
	o, ok := b.out.deliver(m, func(err error) { answer <- err })
	if !ok {
		return errAway
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		b.out.cancel(o)
		return context.Cause(ctx)
	}
}

// send writes what goes to the broker over one connection, until that ends.
func (b *Bridge) send(l *link) {
	for _, o := range b.out.begin(l.grant.present) {
		b.write(l, o)
	}
	for {
		for l.room() {
			o := b.out.next(l.grant.window)
			if o == nil {
				break
			}
			b.write(l, o)
		}
		select {
		case <-b.out.changed:
		case <-l.gone:
			return
		}
	}
}

// write encodes one message. With QoS 0 that is all that happens to it.
func (b *Bridge) write(l *link, o *outgoing) {
	now := time.Now()
	if e := o.m.Expires; !e.IsZero() && !now.Before(e) {
		b.out.unsent(o, errExpired)
		return
	}
	p, err := encode(o, b.c.Group, l.grant, now)
	if err != nil {
		b.out.unsent(o, err)
		return
	}
	l.add(p)
	if o.id == 0 {
		b.out.finish(o, nil)
	}
}

var errExpired = errors.New("expired")

// settled counts what became of a message for the broker.
func (b *Bridge) settled(o *outgoing, err error) {
	switch {
	case o.told:
		if err != nil && !errors.Is(err, message.ErrNoMatch) {
			b.log.Warn("the broker refuses the gateway's status", "topic", o.m.Topic, "error", err)
		}
		return
	case err == nil, errors.Is(err, message.ErrNoMatch):
		b.figures.published.Add(1)
	case errors.Is(err, errDropped), errors.Is(err, errExpired):
		b.figures.dropped.Add(1)
	case errors.Is(err, errAway): // whoever waits for it tries again
	default:
		b.figures.unpublished.Add(1)
		if o.done == nil {
			b.figures.log(b.log, "the broker refuses a message", &o.m, err)
		}
	}
}
