package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidegate/config"
)

// ran is what a command did.
type ran struct {
	code     int
	out, err string
}

// runCommand runs one command with the given standard input.
func runCommand(cmd func([]string, stdio) int, in string, args ...string) ran {
	var out, err bytes.Buffer
	code := cmd(args, stdio{in: strings.NewReader(in), out: &out, err: &err})
	return ran{code, out.String(), err.String()}
}

// configFile writes a configuration and returns its path.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tidegate.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	t.Setenv("TIDEGATE_CONFIG", "")
	good := configFile(t, "version = 1\n")
	wrong := configFile(t, "[log]\nlevle = 'info'\n[broker]\nmax_clients = 0\n")
	warned := configFile(t, "[route.r]\nfrom = ['a']\n")
	missing := good + ".missing"
	for _, c := range []struct {
		name string
		args []string
		want ran
	}{
		{"good", []string{"--config", good}, ran{0, good + ": fine\n", ""}},
		{"wrong", []string{"--config", wrong}, ran{78, "", wrong + ":2:1: log.levle: unknown key; did you mean \"level\"?\n" +
			wrong + ":4:15: broker.max_clients: must be from 1 to 10000000, not 0\n"}},
		{"warned", []string{"--config=" + warned}, ran{0, warned + ": fine\n", warned + ":1:8: route.r: warning: leads nowhere: there is no [uplink.NAME]\n"}},
		{"missing", []string{"--config", missing}, ran{78, "", missing + ": no such file; it was named by --config\n"}},
		{"JSON of nothing", []string{"--json", "--config", good}, ran{0, "[]\n", ""}},
		{"an argument", []string{good}, ran{2, "", "tidegate: check takes no argument \"" + good + "\"; name the file with --config\n"}},
	} {
		if got := runCommand(cmdCheck, "", c.args...); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
	if got := runCommand(cmdCheck, "", "--nonsense"); got.code != 2 {
		t.Errorf("a wrong flag: %+v", got)
	}
	t.Setenv("TIDEGATE_CONFIG", wrong)
	if got := runCommand(cmdCheck, ""); got.code != 78 {
		t.Errorf("TIDEGATE_CONFIG: %+v", got)
	}
	got := runCommand(cmdCheck, "", "--json")
	var problems []map[string]any
	if err := json.Unmarshal([]byte(got.out), &problems); err != nil || got.code != 78 || got.err != "" || len(problems) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	want := map[string]any{
		"file": wrong, "line": 2.0, "column": 1.0, "key": "log.levle", "severity": "error", "message": "unknown key", "suggestion": "level",
	}
	if fmt.Sprint(problems[0]) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", problems[0], want)
	}
}

func TestCheckOnline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.Addr().String()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	// A server that knows no WebSocket, and a proxy that says yes to every CONNECT.
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.NotFound(w, r)
		}
	}))
	defer web.Close()
	text := func(servers ...string) string {
		return fmt.Sprintf("[route.r]\nfrom = ['a']\n[uplink.c]\nservers = [%s]\n", strings.Join(servers, ", "))
	}
	up, down := fmt.Sprintf("'mqtt://%s'", l.Addr()), fmt.Sprintf("'mqtt://%s'", gone)
	for _, c := range []struct {
		name, text string
		code       int
		at         string // where the problem stands
	}{
		{"reachable", text(up), 0, ""},
		{"one of two", text(up, down), 0, fmt.Sprintf(":4:%d: ", len("servers = [")+len(up)+len(", ")+1)},
		{"none", text(down), 69, ":4:12: "},
		{"no websocket there", text(fmt.Sprintf("'ws://%s'", web.Listener.Addr())), 69, ":4:12: "},
		{"through a proxy", text("'mqtt://broker.test:1883'") + fmt.Sprintf("proxy = 'http://%s'\n", web.Listener.Addr()), 0, ""},
		{"through no proxy", text(up) + fmt.Sprintf("proxy = 'http://%s'\n", gone), 69, ":4:12: "},
		{"wrong", text(), 78, ":4:11: "},
		{"a broker of one's own", text(up) + "[broker]\nmode = 'external'\n[broker.external]\nservers = [" + up + "]", 0, ":4:12: "},
	} {
		got := runCommand(cmdCheck, "", "--online", "--config", configFile(t, c.text))
		if n := strings.Count(got.err, "uplink.c.servers: "); got.code != c.code || (n == 1) != (c.at != "") ||
			!strings.Contains(got.err, c.at) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if told := strings.Contains(got.err, "not tried by this build"); told != (c.code != 78) {
			t.Errorf("%s: what was not tried: %+v", c.name, got)
		}
	}
}

// TestCheckOnlineBroker: a broker of the user's own is looked for as well.
func TestCheckOnlineBroker(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[route.r]\nfrom = ['a']\n[broker]\nmode = 'external'\n[broker.external]\nservers = ['mqtt://%s']\n", gone.Addr())
	got := runCommand(cmdCheck, "", "--online", "--config", configFile(t, text))
	if got.code != 69 || !strings.Contains(got.err, ":6:12: broker.external.servers: mqtt://"+gone.Addr().String()+": dial: ") {
		t.Errorf("%+v", got)
	}
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if got := runCommand(cmdInit, ""); got.code != 0 || !strings.HasPrefix(got.out, "wrote tidegate.toml;") || got.err != "" {
		t.Errorf("%+v", got)
	}
	b, err := os.ReadFile("tidegate.toml")
	if err != nil || !bytes.Equal(b, config.Sample()) {
		t.Errorf("%s %v", b, err)
	}
	if got := runCommand(cmdCheck, "", "--config", "tidegate.toml"); got != (ran{0, "tidegate.toml: fine\n", ""}) {
		t.Errorf("what init wrote: %+v", got)
	}
	if err := os.WriteFile("mine.toml", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := runCommand(cmdInit, "", "mine.toml"); got.code != 1 || !strings.Contains(got.err, "already there and was left alone") {
		t.Errorf("%+v", got)
	}
	if b, err := os.ReadFile("mine.toml"); err != nil || string(b) != "mine" {
		t.Errorf("%s %v", b, err)
	}
	if got := runCommand(cmdInit, "", "missing/x.toml"); got.code != 1 {
		t.Errorf("%+v", got)
	}
	if got := runCommand(cmdInit, "", "a", "b"); got.code != 2 {
		t.Errorf("%+v", got)
	}
}
