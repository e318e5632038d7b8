package uplink

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of one uplink. Several uplinks share the vectors.
type metrics struct {
	connected  func() prometheus.Gauge // makes it where there is none
	forget     func()                  // removes connected
	reconnects *prometheus.CounterVec
	commands   *prometheus.CounterVec
	stripped   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, name string) (*metrics, error) {
	uplink := prometheus.Labels{"uplink": name}
	connected, err := register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tidegate_uplink_connected", Help: "1 while the uplink has a connection to a cloud broker.",
	}, []string{"uplink"}))
	if err != nil {
		return nil, err
	}
	reconnects, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidegate_uplink_reconnects_total", Help: "Connections lost and attempts failed, by reason.",
	}, []string{"uplink", "reason"}))
	if err != nil {
		return nil, err
	}
	commands, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidegate_uplink_commands_total",
		Help: "Commands from the cloud: accepted, refused (acknowledged, not taken), retried, or lost (QoS 0, too many).",
	}, []string{"uplink", "result"}))
	if err != nil {
		return nil, err
	}
	stripped, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidegate_uplink_stripped_total",
		Help: "Messages sent without their retain flag (retain) or with a lower QoS (qos), because the cloud takes no better.",
	}, []string{"uplink", "what"}))
	if err != nil {
		return nil, err
	}
	return &metrics{
		// One that is prepared and never run shows nothing, and one of the same name may still be connected.
		connected:  func() prometheus.Gauge { return connected.With(uplink) },
		forget:     func() { connected.Delete(uplink) },
		reconnects: reconnects.MustCurryWith(uplink),
		commands:   commands.MustCurryWith(uplink),
		stripped:   stripped.MustCurryWith(uplink),
	}, nil
}

// register returns the collector that reg holds already where another uplink registered it first.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	var have prometheus.AlreadyRegisteredError
	if errors.As(err, &have) {
		if c, ok := have.ExistingCollector.(C); ok {
			return c, nil
		}
	}
	return c, err
}
