package opcua

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// figures are what the bridge itself counts; the link counts the rest.
type figures struct {
	refused atomic.Uint64
	said    sync.Map // items whose refusal was logged

	mu     sync.Mutex
	writes map[string]uint64 // by result
}

func (f *figures) wrote(result string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes == nil {
		f.writes = map[string]uint64{}
	}
	f.writes[result]++
}

func (f *figures) results() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.writes)
}

// collector reads the figures of one bridge when they are asked for. Each bridge has its own, told apart by the label
// "bridge", so that several share one registry.
type collector struct {
	b *Bridge

	values, lost, republished, refused, connects, items, writes, age, budget, expiry *prometheus.Desc
}

func newCollector(b *Bridge) *collector {
	bridge := prometheus.Labels{"bridge": b.name}
	return &collector{
		b: b,
		values: prometheus.NewDesc("tidegate_opcua_values_total",
			"Values that came in by subscription.", nil, bridge),
		lost: prometheus.NewDesc("tidegate_opcua_lost_total",
			"Known losses: values after which the server's queue overflowed (overflow) or whose node has no topic (homeless), notifications that the server does not have (missing) or that make no sense (unreadable), and subscriptions that ended with whatever the server held for them (subscription).",
			[]string{"reason"}, bridge),
		republished: prometheus.NewDesc("tidegate_opcua_republished_total",
			"Notifications that the server sent a second time, because they were missing.", nil, bridge),
		refused: prometheus.NewDesc("tidegate_opcua_refused_values_total",
			"Values that the gateway does not take for good, such as those that are too large.", nil, bridge),
		connects: prometheus.NewDesc("tidegate_opcua_connects_total",
			"Connections made: with the old session (reactivated), the old subscription (transferred) or all anew (created).",
			[]string{"session"}, bridge),
		items: prometheus.NewDesc("tidegate_opcua_items",
			"Nodes by whether the server watches them; the failed ones are tried again.", []string{"state"}, bridge),
		writes: prometheus.NewDesc("tidegate_opcua_writes_total",
			"Messages for nodes by what became of them.", []string{"result"}, bridge),
		age: prometheus.NewDesc("tidegate_opcua_last_value_age_seconds",
			"How long ago the last value came in.", nil, bridge),
		budget: prometheus.NewDesc("tidegate_opcua_outage_budget_seconds",
			"For how long the server keeps values while the gateway is away, of the node with the shortest queue.", nil, bridge),
		expiry: prometheus.NewDesc("tidegate_opcua_certificate_expiry_timestamp_seconds",
			"When the gateway's own certificate ends, in seconds since 1970.", nil, bridge),
	}
}

// Describe sends every description.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.values, c.lost, c.republished, c.refused, c.connects, c.items, c.writes, c.age, c.budget, c.expiry,
	} {
		ch <- d
	}
}

// Collect sends every figure.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.b.link.Stats()
	counter(c.values, s.Values)
	counter(c.lost, s.Overflows, "overflow")
	counter(c.lost, s.Missing, "missing")
	counter(c.lost, s.Unreadable, "unreadable")
	counter(c.lost, s.Homeless, "homeless")
	counter(c.lost, s.Abandoned, "subscription")
	counter(c.republished, s.Republished)
	counter(c.refused, c.b.figures.refused.Load())
	for _, session := range []string{"reactivated", "transferred", "created"} {
		counter(c.connects, s.Connects[session], session)
	}
	gauge(c.items, float64(s.Watched), "watched")
	gauge(c.items, float64(s.Failed), "failed")
	writes := c.b.figures.results()
	for _, result := range []string{"written", "refused", "failed", "expired"} {
		counter(c.writes, writes[result], result)
	}
	if !s.Heard.IsZero() {
		gauge(c.age, time.Since(s.Heard).Seconds())
	}
	gauge(c.budget, s.Budget.Seconds())
	if c.b.pki != nil {
		gauge(c.expiry, float64(c.b.pki.Expires.Unix()))
	}
}

// register adds the bridge's figures to the registry and returns what takes them away again.
func (b *Bridge) register() (func(), error) {
	if b.o.Metrics == nil {
		return func() {}, nil
	}
	c := newCollector(b)
	if err := b.o.Metrics.Register(c); err != nil {
		return nil, fmt.Errorf("opcua: %s: metrics: %w", b.name, err)
	}
	return func() { b.o.Metrics.Unregister(c) }, nil
}
