package link

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

const (
	// keepAliveEvery is how often an idle subscription shall say that it lives.
	keepAliveEvery = 2 * time.Second
	// mostPerNotification bounds the values of one notification, so that it fits into a message.
	mostPerNotification = 1000
	// fastestSampling stands in for "as fast as the server can" where a queue is sized.
	fastestSampling = 100 * time.Millisecond
	// retryFirst and retryLimit pace the attempts to watch a node that the server does not have (yet).
	retryFirst = 500 * time.Millisecond
	retryLimit = 8 * time.Second
)

// subscription is what the server keeps for us.
type subscription struct {
	ID       uint32        `json:"id"`
	Interval time.Duration `json:"interval"` // as the server revised it
	// KeepAlive is how often it says that it lives when there is nothing else to say.
	KeepAlive time.Duration `json:"keep_alive"`
	// Budget is for how long the server keeps values of the item with the shortest queue.
	Budget time.Duration `json:"budget"`
	// Namespaces are those by which the items were resolved.
	Namespaces []string `json:"namespaces"`
	// Astray: it belongs to a session that is gone, and this one has yet to take it over.
	Astray bool `json:"astray,omitempty"`

	// next is the sequence number that is due. 0: this process has seen none yet and does not know.
	next uint32
	// owed are numbers before next that an earlier process left unacknowledged and this one has yet to fetch.
	owed []uint32
	// high is the number after the highest that was handed over, by this process or the one before; it differs from next
	// where some have to be asked for again.
	high uint32
	// skipped are the numbers that were given up, the last few of them.
	skipped []uint32
}

// subscribe sees to it that there is a subscription with every item that the server knows, and that what it sent in vain
// is sent again.
func (l *Link) subscribe(ctx context.Context, s *Session) error {
	if l.sub != nil && l.outdated != "" {
		l.deleteSubscription(ctx, s, l.outdated)
	}
	l.outdated = ""
	if l.sub != nil && !slices.Equal(l.sub.Namespaces, s.namespaces) {
		// The indexes in the items' node IDs may mean other nodes now.
		l.deleteSubscription(ctx, s, "the server numbers its namespaces differently")
	}
	if l.sub != nil {
		if err := l.recover(ctx, s); errors.Is(err, errNoSubscription) {
			l.giveUp(err.Error())
		} else if err != nil {
			return err
		}
	}
	if len(l.items) == 0 {
		return nil
	}
	if l.sub == nil {
		if err := l.createSubscription(ctx, s); err != nil {
			return err
		}
	}
	return l.watch(ctx, s)
}

// giveUp drops all that belongs to a subscription which cannot be gone on with. What the server still held for it nobody will
// ever get; how much that was it does not say.
func (l *Link) giveUp(why string) {
	if len(l.items) > 0 { // else nobody wants it
		underway, _ := l.ledger.state()
		l.stats.abandoned.Add(1)
		l.log.Warn("an OPC UA subscription has ended; values that the server still held for it are lost", "why", why,
			"subscription", l.sub.ID, "nodes", len(l.items), "outage_budget", l.sub.Budget, "fetched_and_not_on_disk", underway)
	}
	l.sub = nil
	l.ledger.forget()
	for _, it := range l.items {
		it.id, it.ready, it.named, it.last, it.failures, it.due, it.err = 0, false, false, nil, 0, time.Time{}, nil
	}
	l.orphans = nil
}

func (l *Link) deleteSubscription(ctx context.Context, s *Session, why string) {
	p := statusResponse{encoding: id.DeleteSubscriptionsResponse_Encoding_DefaultBinary}
	if err := s.call(ctx, &ua.DeleteSubscriptionsRequest{SubscriptionIDs: []uint32{l.sub.ID}}, &p); err != nil {
		l.log.Debug("old subscription not deleted", "error", err) // it ends by itself
	}
	l.giveUp(why)
}

func (l *Link) createSubscription(ctx context.Context, s *Session) error {
	interval := l.o.Publishing
	keepAlive := uint32(max(1, (keepAliveEvery+interval-1)/interval))
	// A subscription outlives a missing client by its lifetime: as long as values shall be kept, and no less than the
	// specification's three keep-alives.
	lifetime := max(3*keepAlive, uint32(min(math.MaxUint32, (l.sessionTimeout()+interval-1)/interval)))
	var p createSubscriptionResponse
	if err := s.call(ctx, &ua.CreateSubscriptionRequest{
		RequestedPublishingInterval: milliseconds(interval),
		RequestedLifetimeCount:      lifetime, RequestedMaxKeepAliveCount: keepAlive,
		MaxNotificationsPerPublish: mostPerNotification, PublishingEnabled: true,
	}, &p); err != nil {
		return fmt.Errorf("create a subscription: %w", err)
	}
	revised := fromMilliseconds(p.interval)
	if p.id == 0 || revised <= 0 {
		return fmt.Errorf("create a subscription: the server answers with subscription %d at %v ms", p.id, p.interval)
	}
	if kept := time.Duration(p.lifetime) * revised; kept < l.o.Budget {
		l.log.Warn("the server ends a subscription earlier than outage_budget", "after", kept, "wanted", l.o.Budget)
	}
	l.sub = &subscription{
		ID: p.id, Interval: revised, KeepAlive: time.Duration(max(1, p.keepAlive)) * revised, Namespaces: s.namespaces,
		next: 1,
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// fromMilliseconds takes what a server says, which may be anything.
func fromMilliseconds(ms float64) time.Duration {
	if !(ms > 0) || ms > 1e12 {
		return 0
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// transfer moves the subscription of a session that is gone to this one.
func (l *Link) transfer(ctx context.Context, s *Session) error {
	var p transferResponse
	err := s.call(ctx, &ua.TransferSubscriptionsRequest{SubscriptionIDs: []uint32{l.sub.ID}}, &p)
	if err == nil {
		err = answered(len(p.results), 1, "transfer the subscription")
	}
	if err == nil && p.results[0].status.IsBad() {
		err = p.results[0].status
	}
	// Nothing to do: an earlier attempt worked, and the line broke before its answer came.
	if err != nil && statusOf(err) != ua.StatusBadNothingToDo {
		return fmt.Errorf("transfer the subscription: %w", err)
	}
	l.sub.Astray = false
	return nil
}

// refused reports whether err is the server's last word about what was asked for. A broken line is none, nor is the error by
// which a server ends a connection, nor a status that says "not now".
func (c *channel) refused(err error) bool {
	switch statusOf(err) {
	case ua.StatusOK, ua.StatusBadTimeout, ua.StatusBadRequestTimeout, ua.StatusBadOutOfMemory, ua.StatusBadResourceUnavailable,
		ua.StatusBadTooManyOperations, ua.StatusBadServerHalted, ua.StatusBadShutdown, ua.StatusBadServerNotConnected,
		ua.StatusBadCommunicationError, ua.StatusBadConnectionClosed, ua.StatusBadSecureChannelClosed,
		ua.StatusBadSecureChannelIDInvalid, ua.StatusBadSecureChannelTokenUnknown, ua.StatusBadTCPServerTooBusy,
		ua.StatusBadTCPInternalError, ua.StatusBadTCPNotEnoughResources:
		return false
	default:
		return c.reason(nil) == nil
	}
}

// errNoSubscription: the server does not have the subscription any more.
var errNoSubscription = errors.New("the server has dropped the subscription")

// recover asks for what was sent while nobody listened: the notifications from the one that is due on, until the server
// has no more. A process that does not know which one is due learns it from the first answer to a publish request.
func (l *Link) recover(ctx context.Context, s *Session) error {
	if l.sub.next == 0 {
		return nil
	}
	if err := l.catchUp(ctx, s); err != nil {
		return err
	}
	for {
		if underway, _ := l.ledger.state(); underway+outstanding >= window {
			return nil // the rest is missed, and asked for, when there is room
		}
		n, err := s.republish(ctx, l.sub.ID, l.sub.next)
		switch code := statusOf(err); {
		case err == nil:
			if err := l.hand(ctx, s, n); err != nil {
				return err
			}
			l.stats.republished.Add(1)
			l.sub.next = following(n.sequence)
		case l.unreadable(s, l.sub.next, err):
			l.sub.next = following(l.sub.next)
		case code == ua.StatusBadServiceUnsupported:
			return nil // what was missed shows as a gap, and is counted
		case code == ua.StatusBadMessageNotAvailable && before(l.sub.next, l.sub.high):
			l.sub.next = following(l.sub.next) // acknowledged since
		case code == ua.StatusBadMessageNotAvailable:
			return nil
		default:
			return republishError(err)
		}
	}
}

// unreadable reports whether a notification came but makes no sense. It is counted and given up: it would make no more
// sense the next time, and hold up what comes after it.
func (l *Link) unreadable(s *Session, sequence uint32, err error) bool {
	if err == nil || statusOf(err) != 0 || errors.Is(err, errNoAnswer) || s.c.reason(nil) != nil || errors.Is(err, context.Canceled) {
		return false
	}
	l.stats.broken.Add(1)
	l.log.Error("a notification cannot be read; its values are lost", "sequence", sequence, "error", err)
	return true
}

func (s *Session) republish(ctx context.Context, sub, sequence uint32) (notification, error) {
	var p republishResponse
	err := s.call(ctx, &ua.RepublishRequest{SubscriptionID: sub, RetransmitSequenceNumber: sequence}, &p)
	if err == nil && p.message.sequence != sequence {
		err = fmt.Errorf("the server republishes %d when asked for %d", p.message.sequence, sequence)
	}
	return p.message, err
}

func statusOf(err error) ua.StatusCode {
	var code StatusCode
	if errors.As(err, &code) {
		return ua.StatusCode(code)
	}
	return 0
}

// following is the next sequence number; 0 is never one [Part 4, 7.38].
func following(n uint32) uint32 {
	if n == math.MaxUint32 {
		return 1
	}
	return n + 1
}
