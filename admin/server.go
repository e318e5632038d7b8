// Package admin is the [admin] surface of the gateway: health, readiness, metrics and the status as HTTP, and the socket in
// the data folder over which the commands of the same machine talk to the running gateway (socket.go).
//
// It reads what it shows through the small Source interface and starts no work of its own. It shares no mux and no login
// with the data surface for devices. Nothing here changes anything but a reload of the configuration (reload.go). Start reading
// here; api.go holds the routes.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/config"
)

// Timeouts and bounds of every HTTP server here.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 60 * time.Second // nothing on the TCP surface streams
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
	maxBodyBytes      = 64 << 10
	closeTimeout      = 2 * time.Second
)

// Source is what the surface shows. Its methods are called from many goroutines and must answer at once, but for Reload.
type Source interface {
	Status() Status
	// Ready returns nil when the listeners are up and the disk takes records, else why not.
	Ready() error
	// Warnings are what somebody has to look at though the gateway works.
	Warnings() []string
	// Reload reads the configuration again and reports what that changed. It may take some seconds. by says who asked.
	Reload(by string) Reload
}

// Server serves the [admin] section.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// New checks the section and binds its address; port 0 picks a free one. It refuses an address beyond loopback, as
// everybody who reaches it may read what it shows.
func New(c config.Admin, source Source, metrics prometheus.Gatherer, log *slog.Logger) (*Server, error) {
	address, err := loopback(c.Listen)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("admin: listen: %w", err)
	}
	return &Server{listener: l, http: newHTTP(routes(source, metrics, log), log)}, nil
}

// newHTTP returns a server with the bounds that every one here has.
func newHTTP(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(h, maxBodyBytes),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Addr is the address that was bound.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends; requests under way then have two seconds.
func (s *Server) Run(ctx context.Context) error { return serve(ctx, s.http, s.listener) }

// Close frees the address of a server that is not run.
func (s *Server) Close() error { return s.listener.Close() }

func serve(ctx context.Context, h *http.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }() // ends when the server is closed below, or by itself with an error
	select {
	case err := <-done:
		return fmt.Errorf("admin: serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := h.Shutdown(ending); err != nil {
		_ = h.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: serve %s: %w", l.Addr(), err)
	}
	return nil
}

// loopback returns HOST:PORT of an http URL, if only this machine can reach it.
func loopback(listen string) (string, error) {
	u, err := url.Parse(listen)
	if err != nil || u.Scheme != "http" || u.Port() == "" || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("admin: listen address %q: want http://HOST:PORT", listen)
	}
	if host := u.Hostname(); host != "localhost" {
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.IsLoopback() {
			return "", fmt.Errorf("admin: listen address %q: away from loopback it wants a login, which this build does not have; "+
				"use http://127.0.0.1:%s", listen, u.Port())
		}
	}
	return u.Host, nil
}
