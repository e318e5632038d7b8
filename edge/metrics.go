package edge

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"tidegate/edge/session"
	"tidegate/message"
)

// metrics are the broker's. Everything that comes in passes through it, so it counts for all protocols.
type metrics struct {
	ingested     *prometheus.CounterVec
	refused      *prometheus.CounterVec
	drops        *prometheus.CounterVec
	refusedConns prometheus.Counter
	logins       *prometheus.CounterVec
	handshakes   prometheus.Counter
	panics       prometheus.Counter
	mqtt         prometheus.Counter // ingested of mqtt, the busiest
}

func newMetrics(reg prometheus.Registerer, b *Broker) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		ingested: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_ingested_messages_total", Help: "Messages taken over from devices and bridges.",
		}, []string{"protocol"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_refused_messages_total", Help: "Messages of devices and bridges that were not taken.",
		}, []string{"protocol", "reason"}),
		drops: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_session_drops_total", Help: "Deliveries to local subscribers that were given up.",
		}, []string{"reason"}),
		refusedConns: f.NewCounter(prometheus.CounterOpts{
			Name: "tidegate_refused_connections_total", Help: "Connections closed on arrival because of a limit.",
		}),
		logins: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_refused_logins_total", Help: "Clients that were not admitted.",
		}, []string{"reason"}),
		handshakes: f.NewCounter(prometheus.CounterOpts{
			Name: "tidegate_failed_handshakes_total", Help: "Connections whose TLS or WebSocket handshake failed.",
		}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "tidegate_client_panics_total", Help: "Connections closed because a packet crashed its decoder.",
		}),
	}
	m.mqtt = m.ingested.WithLabelValues(string(message.MQTT))
	for _, reason := range []string{"busy", "not_allowed", "invalid", "too_large"} { // shown as 0 from the beginning
		m.refused.WithLabelValues(string(message.MQTT), reason)
	}
	for _, reason := range []string{"credentials", "locked", "busy", "certificate", "will", "client_id"} {
		m.logins.WithLabelValues(reason)
	}
	for _, reason := range session.DropReasons() {
		m.drops.WithLabelValues(reason)
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_clients_connected", Help: "MQTT clients that are connected.",
	}, func() float64 { return float64(b.Clients()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_sessions", Help: "MQTT sessions, connected or not.",
	}, func() float64 { return float64(b.Sessions()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidegate_session_store_bytes", Help: "Bytes of messages that wait on disk for MQTT sessions, all together.",
	}, func() float64 { return float64(b.stored()) })
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "tidegate_session_lost_records_total", Help: "Records of sessions and retained messages lost to damage on the disk.",
	}, func() float64 { return float64(b.lost()) })
	return m
}

func (m *metrics) taken(p message.Protocol) {
	if p == message.MQTT {
		m.mqtt.Inc()
		return
	}
	m.ingested.WithLabelValues(string(p)).Inc()
}

func (m *metrics) refuse(p message.Protocol, reason string) {
	m.refused.WithLabelValues(string(p), reason).Inc()
}

func (m *metrics) drop(reason string, n int) { m.drops.WithLabelValues(reason).Add(float64(n)) }
