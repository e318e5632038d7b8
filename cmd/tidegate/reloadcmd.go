package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"tidegate/admin"
)

// reloadMetrics count the reloads.
type reloadMetrics struct {
	total *prometheus.CounterVec
	at    prometheus.Gauge
	good  prometheus.Gauge
}

func newReloadMetrics(reg prometheus.Registerer) *reloadMetrics {
	f := promauto.With(reg)
	m := &reloadMetrics{
		total: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_reload_total", Help: "Reloads of the configuration by how they ended.",
		}, []string{"result"}),
		at: f.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_reload_timestamp_seconds", Help: "When the last reload was, in seconds since 1970; 0: there was none.",
		}),
		good: f.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_reload_successful", Help: "0 when the last reload was refused or failed, else 1.",
		}),
	}
	for _, result := range []string{admin.ReloadApplied, admin.ReloadUnchanged, admin.ReloadRefused, admin.ReloadFailed} {
		m.total.WithLabelValues(result)
	}
	m.good.Set(1)
	return m
}

func (m *reloadMetrics) count(r admin.Reload) {
	m.total.WithLabelValues(r.Result).Inc()
	m.at.Set(float64(r.At.Unix()))
	m.good.Set(0)
	if r.Error == "" {
		m.good.Set(1)
	}
}

// cmdReload makes the running gateway read its configuration again.
func cmdReload(args []string, std stdio) int {
	fs := std.flagSet("reload", "[--json] [--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	asJSON := fs.Bool("json", false, "as one JSON object")
	if code, done := std.parse(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		return std.fail(exitUsage, "reload: unexpected argument %q; name the file with --config", fs.Arg(0))
	}
	var r admin.Reload
	if code, done := askGateway(std, "reload", *file, http.MethodPost, pathReload, &r); done {
		return code
	}
	if *asJSON {
		if code := std.printJSON(r); code != exitOK {
			return code
		}
	}
	printProblems(std.err, r.Problems)
	switch r.Result {
	case admin.ReloadRefused:
		return std.fail(exitConfig, "reload: the configuration is wrong; nothing was changed")
	case admin.ReloadFailed:
		return std.fail(exitFailed, "reload: %s; nothing was changed", r.Error)
	}
	if !*asJSON {
		printReload(std.out, r)
	}
	return exitOK
}

// printReload writes what a reload changed for people.
func printReload(w io.Writer, r admin.Reload) {
	switch {
	case len(r.Changed) > 0:
	case len(r.NeedsRestart) > 0:
		fmt.Fprintln(w, "nothing to apply without a restart")
	default:
		fmt.Fprintf(w, "nothing to apply: %s says what holds already\n", nameOf(r.File))
	}
	for _, c := range r.Changed {
		fmt.Fprintln(w, c)
	}
	for _, key := range r.NeedsRestart {
		fmt.Fprintf(w, "%s: needs a restart; the old value stays in force until then\n", key)
	}
}

func nameOf(file string) string {
	if file == "" {
		return "the built-in default"
	}
	return file
}
