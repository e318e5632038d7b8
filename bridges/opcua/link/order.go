package link

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gopcua/opcua/ua"
)

// notified puts a notification message where it belongs: delivers it when its turn has come, and asks again for those
// that should have come before.
func (p *pump) notified(ctx context.Context, a *publishResponse) error {
	l := p.l
	if a.subscription != l.sub.ID {
		return nil // of a subscription that is not ours any more
	}
	m := a.message
	if l.sub.next == 0 {
		l.begin(a)
	}
	if err := l.catchUp(ctx, p.s); err != nil {
		return err
	}
	if err := p.order(ctx, m); err != nil {
		return err
	}
	if m.ended != 0 {
		l.giveUp(fmt.Sprintf("the server ends it: %s", m.ended))
		return errNoSubscription
	}
	return nil
}

// begin finds where to go on from, in a process that took over a subscription: everything that was never acknowledged is
// owed, then comes what a brings.
func (l *Link) begin(a *publishResponse) {
	first := a.message.sequence
	l.sub.owed = slices.DeleteFunc(slices.Clone(a.available), func(n uint32) bool { return !before(n, first) })
	slices.SortFunc(l.sub.owed, func(x, y uint32) int { return int(int32(x - y)) })
	// What is older and not owed was acknowledged by the process before: it is no loss that the server has it no more.
	l.sub.next, l.sub.high = first, first
}

// catchUp asks for the notifications that are owed, the oldest first. A number leaves the list when what it stands for was
// handed over or can never be, so that a connection which ends meanwhile leaves the rest to the next one.
func (l *Link) catchUp(ctx context.Context, s *Session) error {
	for sub := l.sub; len(sub.owed) > 0; sub.owed = sub.owed[1:] {
		n := sub.owed[0]
		m, err := s.republish(ctx, sub.ID, n)
		switch {
		case err == nil:
			if err := l.hand(ctx, s, m); err != nil {
				return err
			}
			l.stats.republished.Add(1)
		case l.unreadable(s, n, err):
		case gone(err):
			l.stats.holes.Add(1)
			l.log.Warn("a notification was never acknowledged and the server does not send it again", "sequence", n)
		default:
			return republishError(err)
		}
	}
	return nil
}

// republishError says of a failed request whether the server has the subscription no more.
func republishError(err error) error {
	switch statusOf(err) {
	case ua.StatusBadSubscriptionIDInvalid, ua.StatusBadNoSubscription:
		return errNoSubscription
	default:
		return fmt.Errorf("republish: %w", err)
	}
}

// before reports whether sequence number a comes before b, over the wrap.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// order delivers m and what waits for it, in the order of the sequence numbers.
func (p *pump) order(ctx context.Context, m notification) error {
	l, sub := p.l, p.l.sub
	switch {
	case before(m.sequence, sub.next):
		if i := slices.Index(sub.skipped, m.sequence); i >= 0 && !m.keepalive {
			if err := l.hand(ctx, p.s, m); err != nil { // late, but it was given up, not delivered
				return err
			}
			sub.skipped = slices.Delete(sub.skipped, i, i+1)
		}
		return nil // delivered before
	case m.sequence != sub.next:
		if err := p.mend(ctx, m.sequence); err != nil {
			return err
		}
	}
	if m.keepalive {
		return nil // it has the number of what comes next
	}
	if err := l.hand(ctx, p.s, m); err != nil {
		return err
	}
	sub.next = following(m.sequence)
	return nil
}

// mend asks again for the notifications from the one that is due up to until. What the server does not have any more is
// counted as lost.
func (p *pump) mend(ctx context.Context, until uint32) error {
	l, sub := p.l, p.l.sub
	if until-sub.next > longestHole {
		l.log.Warn("notifications are missing", "from", sub.next, "to", until)
		l.stats.holes.Add(uint64(until - sub.next))
		sub.next = until
		return nil
	}
	for ; sub.next != until; sub.next = following(sub.next) {
		m, err := p.s.republish(ctx, sub.ID, sub.next)
		switch {
		case err == nil:
			if err := l.hand(ctx, p.s, m); err != nil {
				return err
			}
			l.stats.republished.Add(1)
		case l.unreadable(p.s, sub.next, err):
		case gone(err) && before(sub.next, sub.high):
			// It was handed over before, and acknowledged since: only one near it has to be asked for again.
		case gone(err):
			l.stats.holes.Add(1)
			l.log.Warn("a notification is missing and the server does not have it any more", "sequence", sub.next)
			if sub.skipped = append(sub.skipped, sub.next); len(sub.skipped) > 64 {
				sub.skipped = sub.skipped[1:]
			}
		default:
			return fmt.Errorf("republish: %w", err)
		}
	}
	return nil
}

// gone reports whether the server cannot send a notification again: it has it no more, or never has any.
func gone(err error) bool {
	code := statusOf(err)
	return code == ua.StatusBadMessageNotAvailable || code == ua.StatusBadServiceUnsupported
}

// hand gives a notification to the goroutine that delivers. It waits for room, which it does only while notifications are
// republished; else room was there before they were asked for.
func (l *Link) hand(ctx context.Context, s *Session, m notification) error {
	if m.broken != nil {
		l.stats.broken.Add(1)
		l.log.Error("a notification cannot be read; its values are lost", "sequence", m.sequence, "error", m.broken)
	}
	d := delivery{sequence: m.sequence, values: make([]Value, 0, len(m.changes))}
	overflows, homeless := uint64(0), uint64(0)
	for i := range m.changes {
		it := l.byHandle[m.changes[i].handle]
		if it == nil {
			continue // an item that the configuration does not have any more
		}
		v := Value{it.index, m.changes[i].value}
		if v.Status.Overflow() {
			overflows++
		}
		if it.id != 0 && v.Status.IsBad() && noNode(v.Status) {
			l.orphan(it)
			it.fail(v.Status)
			l.countItems()
		}
		if !it.named { // of a subscription from before this process, and the node cannot be described
			it.last = &v
			homeless++
			continue
		}
		d.values = append(d.values, v)
	}
	l.stats.heard.Store(time.Now().UnixNano())
	if err := l.enqueue(ctx, s, d); err != nil {
		return err
	}
	l.stats.values.Add(uint64(len(d.values)) + homeless)
	l.stats.overflows.Add(overflows)
	l.stats.homeless.Add(homeless)
	if l.sub.high == 0 || before(l.sub.high, following(m.sequence)) {
		l.sub.high = following(m.sequence)
	}
	return nil
}

// enqueue puts d into the queue, unless the connection ends before there is room.
func (l *Link) enqueue(ctx context.Context, s *Session, d delivery) error {
	d.term = l.ledger.begin()
	select {
	case l.queue <- d:
		return nil
	default:
	}
	select {
	case l.queue <- d:
		return nil
	case <-s.c.over:
	case <-ctx.Done():
	}
	l.ledger.cancel() // its number is still due
	return s.c.reason(context.Cause(ctx))
}

// deliver hands notifications to the sink, one after the other, whatever becomes of the connection that brought them.
func (l *Link) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-l.queue:
			l.o.Sink.Take(ctx, d.values, func(err error) { l.ledger.end(d, err) })
		}
	}
}

// rewind makes the oldest of the failed notifications the next one that is due.
func (l *Link) rewind(failed []uint32) {
	for _, n := range failed {
		if before(n, l.sub.next) {
			l.sub.next = n
		}
	}
}
