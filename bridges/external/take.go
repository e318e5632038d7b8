package external

import (
	"context"
	"errors"
	"slices"
	"time"

	"tidegate/message"
)

// While the gateway cannot take a message it is offered again after busyFirst, then after twice as long, up to busyLimit: the
// gateway counts each offer that it refuses.
const (
	busyFirst = 250 * time.Millisecond
	busyLimit = 2 * time.Second
)

// Reason codes of a PUBACK or PUBREC for a message that no member of the group could ever take. The broker gives such a one
// up [MQTT-4.8.2-6], which is why nothing that may pass is answered with a code: it gets no answer, and the broker keeps it.
const (
	codeSpecific     = 0x83
	codeNotAllowed   = 0x87
	codeTopicInvalid = 0x90
)

// take hands over what the broker sends, one after the other, until ctx ends. A message that cannot be taken now holds up
// those behind it: they stay in order, and the broker sends nothing more once the Receive Maximum is reached.
func (l *link) take(ctx context.Context) {
	for ctx.Err() == nil {
		if a, ok := l.in.pop(); ok {
			l.takeOne(ctx, &a)
			continue
		}
		select {
		case <-l.in.ready:
		case <-l.receipts.failed:
			l.takeAgain(ctx)
		case <-ctx.Done():
		}
	}
}

func (l *link) takeOne(ctx context.Context, a *arrival) {
	select {
	case <-l.receipts.failed: // what came before goes first
		l.takeAgain(ctx)
	default:
	}
	if a.m.QoS == 2 {
		if t, known := l.b.held.find(a.id); known {
			l.acknowledge(l.receipts.add(a), t)
			return
		}
	}
	t, err := l.b.accept(ctx, a, l.takeAgain)
	switch {
	case ctx.Err() != nil && err != nil: // not taken, and not answered: the broker keeps it
	case a.id == 0:
	default:
		l.took(l.receipts.add(a), t, err)
	}
}

// took settles a message that was taken, or refused for good.
func (l *link) took(p *receipt, t message.Ticket, err error) {
	if err != nil {
		l.receipts.settle(p, codeOf(err), nil)
		return
	}
	if p.a.m.QoS == 2 {
		l.b.held.keep(p.a.id, t)
	}
	l.acknowledge(p, t)
}

// acknowledge lets the acknowledgement leave when the ticket is durable.
func (l *link) acknowledge(p *receipt, t message.Ticket) {
	t.Done(func(err error) { l.receipts.settle(p, 0, err) })
}

// takeAgain hands over again, in their order, the messages that were taken and that the disk did not keep. Nothing of them is
// acknowledged: should this gateway die meanwhile, the broker has them.
func (l *link) takeAgain(ctx context.Context) {
	for wait := busyFirst; ; wait = min(2*wait, busyLimit) {
		lost := l.receipts.anyLost()
		if lost == nil {
			return
		}
		l.b.log.Warn("the disk did not keep messages that were taken; they are handed over again", "error", lost)
		if !sleep(ctx, wait) {
			return
		}
		// The oldest is looked for after the pause: the disk may have told of later ones first.
		for p := l.receipts.nextLost(); p != nil; p = l.receipts.nextLost() {
			t, err := l.b.accept(ctx, &p.a, nil)
			if ctx.Err() != nil && err != nil {
				return
			}
			l.took(p, t, err)
		}
	}
}

// codeOf translates an error that is final.
func codeOf(err error) byte {
	switch {
	case errors.Is(err, message.ErrNotAllowed):
		return codeNotAllowed
	case errors.Is(err, message.ErrInvalid):
		return codeTopicInvalid
	}
	return codeSpecific
}

// accept hands one message to whom it concerns. An error is final, or that of ctx.
//
// A copy for the group goes to Ingest, and to local subscribers but for topics of which this gateway has a subscription of its
// own: they get the copy of that. What a member of the group published itself was taken by that member, and what gateways say of
// themselves is nobody's message.
//
// before is called before each further offer, for what has to come first; it may be nil.
func (b *Bridge) accept(ctx context.Context, a *arrival, before func(context.Context)) (message.Ticket, error) {
	if a.bad != nil {
		b.refused(&a.m, a.bad)
		return message.Ticket{}, a.bad
	}
	own := a.via != "" && a.via == b.c.Group || message.Reserved(a.m.Topic)
	if own {
		b.figures.own.Add(1)
	}
	if a.local && (own || !a.shared) {
		return message.Ticket{}, b.deliverLocally(ctx, a.m)
	}
	if own {
		return message.Ticket{}, nil
	}
	if !a.local && slices.Contains(b.c.Local, a.m.Topic) {
		return b.offer(ctx, a.m, b.o.Take, before)
	}
	return b.offer(ctx, a.m, b.o.Bus.Publish, before)
}

// behind is an error of Ingest that passes with a commit: nothing is full, but too much waits for the disk.
type behind interface{ After() message.Ticket }

// offer hands m over, again and again while the gateway cannot take it. Meanwhile the broker keeps it.
func (b *Bridge) offer(ctx context.Context, m message.Message, to message.Ingest, before func(context.Context)) (message.Ticket, error) {
	var since time.Time
	for wait := busyFirst; ; {
		t, err := to(m)
		if !errors.Is(err, message.ErrBusy) {
			b.tookAgain(since)
			return t, b.final(&m, err)
		}
		var late behind
		if errors.As(err, &late) && commit(ctx, late.After()) {
			continue
		}
		if since.IsZero() {
			since = time.Now()
			b.log.Warn("the gateway takes no messages now; the broker keeps them", "error", err)
		}
		if !sleep(ctx, wait) {
			return message.Ticket{}, context.Cause(ctx)
		}
		if before != nil {
			before(ctx)
		}
		wait = min(2*wait, busyLimit)
	}
}

// commitPause is how long to wait where there is no commit to wait for and the gateway is behind all the same.
const commitPause = 20 * time.Millisecond

// commit waits until t is durable, or for a moment when it is so already. It reports whether another offer is worth it.
func commit(ctx context.Context, t message.Ticket) bool {
	if t.Durable() {
		return sleep(ctx, commitPause)
	}
	return t.Wait(ctx) == nil
}

func (b *Bridge) tookAgain(since time.Time) {
	if !since.IsZero() {
		b.log.Info("the gateway takes messages again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// final logs an error that no further offer would change.
func (b *Bridge) final(m *message.Message, err error) error {
	if err != nil {
		b.figures.log(b.log, "the gateway refuses a message of the broker for good", m, err)
	}
	return err
}

// refused counts a message that the bus does not see.
func (b *Bridge) refused(m *message.Message, err error) {
	if b.o.OnRefuse != nil {
		b.o.OnRefuse(err)
	}
	b.figures.log(b.log, "a message of the broker cannot be taken", m, err)
}

// deliverLocally gives a message to local subscribers. One whose handler has no room is given again, and holds up the rest.
func (b *Bridge) deliverLocally(ctx context.Context, m message.Message) error {
	for {
		err := b.o.Local(ctx, m)
		switch {
		case err == nil || errors.Is(err, message.ErrNoMatch):
			return nil
		case !errors.Is(err, message.ErrBusy):
			return b.final(&m, err)
		}
		if !sleep(ctx, busyFirst) {
			return context.Cause(ctx)
		}
	}
}
