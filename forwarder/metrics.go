package forwarder

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	ingest   prometheus.Histogram
	uplink   prometheus.Histogram
	commands *prometheus.CounterVec
	forgot   *prometheus.CounterVec
	reg      prometheus.Registerer
	paused   *prometheus.CounterVec
	gapsLost *prometheus.CounterVec
	deadLost *prometheus.CounterVec

	batches, batchBytes *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, l *ledger) (*metrics, error) {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	if err := reg.Register(newLedgerCollector(l)); err != nil {
		return nil, fmt.Errorf("forwarder: register the ledger: %w", err)
	}
	f := promauto.With(reg)
	return &metrics{
		reg: reg,
		ingest: f.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_ingest_seconds", Help: "From arrival of a message to its record being durable.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16), // 0.25 ms to 8 s
		}),
		uplink: f.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_uplink_seconds", Help: "From arrival of a message to the cloud's acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 14), // 1 ms to 19 h
		}),
		commands: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_commands_total", Help: "Commands from the cloud by what became of them.",
		}, []string{"uplink", "result"}),
		forgot: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_command_identities_forgotten_total", Help: "Identities of commands forgotten before their time.",
		}, []string{"uplink"}),
		paused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_uplink_pauses_total", Help: "How often the cloud's refusal made sending pause.",
		}, []string{"uplink", "reason"}),
		gapsLost: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gap_reports_dropped_total", Help: "Gaps that could not be announced because too many waited.",
		}, []string{"uplink"}),
		batches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_uplink_batches_total", Help: "Batches sent, those sent again included.",
		}, []string{"uplink"}),
		batchBytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_uplink_batch_bytes_total", Help: "Bytes of the batches sent, as they were sent.",
		}, []string{"uplink"}),
		deadLost: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_dead_letters_evicted_total", Help: "Dead letters that newer ones pushed out.",
		}, []string{"uplink"}),
	}, nil
}

// showIdentities shows how many identities of commands are remembered.
func (m *metrics) showIdentities(uplink string, g *guard) error {
	return m.reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_command_identities", Help: "Identities of commands that are remembered.",
		ConstLabels: prometheus.Labels{"uplink": uplink},
	}, func() float64 { return float64(g.size()) }))
}
