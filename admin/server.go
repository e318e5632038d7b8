// Package admin is the [admin] surface of the gateway: health, readiness, metrics and the status as HTTP, and the socket in
// the data folder over which the commands of the same machine talk to the running gateway (socket.go).
//
// It reads what it shows through the small Source interface and starts no work of its own. It shares no mux and no login
// with the data surface for devices. Nothing here changes anything but a reload of the configuration (reload.go). Start reading
// here; api.go holds the routes.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/certs"
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
	certs    *certs.Server // nil: http
}

// New checks the section and binds its address; port 0 picks a free one. It refuses an address beyond loopback where no
// certificate is asked for, as everybody who reaches it may read what it shows.
func New(c config.Admin, source Source, metrics prometheus.Gatherer, log *slog.Logger) (*Server, error) {
	address, err := address(c)
	if err != nil {
		return nil, err
	}
	s := &Server{http: newHTTP(routes(source, metrics, log), log)}
	t, secure := c.TLS()
	if secure {
		if s.certs, err = certs.NewServer(t); err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
	}
	if s.listener, err = net.Listen("tcp", address); err != nil {
		return nil, fmt.Errorf("admin: listen: %w", err)
	}
	if secure {
		s.listener = tls.NewListener(s.listener, s.certs.Config())
	}
	return s, nil
}

// ReloadCertificates reads the certificate files again that changed, and returns the keys of those that are in use from now
// on, and what is wrong with the rest, of which the earlier files stay in use.
func (s *Server) ReloadCertificates() (changed []string, problems []error) {
	if s.certs == nil {
		return nil, nil
	}
	keys, err := s.certs.Reload()
	for _, k := range keys {
		changed = append(changed, "admin."+k)
	}
	if err != nil {
		problems = append(problems, fmt.Errorf("admin: %w", err))
	}
	return changed, problems
}

// CertificateWarnings says what somebody has to look at: files that cannot be used, certificates that have expired or soon will.
func (s *Server) CertificateWarnings(now time.Time) []string {
	if s.certs == nil {
		return nil
	}
	list := s.certs.Warnings(now)
	for i := range list {
		list[i] = "admin: " + list[i]
	}
	return list
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

// address returns HOST:PORT of the URL, if only this machine can reach it or only holders of a certificate come in.
func address(c config.Admin) (string, error) {
	u, err := url.Parse(c.Listen)
	_, secure := c.TLS()
	scheme := "http"
	if secure {
		scheme = "https"
	}
	if err != nil || u.Scheme != scheme || u.Port() == "" || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("admin: listen address %q: want %s://HOST:PORT", c.Listen, scheme)
	}
	if host := u.Hostname(); host != "localhost" && !(secure && c.ClientCA != "") {
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.IsLoopback() {
			return "", fmt.Errorf("admin: listen address %q: away from loopback it wants https and client_ca; "+
				"or use http://127.0.0.1:%s", c.Listen, u.Port())
		}
	}
	return u.Host, nil
}
