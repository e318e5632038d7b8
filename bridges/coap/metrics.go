package coap

import (
	"fmt"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges/coap/wire"
)

// metrics are the bridge's. What is ingested or refused is counted by the broker, for all protocols.
type metrics struct {
	requests *prometheus.CounterVec
	// cells are the counters of requests by method (0: any other) and code, made when they are first needed: looking one up
	// in the vector takes longer than the rest of a request does here.
	cells [int(codes.DELETE) + 1][256]atomic.Pointer[prometheus.Counter]
}

func newMetrics(reg prometheus.Registerer, server *wire.Server) (*metrics, error) {
	m := &metrics{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidegate_coap_requests_total", Help: "Requests of CoAP clients by method and the code they were answered with.",
	}, []string{"method", "code"})}
	counter := func(name, help string, labels prometheus.Labels, value func(wire.Stats) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(value(server.Stats())) })
	}
	dropped := func(reason string, value func(wire.Stats) uint64) prometheus.Collector {
		return counter("tidegate_coap_dropped_total", "Datagrams that changed nothing, by reason.",
			prometheus.Labels{"reason": reason}, value)
	}
	gauge := func(name, help string, value func(wire.Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(value(server.Stats())) })
	}
	for _, c := range []prometheus.Collector{
		m.requests,
		counter("tidegate_coap_duplicates_total", "Requests that came again and were answered from memory.",
			nil, func(s wire.Stats) uint64 { return s.Duplicates }),
		counter("tidegate_coap_retransmissions_total", "Separate responses that were sent again.",
			nil, func(s wire.Stats) uint64 { return s.Retransmissions }),
		counter("tidegate_coap_unacknowledged_total", "Separate responses that no client acknowledged, or wanted.",
			nil, func(s wire.Stats) uint64 { return s.GivenUp }),
		counter("tidegate_coap_forgotten_peers_total", "Peers that were not heard for long, or made room for others.",
			nil, func(s wire.Stats) uint64 { return s.Forgotten }),
		dropped("malformed", func(s wire.Stats) uint64 { return s.Malformed }),
		dropped("unexpected", func(s wire.Stats) uint64 { return s.Unexpected }),
		dropped("send_failed", func(s wire.Stats) uint64 { return s.SendFailed }),
		gauge("tidegate_coap_parked", "Requests that wait for the disk, or for the client to acknowledge their answer.",
			func(s wire.Stats) int { return s.Parked }),
		gauge("tidegate_coap_peers", "Clients whose requests are remembered.", func(s wire.Stats) int { return s.Peers }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// count counts a request that was answered with a code.
func (m *metrics) count(method, code codes.Code) {
	row := 0
	if method >= codes.GET && method <= codes.DELETE {
		row = int(method)
	}
	cell := &m.cells[row][byte(code)]
	c := cell.Load()
	if c == nil {
		made := m.requests.WithLabelValues(methodName(method), codeText(code))
		c = &made
		cell.Store(c)
	}
	(*c).Inc()
}

// codeText writes a code as CoAP does: 2.04.
func codeText(code codes.Code) string { return fmt.Sprintf("%d.%02d", code>>5, code&31) }
