package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidegate/admin"
	"tidegate/buffer"
	"tidegate/config"
)

// testGateway is a gateway that runs in this process, started from a configuration text.
type testGateway struct {
	*background
	file string
	// ready holds what the ready line says: listener.NAME and admin, each HOST:PORT.
	ready map[string]string
}

// writeConfig writes a configuration with a data folder of the test's and returns its path.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	text = fmt.Sprintf("version = 1\n[gateway]\nid = \"g1\"\ndata_dir = %q\n", filepath.Join(dir, "data")) + text
	file := filepath.Join(dir, "gw.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startGateway runs the gateway of a configuration file and waits until it is ready.
func startGateway(t *testing.T, file string) *testGateway {
	t.Helper()
	return awaitReady(t, &testGateway{file: file, background: start(t, nil, "run", "--config", file)})
}

// startGatewayOn is startGateway with a file system of the test's.
func startGatewayOn(t *testing.T, file string, fs buffer.FS) *testGateway {
	t.Helper()
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	g := &testGateway{file: file, background: &background{done: make(chan int, 1)}}
	go func() { g.done <- run(stdio{out: &g.out, err: &g.err}, c, seams{fs: fs}) }()
	return awaitReady(t, g)
}

func awaitReady(t *testing.T, g *testGateway) *testGateway {
	t.Helper()
	t.Cleanup(func() { g.stop(t) })
	eventually(t, "the gateway is ready", func() bool {
		if len(g.done) > 0 {
			t.Fatalf("the gateway ended: %s", g.err.String())
		}
		for line := range strings.Lines(g.err.String()) {
			if strings.Contains(line, " msg=ready ") && strings.HasSuffix(line, "\n") {
				g.ready = map[string]string{}
				for _, field := range strings.Fields(line) {
					k, v, _ := strings.Cut(field, "=")
					g.ready[k] = v
				}
			}
		}
		return g.ready != nil
	})
	return g
}

// stop ends the gateway as a service manager does and checks that it ends well. It may be called twice.
func (g *testGateway) stop(t *testing.T) {
	t.Helper()
	if g.background == nil {
		return
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r := g.wait(t)
	r.want(t, exitOK, "", "msg=stopped")
	if strings.Contains(r.err, "part did not stop") {
		t.Errorf("log: %s", r.err)
	}
	if t.Failed() {
		t.Logf("log of the gateway: %s", r.err)
	}
	g.background = nil
}

// port is the port of a listener.
func (g *testGateway) port(t *testing.T, listener string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(g.ready["listener."+listener])
	if err != nil {
		t.Fatalf("listener %s: %v in %v", listener, err, g.ready)
	}
	return port
}

// pub publishes at a listener of the gateway.
func (g *testGateway) pub(t *testing.T, in string, args ...string) result {
	t.Helper()
	return tidegate(t, in, append([]string{"pub", "-h", "127.0.0.1", "-p", g.port(t, "a")}, args...)...)
}

func (g *testGateway) status(t *testing.T) (s admin.Status) {
	t.Helper()
	r := tidegate(t, "", "status", "--json", "--config", g.file)
	r.want(t, exitOK, "", "")
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		t.Fatalf("%v in %q", err, r.out)
	}
	return s
}

// get asks the admin surface.
func (g *testGateway) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + g.ready["admin"] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// uplinkTo is the [uplink.cloud] section for a broker on this machine.
func uplinkTo(port int, more string) string {
	return fmt.Sprintf("[uplink.cloud]\nservers = [\"mqtt://127.0.0.1:%d\"]\n%s\n", port, more)
}

const (
	oneListener = "[listener.a]\nlisten = \"mqtt://127.0.0.1:0\"\n"
	oneRoute    = "[route.all]\nfrom = [\"plant/#\"]\n"
	withAdmin   = "[admin]\nlisten = \"http://127.0.0.1:0\"\n"
)
