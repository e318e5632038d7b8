package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// Chain is all routes of one configuration. It is safe for concurrent use.
type Chain struct {
	gateway string
	uplinks []string
	routes  []*Route
	matcher matcher
	cache   cache
}

// Route is one compiled route.
type Route struct {
	Name string
	// Index is the route's place in Chain.Routes.
	Index int
	Lane  Lane
	// QoS with which its copies are sent, 1 or 2, whatever the device used.
	QoS message.QoS
	// Expire is how long after its arrival a message is worth sending; 0: without end.
	Expire time.Duration

	clearRetain bool
	from        []string
	except      []string
	to          []int
	topic       Template
}

// Targets returns the uplinks the route sends to, by their places in the names given to Compile. The caller must not
// change it.
func (r *Route) Targets() []int { return r.to }

// Copy is what one route makes of a message for one uplink.
type Copy struct {
	Route *Route
	// Uplink is the place of the uplink in the names given to Compile.
	Uplink int
	// Topic is the resulting topic.
	Topic string
	// Err says why Topic is no topic name that a copy may have. Such a copy belongs to the dead letters.
	Err error
	// Merged: another copy reaches the same uplink under the same topic, so this one is not sent.
	Merged bool
}

// Shape makes m what the copy is to be sent as. Its ID stays.
func (c *Copy) Shape(m *message.Message) {
	m.Topic = c.Topic
	m.QoS = c.Route.QoS
	m.Retain = m.Retain && !c.Route.clearRetain
}

// Compile checks and prepares the routes. uplinks are the names of all uplinks; a route without "to" goes to all of them.
// All problems are reported at once.
func Compile(gateway string, routes map[string]config.Route, uplinks []string) (*Chain, error) {
	c := &Chain{gateway: gateway, uplinks: slices.Clone(uplinks)}
	names := make([]string, 0, len(routes))
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names) // the order of routes decides which of two equal copies is merged: it must not change between runs
	var errs []error
	for _, name := range names {
		r, err := c.compile(name, routes[name])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.Index = len(c.routes)
		c.routes = append(c.routes, r)
		for i, f := range r.from {
			c.matcher.add(f, filterRef{route: r.Index, from: i})
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

func (c *Chain) compile(name string, cfg config.Route) (*Route, error) {
	fail := func(format string, args ...any) (*Route, error) {
		return nil, fmt.Errorf("compile route %s: "+format, append([]any{name}, args...)...)
	}
	r := &Route{Name: name, QoS: 1, Expire: cfg.Expire.D(), from: slices.Clone(cfg.From), except: slices.Clone(cfg.Except)}
	if len(r.from) == 0 {
		return fail("it has no from")
	}
	for _, f := range slices.Concat(r.from, r.except) {
		if err := message.ValidFilter(f); err != nil {
			return fail("%w", err)
		}
	}
	var err error
	text := cfg.Topic
	if text == "" {
		text = "{topic}"
	}
	if r.topic, err = ParseTemplate(text); err != nil {
		return fail("%w", err)
	}
	switch cfg.QoS {
	case 0, 1:
	case 2:
		r.QoS = 2
	default:
		return fail("qos %d: want 1 or 2", cfg.QoS)
	}
	switch cfg.Retain {
	case "", "keep":
	case "clear":
		r.clearRetain = true
	default:
		return fail("retain %q: want keep or clear", cfg.Retain)
	}
	switch cfg.Lane {
	case "", "normal":
	case "urgent":
		r.Lane = Urgent
	default:
		return fail("lane %q: want normal or urgent", cfg.Lane)
	}
	if r.to, err = c.targets(cfg.To); err != nil {
		return fail("%w", err)
	}
	return r, nil
}

func (c *Chain) targets(names []string) ([]int, error) {
	to := make([]int, 0, len(c.uplinks))
	if len(names) == 0 {
		for i := range c.uplinks {
			to = append(to, i)
		}
		return to, nil
	}
	for _, name := range names {
		i := slices.Index(c.uplinks, name)
		if i < 0 {
			return nil, fmt.Errorf("there is no uplink %q", name)
		}
		if !slices.Contains(to, i) {
			to = append(to, i)
		}
	}
	return to, nil
}

// Routes returns all routes in name order. The caller must not change them.
func (c *Chain) Routes() []*Route { return c.routes }

// hit is one route that matches a topic.
type hit struct {
	route *Route
	rest  string
	// topics holds the result per target of the route; nil where it depends on the source and is worked out each time.
	topics []result
}

type result struct {
	topic string
	err   error
}

// Process appends the copies to be made of m, one per matching route and uplink it goes to, in route order. Nothing is
// appended when no route matches, as for topics that belong to the gateway itself.
func (c *Chain) Process(dst []Copy, m *message.Message) []Copy {
	if message.Reserved(m.Topic) {
		return dst
	}
	hits, ok := c.cache.get(m.Topic)
	if !ok {
		hits = c.cache.put(m.Topic, c.match)
	}
	first := len(dst)
	for i := range hits {
		h := &hits[i]
		for j, up := range h.route.to {
			var res result
			if h.topics != nil {
				res = h.topics[j]
			} else {
				res = c.expand(h, up, m.Topic, m.Source)
			}
			dst = append(dst, Copy{Route: h.route, Uplink: up, Topic: res.topic, Err: res.err})
		}
	}
	if len(dst)-first > 1 {
		merge(dst[first:])
	}
	return dst
}

// match works out which routes select topic. A route selects it by the first of its filters that matches, which is the
// one whose # is {rest}.
func (c *Chain) match(topic string) []hit {
	refs := c.matcher.find(nil, topic)
	slices.SortFunc(refs, func(a, b filterRef) int {
		if a.route != b.route {
			return a.route - b.route
		}
		return a.from - b.from
	})
	var hits []hit
	for i, ref := range refs {
		if i > 0 && refs[i-1].route == ref.route {
			continue
		}
		r := c.routes[ref.route]
		if excepted(r.except, topic) {
			continue
		}
		h := hit{route: r, rest: Rest(r.from[ref.from], topic)}
		if !r.topic.bySource {
			h.topics = make([]result, 0, len(r.to))
			for _, up := range r.to {
				h.topics = append(h.topics, c.expand(&h, up, topic, message.Source{}))
			}
		}
		hits = append(hits, h)
	}
	return hits
}

func (c *Chain) expand(h *hit, up int, topic string, src message.Source) result {
	t, err := h.route.topic.Expand(Values{
		Gateway: c.gateway, Uplink: c.uplinks[up], Topic: topic, Rest: h.rest, Source: src,
	})
	if err == nil && message.Reserved(t) && !h.route.topic.serviceTopic() {
		// A device could otherwise write the gateway's own topics at the cloud, such as its status.
		err = fmt.Errorf(ExpandFailed+": %w: topic %q belongs to the gateway or the broker", message.ErrInvalid, t)
	}
	return result{t, err}
}

// merge marks all but one of the copies that reach the same uplink under the same topic. The urgent lane wins; within a
// lane the first route in name order does. Copies for the dead letters are left alone: each is its own failure.
func merge(copies []Copy) {
	for i := range copies {
		a := &copies[i]
		for j := i + 1; j < len(copies) && a.Err == nil && !a.Merged; j++ {
			b := &copies[j]
			if b.Merged || b.Err != nil || a.Uplink != b.Uplink || a.Topic != b.Topic {
				continue
			}
			if b.Route.Lane > a.Route.Lane {
				a.Merged = true
			} else {
				b.Merged = true
			}
		}
	}
}
