package external

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/bridges"
)

// Packet identifiers of subscriptions; those of messages stay below.
const (
	idOfShared = 65533 + iota
	idOfLocal
	idOfStale
)

// subscriptions follows the answers to what one connection asked for.
type subscriptions struct {
	mu      sync.Mutex
	asked   time.Time // when an answer became due; zero: none is
	open    int       // answers that are missing
	refused []string  // what the broker said no to, in words
	failed  time.Time // when it did; zero: it did not
}

// overdue reports whether an answer is missing for that long.
func (s *subscriptions) overdue(limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open > 0 && time.Since(s.asked) >= limit
}

// retry reports whether something was refused that long ago and no answer is missing: somebody may have changed the rules.
func (s *subscriptions) retry(after time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open == 0 && !s.failed.IsZero() && time.Since(s.failed) >= after
}

// subscribe asks for everything, also where the session has it already: the broker's answer is the only proof.
func (l *link) subscribe() {
	b := l.b
	var out []byte
	open := 0
	local := len(b.c.Local) > 0 && l.grant.ids
	if len(b.c.Subscribe) > 0 {
		var filters []packets.Subscription
		for _, f := range b.groupFilters() {
			// No Local cannot be asked for in a group [MQTT-3.8.3-4]; there the mark of the group does the same. Retain Handling 2:
			// retained messages are not sent again.
			filters = append(filters, packets.Subscription{
				Filter: f, Qos: byte(b.c.QoS), NoLocal: b.c.Group == "", RetainAsPublished: true, RetainHandling: 2,
			})
		}
		identifier := 0
		if local {
			identifier = idShared
		}
		out = append(out, subscribePacket(idOfShared, filters, identifier)...)
		open++
	}
	if local {
		var filters []packets.Subscription
		for _, f := range b.c.Local {
			// No Local: what this gateway delivers itself it delivers directly. Retain Handling 1: a retained command is not
			// carried out again after every reconnect.
			filters = append(filters, packets.Subscription{Filter: f, Qos: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 1})
		}
		out = append(out, subscribePacket(idOfLocal, filters, idLocal)...)
		open++
	}
	wanted := append(b.groupFilters(), b.c.Local...)
	if stale := b.memory.stale(wanted, l.grant.present); len(stale) > 0 {
		out = append(out, unsubscribePacket(idOfStale, stale)...)
		open++
	}
	b.remember(b.memory.add(wanted, l.grant.present))
	l.subs.mu.Lock()
	l.subs.asked, l.subs.open, l.subs.refused, l.subs.failed = time.Now(), open, nil, time.Time{}
	if len(b.c.Local) > 0 && !l.grant.ids {
		l.subs.refused = append(l.subs.refused, "subscribe to the topics of OPC UA writes: the broker has no subscription identifiers")
	}
	l.subs.mu.Unlock()
	l.add(out)
	if open == 0 {
		l.attached()
	}
}

// groupFilters are the filters of the group, or of a gateway alone.
func (b *Bridge) groupFilters() []string {
	if b.c.Group == "" {
		return slices.Clone(b.c.Subscribe)
	}
	out := make([]string, 0, len(b.c.Subscribe))
	for _, f := range b.c.Subscribe {
		out = append(out, "$share/"+b.c.Group+"/"+f)
	}
	return out
}

// subscribed hears the answer to a SUBSCRIBE.
func (l *link) subscribed(id uint16, codes []byte) {
	filters := l.b.groupFilters()
	if id == idOfLocal {
		filters = l.b.c.Local
	}
	var refused []string
	for i, f := range filters {
		if i >= len(codes) {
			refused = append(refused, "subscribe to "+f+": the broker did not answer")
		} else if codes[i] >= 0x80 {
			refused = append(refused, "subscribe to "+f+": the broker refuses it ("+codeText(codes[i])+")")
		}
	}
	l.answered(refused)
}

// unsubscribed hears that the session has no subscriptions left but those that are wanted.
func (l *link) unsubscribed() {
	l.b.remember(l.b.memory.keep(append(l.b.groupFilters(), l.b.c.Local...)))
	l.answered(nil)
}

func (l *link) answered(refused []string) {
	s := &l.subs
	s.mu.Lock()
	s.open = max(s.open-1, 0)
	s.asked = time.Now()
	s.refused = append(s.refused, refused...)
	if len(refused) > 0 {
		s.failed = time.Now()
	}
	complete := s.open == 0
	s.mu.Unlock()
	if complete {
		l.attached()
	}
}

// attached tells the status once every answer is there. A filter that is refused leaves the rest working.
func (l *link) attached() {
	l.subs.mu.Lock()
	refused := strings.Join(l.subs.refused, "; ")
	l.subs.mu.Unlock()
	if refused != "" && l.b.Status().LastError != refused {
		l.b.log.Warn("the broker refuses a subscription, asking again", "error", refused)
	}
	l.b.setStatus(bridges.Status{Up: refused == "", LastError: refused})
}
