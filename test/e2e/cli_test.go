package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestVersionAndUsage(t *testing.T) {
	dir := t.TempDir()
	if r := runCommand(t, dir, "", "version"); r.code != 0 || !strings.Contains(r.out, "tidegate") || r.err != "" {
		t.Errorf("version: %v", r)
	}
	for _, args := range [][]string{{}, {"frobnicate"}, {"run", "--frobnicate"}, {"buffer"}, {"buffer", "frobnicate"}, {"auth", "test", "u"}} {
		r := runCommand(t, dir, "", args...)
		if r.code != 2 || r.err == "" || r.out != "" {
			t.Errorf("%q: %v\nwant exit code 2 and the usage on standard error", args, r)
		}
	}
	if r := runCommand(t, dir, "", "statsu"); !strings.Contains(r.err, "statsu") {
		t.Errorf("a misspelt command: %v", r)
	}
}

// TestInit: what `init` writes passes `check` and runs unchanged.
func TestInit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tidegate.toml")
	if r := runCommand(t, dir, "", "init", file); r.code != 0 {
		t.Fatalf("init: %v", r)
	}
	text := readFile(t, file)
	if strings.Count(text, "##") < 10 {
		t.Errorf("the file has hardly a comment:\n%s", text)
	}
	if r := runCommand(t, dir, "", "check", "--config", file); r.code != 0 {
		t.Errorf("check of it: %v", r)
	}
	if r := runCommand(t, dir, "", "init", file); r.code == 0 || readFile(t, file) != text {
		t.Errorf("a second init over the same file: %v", r)
	}
	// Run it as it is, but for the ports and the folder, which may be in use here.
	g := newGateway(t)
	own := regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(text, "127.0.0.1:0")
	if m := regexp.MustCompile(`(?m)^\s*data_dir\s*=.*$`); m.MatchString(own) {
		own = m.ReplaceAllString(own, `data_dir = "data"`)
	} else {
		own = strings.Replace(own, "[gateway]", "[gateway]\n  data_dir = \"data\"", 1)
	}
	g.configure(own)
	g.start()
	g.stop()
}

// TestRunWithoutConfiguration: the built-in default runs, in the user's state folder.
func TestRunWithoutConfiguration(t *testing.T) {
	dir := t.TempDir()
	if r := runCommand(t, dir, "", "run", "--config", filepath.Join(dir, "missing.toml")); r.code != 78 || !strings.Contains(r.err, "missing.toml") {
		t.Errorf("run with a file that does not exist: %v\nwant exit code 78 and the file's name", r)
	}
}

var problemLine = regexp.MustCompile(`(?m)^(.+):(\d+):(\d+): ([^:]*): (.+)$`)

// TestCheck: every problem in one go, with its place and the nearest known key; exit code 78.
func TestCheck(t *testing.T) {
	g := newGateway(t)
	g.configure(`version = 1
[gateway]
  id = "gw"
  data_dir = "data"
  colour = "blue"
[listener.a]
  listen = "mqtt://127.0.0.1:21883"
[listener.b]
  listen = "mqtt://127.0.0.1:21883"
[broker]
  max_clients = "many"
  session_expiry = "soon"
  max_packet = "1 potato"
[auth]
  users_file = "no-such-users.toml"
[route.up]
  form = ["plant/#"]
  from = ["plant/#/x"]
  topic = "{nothing}/x"
  to = ["nowhere"]
[uplink.cloud]
  servers = ["mqtt://127.0.0.1:1883"]
  batch = { max_messages = 0 }
  [uplink.cloud.buffer]
    max_byte = "1GiB"
`)
	r := g.run("check")
	if r.code != 78 {
		t.Errorf("check: %v\nwant exit code 78", r)
	}
	lines := problemLine.FindAllStringSubmatch(r.err, -1)
	for _, want := range []struct{ line, text string }{
		{"5", "colour"},
		{"9", "127.0.0.1:21883"}, // or reported at line 7
		{"11", "max_clients"},
		{"12", "session_expiry"},
		{"13", "max_packet"},
		{"15", "no-such-users.toml"},
		{"17", "from"},
		{"18", "plant/#/x"},
		{"19", "nothing"},
		{"20", "nowhere"},
		{"23", "max_messages"},
		{"25", "max_bytes"},
	} {
		found := false
		for _, m := range lines {
			if m[1] != g.config && filepath.Base(m[1]) != "gw.toml" {
				t.Errorf("problem in %q: want the path of the file", m[1])
			}
			found = found || (m[2] == want.line || want.line == "9" && m[2] == "7") && strings.Contains(m[0], want.text)
		}
		if !found {
			t.Errorf("no problem at line %s about %s", want.line, want.text)
		}
	}
	if t.Failed() {
		t.Logf("check said:\n%s", r.err)
	}

	r = g.run("check", "--json")
	var problems []struct {
		File, Key, Severity, Message, Suggestion string
		Line, Column                             int
	}
	if err := json.Unmarshal([]byte(r.out), &problems); err != nil || r.code != 78 {
		t.Fatalf("check --json: %v: %v", err, r)
	}
	suggested := false
	for _, p := range problems {
		suggested = suggested || strings.Contains(p.Suggestion, "max_bytes")
		if p.Line == 0 || p.Column == 0 || p.Message == "" || (p.Severity != "error" && p.Severity != "warning") {
			t.Errorf("incomplete problem: %+v", p)
		}
	}
	if !suggested || len(problems) != len(lines) {
		t.Errorf("check --json has %d problems (max_bytes suggested: %t), check has %d:\n%s", len(problems), suggested, len(lines), r.out)
	}
	if r := g.run("run"); r.code != 78 || !strings.Contains(r.err, "colour") {
		t.Errorf("run with that file: %v\nwant exit code 78 and the problems", r)
	}
	g.configure(head)
	if r := g.run("check"); r.code != 0 {
		t.Errorf("check of a good file: %v", r)
	}
}

// TestConfigurationFolder: conf.d is merged in name order, also for the commands that look for the running gateway.
func TestConfigurationFolder(t *testing.T) {
	g := newGateway(t)
	if err := os.Mkdir(filepath.Join(g.dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	g.write("conf.d/10-id.toml", "[gateway]\n  id = \"from-folder\"\n")
	g.write("conf.d/20-listener.toml", "[listener.more]\n  listen = \"mqtt://127.0.0.1:0\"\n")
	r := g.run("check")
	if r.code != 0 || !strings.Contains(r.err+r.out, "id") {
		t.Errorf("check: %v\nwant exit code 0 and a word on the id that is set twice", r)
	}
	g.start()
	if s := g.status(); s.Gateway != "from-folder" {
		t.Errorf("the gateway's name is %q", s.Gateway)
	}
	publish(t, g.addr("listener.more"), "-t", "x", "-m", "y")
	g.stop()
}

// TestPasswdAndAuthTest: users and the explanation of a decision.
func TestPasswdAndAuthTest(t *testing.T) {
	g := secured(t)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"press-1", "publish", "plant/press-1/temp"}, 0, "press-*"},
		{[]string{"press-1", "publish", "plant/press-2/temp"}, 1, ""},
		{[]string{"press-1", "subscribe", "cmd/press-1/#"}, 0, "press-*"},
		{[]string{"hmi", "publish", "plant/x"}, 1, "hmi"},
		{[]string{"hmi", "subscribe", "plant/#"}, 0, "hmi"},
	} {
		r := runCommand(t, g.dir, "", append([]string{"auth", "test", "--config", g.config}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.out, c.says) {
			t.Errorf("auth test %q: %v\nwant exit code %d and the rule of %q", c.args, r, c.code, c.says)
		}
	}
	// A changed password holds after the next start.
	g.stop()
	if r := runCommand(t, g.dir, "changed\n", "passwd", "--config", g.config, "hmi"); r.code != 0 {
		t.Fatalf("passwd: %v", r)
	}
	g.start()
	if w, err := dial(g.addr(devices), "5", login{client: "x", user: "hmi", password: "changed"}); err != nil {
		t.Errorf("the new password: %v", err)
	} else {
		w.close()
	}
	if _, err := dial(g.addr(devices), "5", as("hmi")); err == nil {
		t.Error("the old password still works")
	}
	if _, err := dial(g.addr(devices), "5", as("press-1")); err != nil {
		t.Errorf("another user: %v", err)
	}
	if info, err := os.Stat(filepath.Join(g.dir, "users.toml")); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the users file: %v, %v; want it readable for its owner alone", info.Mode(), err)
	}
	g.stop()
}

// TestOneGatewayPerFolder: a second gateway, and commands without one.
func TestOneGatewayPerFolder(t *testing.T) {
	g := newGateway(t)
	for _, args := range [][]string{{"status"}, {"status", "--json"}} {
		if r := g.run(args...); r.code != 69 || r.err == "" || r.out != "" {
			t.Errorf("%q without a gateway: %v\nwant exit code 69", args, r)
		}
	}
	g.start()
	if r := g.run("run"); r.code != 69 && r.code != 1 || !strings.Contains(r.err, "data") {
		t.Errorf("a second gateway in the same folder: %v\nwant it to fail and to name the folder", r)
	}
	r := g.run("status")
	if r.code != 0 || !strings.Contains(r.out, "gw") {
		t.Errorf("status: %v", r)
	}
	if s := g.status(); !s.Ready || s.Gateway != "gw" || s.Version == "" {
		t.Errorf("status --json: %+v", s)
	}
	info, err := os.Stat(filepath.Join(g.data(), "admin.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin.sock: %v, %v; want mode 0600", info, err)
	}
	g.kill() // its socket and lock are left behind
	if r := g.run("status"); r.code != 69 {
		t.Errorf("status after a kill: %v\nwant exit code 69", r)
	}
	g.start()
	g.stop()
}

// TestPubSub: the small MQTT client among the commands.
func TestPubSub(t *testing.T) {
	g := local(t)
	host, port := hostPort(g.addr(devices))
	near := subscribe(t, g.addr(devices), "%t %q %p", "-q", "2", "-t", "a/#")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		if r := runCommand(t, g.dir, "", "pub", "-h", host, "-p", port, "-V", version, "-t", "a/b", "-q", "2", "-m", version); r.code != 0 {
			t.Fatalf("pub: %v", r)
		}
		near.await("a/b 2 " + version)
	}
	if r := runCommand(t, g.dir, "one\ntwo\n", "pub", "-h", host, "-p", port, "-t", "a/l", "-q", "1", "-r", "-l"); r.code != 0 {
		t.Fatalf("pub -l: %v", r)
	}
	near.await("a/l 1 two")
	r := runCommand(t, g.dir, "", "sub", "-h", host, "-p", port, "-t", "a/l", "-v", "-C", "1", "-W", "20")
	if r.code != 0 || r.out != "a/l two\n" {
		t.Errorf("sub: %v", r)
	}
	if r := runCommand(t, g.dir, "", "sub", "-h", host, "-p", port, "-t", "never", "-C", "1", "-W", "1"); r.code != 1 || r.out != "" {
		t.Errorf("sub that waits in vain: %v\nwant exit code 1", r)
	}
	if r := runCommand(t, g.dir, "", "pub", "-h", "127.0.0.1", "-p", "9", "-t", "a", "-m", "b"); r.code != 69 {
		t.Errorf("pub to nobody: %v\nwant exit code 69", r)
	}
	g.stop()
}

// TestAdminSurface: the pages of [admin] and the metrics that must exist.
func TestAdminSurface(t *testing.T) {
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", "mqtt://127.0.0.1:9", "5"))
	g.start()
	publish(t, g.addr(devices), "-q", "1", "-t", "plant/a", "-m", "x")
	publish(t, g.addr(devices), "-V", "mqttv5", "-q", "1", "-t", "tidegate/x", "-m", "refused")
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/api/v1/status": 200, "/nothing": 404} {
		if code, body := g.get(path); code != want {
			t.Errorf("%s answers %d %q, want %d", path, code, body, want)
		}
	}
	_, body := g.get("/api/v1/status")
	var s gatewayStatus
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Gateway != "gw" || len(s.Uplinks) != 1 || s.Uplinks[0].Records != 1 {
		t.Errorf("/api/v1/status: %v\n%s", err, body)
	}
	m := g.metrics()
	for _, name := range []string{
		"tidegate_ingested_messages_total", "tidegate_refused_messages_total", "tidegate_ledger_total",
		"tidegate_buffer_records", "tidegate_buffer_bytes", "tidegate_buffer_oldest_seconds",
		"tidegate_buffer_fsync_seconds_count", "tidegate_buffer_written_bytes_total", "tidegate_ingest_seconds_count",
		"tidegate_uplink_connected", "tidegate_clients_connected", "tidegate_sessions",
	} {
		if !m.has(name) {
			t.Errorf("/metrics has no %s", name)
		}
	}
	if n := m.sum("tidegate_ingested_messages_total", "protocol=mqtt"); n != 1 {
		t.Errorf("tidegate_ingested_messages_total is %v, want 1", n)
	}
	for _, x := range m {
		if !strings.HasPrefix(x.name, "tidegate_") && !strings.HasPrefix(x.name, "go_") && !strings.HasPrefix(x.name, "process_") &&
			!strings.HasPrefix(x.name, "promhttp_") {
			t.Errorf("metric %s", x.name)
		}
	}
	g.stop()
}
