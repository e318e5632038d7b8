package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/certs"
	"tidegate/config"
)

// fakeSource is a gateway whose disk fails when err is set.
type fakeSource struct {
	err      error
	warnings []string
	reload   Reload // what a reload reports
	reloads  int
}

func (f *fakeSource) Reload(by string) Reload {
	f.reloads++
	r := f.reload
	r.By = by
	return r
}

func (f *fakeSource) Ready() error       { return f.err }
func (f *fakeSource) Warnings() []string { return f.warnings }

func (f *fakeSource) Status() Status {
	s := Status{Gateway: "g1", Version: "v", Ready: f.err == nil, Uplinks: []UplinkStatus{}, Bridges: []BridgeStatus{}}
	s.Buffer.Writable = f.err == nil
	return s
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a server on a free port and returns its URL.
func start(t *testing.T, source Source) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "tidegate_test_total", Help: "Of this test."}))
	s, err := New(config.Admin{Listen: "http://127.0.0.1:0"}, source, reg, silent())
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return "http://" + s.Addr().String()
}

// run runs a server until the test ends and checks that it ends then, without an error.
func run(t *testing.T, s interface{ Run(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func get(t *testing.T, c *http.Client, method, url string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestRoutes(t *testing.T) {
	source := &fakeSource{}
	base := start(t, source)
	for _, c := range []struct {
		method, path string
		code         int
		contains     string
	}{
		{"GET", "/healthz", 200, "ok"},
		{"GET", "/readyz", 200, "ready"},
		{"GET", "/metrics", 200, "tidegate_test_total 0"},
		{"GET", "/api/v1/status", 200, `"gateway":"g1"`},
		{"GET", "/api/v1/openapi.yaml", 200, "openapi: 3.1.0"},
		{"GET", "/", 200, "/healthz"},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/nothing", 404, ""},
		{"POST", "/api/v1/status", 405, ""},
		{"GET", "/api/v1/reload", 405, ""},
		{"POST", "/api/v1/reload", 200, `"by":"api"`},
		{"DELETE", "/healthz", 405, ""},
	} {
		code, body, header := get(t, http.DefaultClient, c.method, base+c.path)
		if code != c.code || !strings.Contains(body, c.contains) {
			t.Errorf("%s %s: %d %q, want %d with %q", c.method, c.path, code, body, c.code, c.contains)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: headers %v", c.method, c.path, header)
		}
	}
}

func TestNotReadySaysWhy(t *testing.T) {
	base := start(t, &fakeSource{err: errors.New("disk: input/output error")})
	code, body, _ := get(t, http.DefaultClient, "GET", base+"/readyz")
	if code != 503 || !strings.Contains(body, "input/output error") {
		t.Fatalf("readyz: %d %q", code, body)
	}
	if code, _, _ := get(t, http.DefaultClient, "GET", base+"/healthz"); code != 200 {
		t.Fatalf("healthz of a living process: %d", code)
	}
}

func TestStatusHasNoNulls(t *testing.T) {
	base := start(t, &fakeSource{})
	_, body, _ := get(t, http.DefaultClient, "GET", base+"/api/v1/status")
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"gateway", "version", "ready", "uptime_s", "uplinks", "bridges", "clients", "sessions", "buffer", "last_error"} {
		if v, ok := got[key]; !ok || v == nil {
			t.Errorf("%s: %v in %s", key, v, body)
		}
	}
}

// Every route stands in openapi.yaml, and nothing else does.
func TestEveryRouteIsDescribed(t *testing.T) {
	described := map[string]bool{}
	inPaths := false
	for line := range strings.Lines(string(openAPI)) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(line, " ") {
			inPaths = line == "paths:"
		}
		if path, ok := strings.CutPrefix(line, "  /"); ok && inPaths {
			described["/"+strings.TrimSuffix(path, ":")] = true
		}
	}
	for _, r := range table(&fakeSource{}, prometheus.NewRegistry(), silent()) {
		path := strings.TrimSuffix(r.path, "{$}")
		if !described[path] {
			t.Errorf("%s is not in openapi.yaml", path)
		}
		delete(described, path)
	}
	for path := range described {
		t.Errorf("openapi.yaml describes %s, which is no route", path)
	}
}

func TestAddresses(t *testing.T) {
	for listen, want := range map[string]string{
		"http://127.0.0.1:8080":  "127.0.0.1:8080",
		"http://localhost:8080/": "localhost:8080",
		"http://[::1]:8080":      "[::1]:8080",
		"http://127.9.9.9:0":     "127.9.9.9:0",
		"http://0.0.0.0:8080":    "wants https and client_ca",
		"http://:8080":           "wants https and client_ca",
		"http://192.168.1.4:80":  "wants https and client_ca",
		"http://gateway.lan:80":  "wants https and client_ca",
		"https://127.0.0.1:80":   "want http://HOST:PORT",
		"http://127.0.0.1":       "want http://HOST:PORT",
		"http://127.0.0.1:80/x":  "want http://HOST:PORT",
		"127.0.0.1:80":           "want http://HOST:PORT",
	} {
		got, err := address(config.Admin{Listen: listen})
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
	if _, err := New(config.Admin{Listen: "http://0.0.0.0:0"}, &fakeSource{}, prometheus.NewRegistry(), silent()); err == nil {
		t.Error("New accepts every address")
	}
}

// What somebody has to look at does not make a gateway unready, but is said.
func TestReadyWithWarnings(t *testing.T) {
	url := start(t, &fakeSource{warnings: []string{"the certificate expires"}})
	code, body, _ := get(t, http.DefaultClient, http.MethodGet, url+"/readyz")
	if code != http.StatusOK || body != "ready\nwarning: the certificate expires\n" {
		t.Errorf("%d %q", code, body)
	}
}

// TestTLS: over https with client_ca only the holders of a certificate come in, also from other machines, and a new
// certificate is taken live.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, pair, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := config.Admin{Listen: "https://0.0.0.0:0", ClientCA: put("ca.crt", pair.Cert)}
	server := func() {
		t.Helper()
		p, err := ca.Server([]string{"localhost"}, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c.Cert, c.Key = put("server.crt", p.Cert), put("server.key", p.Key)
	}
	server()
	s, err := New(c, &fakeSource{}, prometheus.NewRegistry(), silent())
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	_, port, _ := net.SplitHostPort(s.Addr().String())
	url := "https://localhost:" + port + "/healthz"
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.Cert)
	client := func(certs ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	p, err := ca.Device("admin", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	if code, body, _ := get(t, client(own), http.MethodGet, url); code != http.StatusOK || body != "ok\n" {
		t.Errorf("%d %q", code, body)
	}
	if _, err := client().Get(url); err == nil {
		t.Error("a visitor without a certificate came in")
	}
	if w := s.CertificateWarnings(time.Now()); len(w) != 1 || !strings.HasPrefix(w[0], "admin: certificate") {
		t.Errorf("warnings %q", w)
	}
	server()
	if changed, problems := s.ReloadCertificates(); len(changed) != 1 || changed[0] != "admin.cert" || problems != nil {
		t.Errorf("%v, %v", changed, problems)
	}
	if code, _, _ := get(t, client(own), http.MethodGet, url); code != http.StatusOK {
		t.Errorf("%d", code)
	}
	c.ClientCA = ""
	if _, err := New(c, &fakeSource{}, prometheus.NewRegistry(), silent()); err == nil {
		t.Error("anybody on the network would be let in")
	}
}
