package external

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"tidegate/message"
)

// figures are what the bridge counts.
type figures struct {
	connects, own                   atomic.Uint64
	published, unpublished, dropped atomic.Uint64

	mu     sync.Mutex
	last   map[string]time.Time // when a text was logged
	silent map[string]int       // how many like it were not
}

// logEvery is how often one text is logged at most: a device can repeat itself as often as it likes.
const logEvery = 10 * time.Second

// log writes a warning about a message, sparingly.
func (f *figures) log(l *slog.Logger, text string, m *message.Message, err error) {
	f.mu.Lock()
	if f.last == nil {
		f.last, f.silent = map[string]time.Time{}, map[string]int{}
	}
	if !f.last[text].IsZero() && time.Since(f.last[text]) < logEvery {
		f.silent[text]++
		f.mu.Unlock()
		return
	}
	silent := f.silent[text]
	f.last[text], f.silent[text] = time.Now(), 0
	f.mu.Unlock()
	l.Warn(text, "topic", m.Topic, "client", m.Source.Client, "error", err, "not_logged", silent)
}

// register makes the metrics.
func (b *Bridge) register() error {
	own := prometheus.NewRegistry()
	f := promauto.With(own)
	count := func(name, help string, labels prometheus.Labels, n *atomic.Uint64) {
		f.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(n.Load()) })
	}
	count("tidegate_broker_connects_total", "Connections to the broker of the devices.", nil, &b.figures.connects)
	count("tidegate_broker_own_messages_total", "Messages of the group itself that came back, and statuses of gateways, which were passed over.", nil, &b.figures.own)
	const published = "tidegate_broker_published_messages_total"
	const help = "Messages for the broker of the devices by what became of them."
	count(published, help, prometheus.Labels{"result": "acknowledged"}, &b.figures.published)
	count(published, help, prometheus.Labels{"result": "refused"}, &b.figures.unpublished)
	count(published, help, prometheus.Labels{"result": "dropped"}, &b.figures.dropped)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_broker_pending_messages", Help: "Messages for the broker of the devices that it has not acknowledged.",
	}, func() float64 { return float64(b.out.pending()) })
	if b.o.Metrics == nil {
		return nil
	}
	return b.o.Metrics.Register(own)
}
