package coap

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/access"
	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

const (
	// listingAge is how old the list of retained topics may be, in seconds: looking through all of them takes a while.
	listingAge = 5
	// listedTopics bounds the topics that are remembered, maxLinks those that one client is shown, maxListing the bytes.
	listedTopics = 4096
	maxLinks     = 256
	maxListing   = 16 << 10
)

// listing is the list of retained topics, made at most every listingAge seconds and only when somebody asks. That, and asking
// the rules about each topic, is done on a goroutine of its own; requests wait for it parked.
type listing struct {
	wake chan struct{} // capacity 1: somebody waits

	mu      sync.Mutex
	waiting []inquiry // as many as may be parked
}

// listed is a retained topic.
type listed struct {
	topic  string
	format number
}

// inquiry is a parked request for the list.
type inquiry struct {
	x   *wire.Exchange
	who access.Identity
	ask ask
}

func (l *listing) init() { l.wake = make(chan struct{}, 1) }

// wait adds a request to those that wait.
func (l *listing) wait(q inquiry) {
	l.mu.Lock()
	l.waiting = append(l.waiting, q)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // woken already
	}
}

// discover answers a GET of /.well-known/core or /ps.
func (b *Bridge) discover(r *wire.Request, a *ask) {
	if r.Busy() {
		b.refuse(r, refusalOf(message.ErrBusy, 0))
		return
	}
	q := inquiry{who: identity(r), ask: *a}
	q.ask.etags = make([][]byte, len(a.etags)) // those of a point into the request
	for i, e := range a.etags {
		q.ask.etags[i] = slices.Clone(e)
	}
	q.x = r.Park()
	b.listing.wait(q)
}

// list answers those who wait, until ctx ends.
func (b *Bridge) list(ctx context.Context) {
	l := &b.listing
	var topics []listed
	var made time.Time // zero: never
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		if made.IsZero() || time.Since(made) >= listingAge*time.Second {
			topics, made = b.retainedTopics(), time.Now()
		}
		l.mu.Lock()
		waiting := l.waiting
		l.waiting = nil
		l.mu.Unlock()
		for i := range waiting {
			q := &waiting[i]
			b.replyLater(q.x, b.links(topics, q.who, &q.ask))
		}
	}
}

// retainedTopics returns the topics with a retained message that are not the gateway's own, in order.
func (b *Bridge) retainedTopics() []listed {
	retained := b.o.Bus.Retained("#")
	topics := make([]listed, 0, min(len(retained), listedTopics))
	for i := range retained {
		if m := &retained[i]; !message.Reserved(m.Topic) {
			topics = append(topics, listed{m.Topic, b.formats.contentFormat(m.ContentType)})
		}
	}
	slices.SortFunc(topics, func(a, b listed) int { return cmp.Compare(a.topic, b.topic) })
	if len(topics) > listedTopics {
		topics = slices.Clip(topics[:listedTopics])
	}
	return topics
}

// links answers with what a client may read, in link format (RFC 6690).
func (b *Bridge) links(topics []listed, who access.Identity, a *ask) wire.Response {
	var text strings.Builder
	count := 0
	add := func(l link) bool {
		if !l.selected(a.queries) {
			return true
		}
		one := l.String()
		if count > 0 {
			one = "," + one
		}
		if count == maxLinks || text.Len()+len(one) > maxListing {
			return false
		}
		text.WriteString(one)
		count++
		return true
	}
	if a.place == wellKnown {
		add(link{path: "/ps", kind: "core.ps", format: number{uint32(option.AppLinkFormat), true}})
	}
	for _, t := range topics {
		if b.mayRead(who, t.topic) && !add(link{path: "/ps/" + escape(t.topic), kind: "core.ps.data", format: t.format}) {
			break
		}
	}
	return b.represent(a, value{
		payload: []byte(text.String()), format: number{uint32(option.AppLinkFormat), true}, typed: true,
		age: number{listingAge, true},
	})
}

// link is one entry of a list.
type link struct {
	path   string
	kind   string // its resource type
	format number
}

func (l link) String() string {
	s := "<" + l.path + `>;rt="` + l.kind + `"`
	if l.format.given {
		s += ";ct=" + strconv.FormatUint(uint64(l.format.value), 10)
	}
	return s
}

// selected reports whether every query of the request is true of the link (RFC 6690, 4.1): NAME=VALUE, where a * at the end
// stands for anything.
func (l link) selected(queries []string) bool {
	for _, q := range queries {
		name, want, _ := strings.Cut(q, "=")
		have := ""
		switch name {
		case "href":
			have = l.path
		case "rt":
			have = l.kind
		case "ct":
			if l.format.given {
				have = strconv.FormatUint(uint64(l.format.value), 10)
			}
		}
		prefix, open := strings.CutSuffix(want, "*")
		if have == "" || open && !strings.HasPrefix(have, prefix) || !open && have != want {
			return false
		}
	}
	return true
}

// escape writes a topic as a path: what has no place there is percent-encoded (RFC 3986, 3.3).
func escape(topic string) string {
	var s strings.Builder
	for i := range len(topic) {
		c := topic[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~!$&'()*+,;=:@/", c) >= 0:
			s.WriteByte(c)
		default:
			s.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(c)+0x100, 16)[1:]))
		}
	}
	return s.String()
}

// methodName is how a method is called in metrics.
func methodName(method codes.Code) string {
	switch method {
	case codes.GET:
		return "GET"
	case codes.POST:
		return "POST"
	case codes.PUT:
		return "PUT"
	case codes.DELETE:
		return "DELETE"
	}
	return "other"
}
