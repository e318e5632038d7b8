package admin

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed openapi.yaml
var openAPI []byte

// route is one line of the table below; a test finds each in openapi.yaml.
type route struct {
	path    string
	handler http.Handler
	post    bool // changes something: answers POST only
}

// table lists every route of the TCP surface. Those that do not change anything answer GET and HEAD only; anything else is 405.
func table(source Source, metrics prometheus.Gatherer, log *slog.Logger) []route {
	return []route{
		{path: "/healthz", handler: text("ok\n")},
		{path: "/readyz", handler: readyz(source)},
		{path: "/metrics", handler: promhttp.HandlerFor(metrics, promhttp.HandlerOpts{
			ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
			ErrorHandling: promhttp.ContinueOnError,
		})},
		{path: "/api/v1/status", handler: status(source)},
		{path: "/api/v1/reload", handler: guarded(reload(source)), post: true},
		{path: "/api/v1/openapi.yaml", handler: document("application/yaml", openAPI)},
		{path: "/{$}", handler: text("Tidegate. See /healthz, /readyz, /metrics, /api/v1/status and /api/v1/openapi.yaml.\n")},
	}
}

func routes(source Source, metrics prometheus.Gatherer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	for _, r := range table(source, metrics, log) {
		method := "GET "
		if r.post {
			method = "POST "
		}
		mux.Handle(method+r.path, r.handler)
	}
	return secured(mux)
}

// secured sets the headers that keep a browser from guessing types, framing or caching what it gets.
func secured(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Frame-Options", "DENY")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

func text(s string) http.Handler { return document("text/plain; charset=utf-8", []byte(s)) }

func document(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body)
	})
}

// readyz answers 200 while devices can hand over messages, else 503 with the reason.
func readyz(source Source) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := source.Ready(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, "not ready: %v\n", err)
			return
		}
		_, _ = fmt.Fprint(w, "ready\n")
		for _, text := range source.Warnings() {
			_, _ = fmt.Fprintf(w, "warning: %s\n", text)
		}
	})
}

func status(source Source) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(source.Status())
	})
}
