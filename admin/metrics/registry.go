// Package metrics makes the registry of the gateway and the collectors for packages that know no Prometheus.
//
// Every name begins with tidegate_, but for those of the Go runtime (go_) and the process (process_). Labels are bounded:
// uplink, lane, route, reason, protocol; never a topic or a client identifier. Services with metrics of their own register
// them where they are made; here are the registry and the buffer's (buffer.go).
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the collectors of the Go runtime and the process; they cost only when scraped.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return reg
}
