package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tidegate/admin"
	"tidegate/config"
)

// rewrite replaces the configuration of a gateway, so that nobody reads half of it.
func (g *testGateway) rewrite(t *testing.T, text string) {
	t.Helper()
	head := fmt.Sprintf("version = 1\n[gateway]\nid = \"g1\"\ndata_dir = %q\n", filepath.Join(filepath.Dir(g.file), "data"))
	next := g.file + ".next"
	writeFile(t, next, head+text)
	if err := os.Rename(next, g.file); err != nil {
		t.Fatal(err)
	}
}

func (g *testGateway) reload(t *testing.T) result {
	t.Helper()
	return tidegate(t, "", "reload", "--config", g.file)
}

// TestReload: the command says what changed, the status and the metrics how it ended, and a wrong file changes nothing.
func TestReload(t *testing.T) {
	cloud := mosquitto(t, "allow_anonymous true")
	base := oneListener + withAdmin + uplinkTo(cloud, "")
	g := startGateway(t, writeConfig(t, base))
	eventually(t, "the uplink is connected", func() bool { return g.status(t).Uplinks[0].Connected })
	g.reload(t).want(t, exitOK, "nothing to apply", "")

	g.rewrite(t, base+oneRoute)
	g.reload(t).want(t, exitOK, "route.all: added\n", "")
	g.pub(t, numbered(10), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	eventually(t, "what the new route sends arrives", func() bool { return g.status(t).Uplinks[0].Delivered == 10 })

	wrong := base + oneRoute + "[route.bad]\nfrom = [\"#\"]\ntopik = \"x\"\n"
	g.rewrite(t, wrong)
	g.reload(t).want(t, exitConfig, "", fmt.Sprintf("%s:%d:1: route.bad.topik: ", g.file, strings.Count(wrong, "\n")+4))
	s := g.status(t)
	if s.Reload == nil || s.Reload.Result != admin.ReloadRefused || !strings.Contains(s.Reload.Error, "route.bad.topik") {
		t.Errorf("status: %+v", s.Reload)
	}
	tidegate(t, "", "status", "--config", writeBeside(t, g.file, base)).want(t, exitOK, "the earlier configuration is in force", "")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "SIGHUP is refused as well", func() bool { return g.status(t).Reload.By == "SIGHUP" })
	g.pub(t, numbered(10), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	eventually(t, "the route of before goes on", func() bool { return g.status(t).Uplinks[0].Delivered == 20 })

	g.rewrite(t, base+"[broker]\nmax_clients = 5\n[log]\nlevel = \"debug\"\n")
	resp, err := http.Post("http://"+g.ready["admin"]+"/api/v1/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var r admin.Reload
	err = json.NewDecoder(resp.Body).Decode(&r)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || fmt.Sprint(r.NeedsRestart) != "[broker.max_clients]" || fmt.Sprint(r.Changed) != "[log: changed: level route.all: removed]" {
		t.Errorf("%v, %d, %+v", err, resp.StatusCode, r)
	}
	eventually(t, "the log is a detailed one", func() bool {
		g.pub(t, "", "-t", "x", "-m", "x").want(t, exitOK, "", "")
		return strings.Contains(g.err.String(), "level=DEBUG")
	})
	_, text := g.get(t, "/metrics")
	for _, line := range []string{
		`tidegate_reload_total{result="applied"} 2`, `tidegate_reload_total{result="refused"} 2`,
		`tidegate_reload_total{result="unchanged"} 1`, `tidegate_reload_total{result="failed"} 0`,
		"tidegate_reload_successful 1", "tidegate_reload_timestamp_seconds 1.", `tidegate_ledger_total{place="delivered",route="all",uplink="cloud"} 20`,
		`tidegate_uplink_connected{uplink="cloud"} 1`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the metrics have no %s", line)
		}
	}
	if strings.Contains(text, "tidegate_uplink_reconnects_total{") {
		t.Error("the uplink connected again")
	}
	if log := g.err.String(); !strings.Contains(log, `audit=true by=command result=applied changed="route.all: added"`) {
		t.Errorf("no audit of the change in %s", log)
	}
	g.stop(t)
	g.reload(t).want(t, exitUnavailable, "", "no gateway runs on")
}

// writeBeside writes another configuration into the folder of file.
func writeBeside(t *testing.T, file, text string) string {
	t.Helper()
	other := filepath.Join(filepath.Dir(file), "other.toml")
	writeFile(t, other, fmt.Sprintf("version = 1\n[gateway]\nid = \"g1\"\ndata_dir = %q\n", filepath.Join(filepath.Dir(file), "data"))+text)
	return other
}

// TestReloadAllOrNothing: an address that is taken keeps everything else of the file from happening, whichever part it is of.
func TestReloadAllOrNothing(t *testing.T) {
	cloud := mosquitto(t, "allow_anonymous true")
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	kept := fmt.Sprintf("[coap]\nlisten = [\"coap://127.0.0.1:%d\"]\n", freePort(t))
	base := oneListener + uplinkTo(cloud, "")
	g := startGateway(t, writeConfig(t, base+kept))
	more := base + oneRoute + "[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"\n"
	for _, text := range []string{
		more + fmt.Sprintf("[coap]\nlisten = [\"coap://%s\"]\n", taken.LocalAddr()),
		more + fmt.Sprintf("[listener.c]\nlisten = \"mqtt://127.0.0.1:%d\"\n", cloud),
	} {
		g.rewrite(t, text)
		g.reload(t).want(t, exitFailed, "", "address already in use; nothing was changed")
		g.rewrite(t, base+kept)
		g.reload(t).want(t, exitOK, "nothing to apply", "")
		if s := g.status(t); len(s.Bridges) != 1 || !s.Bridges[0].Up {
			t.Errorf("the bridges are %v", s.Bridges)
		}
	}
	g.rewrite(t, more)
	g.reload(t).want(t, exitOK, "coap: removed", "")
	if s := g.status(t); len(s.Bridges) != 0 {
		t.Errorf("the bridges are %v", s.Bridges)
	}
}

// TestReloadOften: reloads of every kind, asked for in every way, while devices publish and others look. It is for the race
// detector above all.
func TestReloadOften(t *testing.T) {
	cloud := mosquitto(t, "allow_anonymous true")
	base := oneListener + withAdmin + oneRoute + uplinkTo(cloud, "")
	variants := []string{
		base + "[coap]\nlisten = [\"coap://127.0.0.1:0\"]\n",
		base + "[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"\n[route.more]\nfrom = [\"plant/#\"]\ntopic = \"more/{topic}\"\nto = [\"cloud\"]\n",
		base + strings.ReplaceAll(uplinkTo(cloud, ""), "cloud", "second") + "[auth]\n[[auth.rule]]\nuser = \"*\"\npublish = [\"#\"]\nsubscribe = [\"#\"]\n",
		base + "keep_alive = \"20s\"\n[log]\nlevel = \"debug\"\n",
		base,
	}
	g := startGateway(t, writeConfig(t, base))
	const n = 2000
	publishing := start(t, strings.NewReader(numbered(n)), "pub", "-h", "127.0.0.1", "-p", g.port(t, "a"), "-t", "plant/a", "-l", "-q", "1")
	looking := make(chan struct{})
	look := make(chan struct{})
	go func() { // ends with looking
		defer close(look)
		for {
			select {
			case <-looking:
				return
			default:
				g.get(t, "/api/v1/status")
				g.get(t, "/metrics")
			}
		}
	}()
	for i := range 2 * len(variants) {
		g.rewrite(t, variants[i%len(variants)])
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Error(err)
		}
		g.reload(t).want(t, exitOK, "", "")
	}
	close(looking)
	<-look
	publishing.wait(t).want(t, exitOK, "", "")
	g.pub(t, numbered(n), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	eventually(t, "everything is delivered", func() bool {
		s := g.status(t)
		return len(s.Uplinks) == 1 && s.Uplinks[0].Records == 0
	})
	_, text := g.get(t, "/metrics")
	if line := fmt.Sprintf(`tidegate_ledger_total{place="delivered",route="all",uplink="cloud"} %d`, 2*n); !strings.Contains(text, line) {
		t.Errorf("the metrics have no %s", line)
	}
}

// TestReloadAddsEncryptedUplink: an uplink that is added while the gateway runs has its records encrypted from the first one on, and
// the next process reads them. One whose demands the open log cannot meet is refused, and nothing changes.
func TestReloadAddsEncryptedUplink(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	writeFile(t, key, strings.Repeat("0f", 32))
	away := freePort(t)
	loose := oneListener + oneRoute + uplinkTo(away, "[uplink.cloud.buffer]\nsync = \"1s\"")
	second := func(port int, buffer string) string {
		return strings.ReplaceAll(uplinkTo(port, "[uplink.cloud.buffer]\nencryption_key = { file = \""+key+"\" }\n"+buffer), "cloud", "second")
	}
	g := startGateway(t, writeConfig(t, loose))
	g.rewrite(t, loose+second(away, "")+"[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"\n")
	g.reload(t).want(t, exitFailed, "", "uplink.second.buffer.sync: the buffer was opened with 1s at risk")
	if s := g.status(t); len(s.Uplinks) != 1 || strings.Contains(g.err.String(), "listener.b") {
		t.Errorf("something changed: %+v", s.Uplinks)
	}
	g.rewrite(t, oneListener+oneRoute+second(away, "sync = \"1s\""))
	g.reload(t).want(t, exitOK, "uplink.cloud: removed\nuplink.second: added\n", "")
	const secret = "what nobody may read on the disk"
	g.pub(t, strings.Repeat(secret+"\n", 100), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")
	g.stop(t)
	segments, err := filepath.Glob(filepath.Join(filepath.Dir(g.file), "data", "log", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("%v, %v", segments, err)
	}
	for _, file := range segments {
		if data, _ := os.ReadFile(file); strings.Contains(string(data), "nobody may read") {
			t.Errorf("%s holds plain records", file)
		}
	}

	cloud := mosquitto(t, "allow_anonymous true")
	g.rewrite(t, oneListener+oneRoute)
	g = startGateway(t, g.file)
	g.rewrite(t, oneListener+oneRoute+second(cloud, ""))
	g.reload(t).want(t, exitFailed, "", "uplink.second.buffer.encryption_key: the buffer holds a queue of this uplink from before")
	g.stop(t)
	g = startGateway(t, g.file)
	eventually(t, "the next process sends them", func() bool { return g.status(t).Uplinks[0].Delivered == 100 })
}

// TestReloadCoAPMoves: a CoAP server grows from one address of its port to every one, and gets a second one beside it. Where the
// latter is taken, the first goes on as it was.
func TestReloadCoAPMoves(t *testing.T) {
	port := freePort(t)
	listen := func(addresses string) string { return oneListener + "[coap]\nlisten = [" + addresses + "]\n" }
	small := fmt.Sprintf(`"coap://127.0.0.1:%d"`, port)
	g := startGateway(t, writeConfig(t, listen(small)))
	up := func() {
		t.Helper()
		eventually(t, "the bridge is up", func() bool { b := g.status(t).Bridges; return len(b) == 1 && b[0].Up })
	}
	up()
	g.rewrite(t, listen(fmt.Sprintf(`"coap://:%d"`, port)))
	g.reload(t).want(t, exitOK, "coap: changed: listen\n", "")
	up()
	g.rewrite(t, listen(small+`, "coap://127.0.0.1:0"`))
	g.reload(t).want(t, exitOK, "coap: changed: listen\n", "")
	up()
	if !strings.Contains(g.err.String(), fmt.Sprintf("coap=127.0.0.1:%d coap.2=127.0.0.1:", port)) {
		t.Errorf("the log does not name the new addresses: %s", g.err.String())
	}
}

// TestReloadIsTakenBack: when the last step of a change fails, routes, uplinks, listeners and bridges are what they were, and
// nothing that was taken meanwhile is lost.
func TestReloadIsTakenBack(t *testing.T) {
	cloud := mosquitto(t, "allow_anonymous true")
	port := freePort(t)
	base := oneRoute + uplinkTo(cloud, "") + fmt.Sprintf("[coap]\nlisten = [\"coap://127.0.0.1:%d\"]\n", freePort(t))
	file := writeConfig(t, fmt.Sprintf("[listener.a]\nlisten = \"mqtt://127.0.0.1:%d\"\n", port)+base)
	old, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	logger, _ := newLogger(old.Log, &log)
	g, err := build(t.Context(), old, logger, seams{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.run(ctx, nil) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	pub := func(port int) result {
		return tidegate(t, numbered(10), "pub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-t", "plant/a", "-l", "-q", "1")
	}
	eventually(t, "it is ready", g.up.Load)
	pub(port).want(t, exitOK, "", "")

	other := freePort(t)
	next, err := config.Load(writeBeside(t, file, fmt.Sprintf("[listener.a]\nlisten = \"mqtt://127.0.0.1:%d\"\n[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"\n"+
		"[route.new]\nfrom = [\"#\"]\ntopic = \"new/{topic}\"\n[coap]\nlisten = [\"coap://127.0.0.1:0\"]\n", other)+
		uplinkTo(cloud, "keep_alive = \"20s\"")+strings.ReplaceAll(uplinkTo(cloud, ""), "cloud", "second")))
	if err != nil {
		t.Fatal(err)
	}
	d := compare(old, next)
	p, err := g.prepare(old, d)
	if err != nil {
		t.Fatal(err)
	}
	made := false
	p.steps = slices.Insert(p.steps, len(p.steps)-1, step{name: "last", commit: func() error {
		made = len(g.forwarder.Status()) == 2 && len(g.broker.Addrs()) == 2
		pub(other).want(t, exitOK, "", "")
		return errors.New("it failed")
	}})
	if err := p.commit(); err == nil || err.Error() != "it failed" || !made {
		t.Fatalf("%v; it was made: %v", err, made)
	}
	pub(port).want(t, exitOK, "", "")
	if r := pub(other); r.code != exitUnavailable {
		t.Errorf("the new listener is still there: %+v", r)
	}
	eventually(t, "everything has left", func() bool {
		s := g.Status()
		return len(s.Uplinks) == 1 && s.Uplinks[0].Records == 0 && len(s.Bridges) == 1 && s.Bridges[0].Up
	})
	got := map[string]uint64{}
	for _, e := range g.forwarder.Ledger().Entries {
		got[e.Route+" to "+e.Uplink] = e.Taken
		for place, n := range e.Places {
			if n > 0 && place != "delivered" && place != "buffered" {
				t.Errorf("%s to %s: %d %s", e.Route, e.Uplink, n, place)
			}
		}
	}
	if want := map[string]uint64{"all to cloud": 20, "new to cloud": 10, "new to second": 10}; !maps.Equal(got, want) {
		t.Errorf("the ledger has %v, want %v", got, want)
	}
	if a := g.broker.Addrs(); len(a) != 1 {
		t.Errorf("listening on %v", a)
	}
}

// TestReloadRemovesUplink: what a removed uplink leaves is told with the change, and nobody is told that it is not connected. An uplink
// of a reload that failed was never there.
func TestReloadRemovesUplink(t *testing.T) {
	const connected = "tidegate_uplink_connected{uplink="
	base := oneListener + withAdmin + oneRoute
	cloud := uplinkTo(freePort(t), "")
	g := startGateway(t, writeConfig(t, base+cloud))
	g.pub(t, numbered(10), "-t", "plant/a", "-l", "-q", "1").want(t, exitOK, "", "")

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	second := strings.ReplaceAll(cloud, "cloud", "second") + "[listener.b]\nlisten = \"mqtt://" + taken.Addr().String() + "\"\n"
	g.rewrite(t, base+cloud+second)
	g.reload(t).want(t, exitFailed, "", "address already in use")
	if _, text := g.get(t, "/metrics"); strings.Contains(text, connected+`"second"`) || !strings.Contains(text, connected+`"cloud"} 0`) {
		t.Error("the metrics show other uplinks than there are")
	}

	g.rewrite(t, base)
	g.reload(t).want(t, exitOK, "uplink.cloud: removed; 10 records stay on disk until it is back, or tidegate buffer purge --yes --uplink cloud\n", "")
	if log := g.err.String(); !strings.Contains(log, "uplink.cloud: removed; 10 records stay on disk") {
		t.Errorf("the log does not say what was left: %s", log)
	}
	if _, text := g.get(t, "/metrics"); strings.Contains(text, connected) {
		t.Error("the metrics still say whether the uplink is connected")
	}
	g.rewrite(t, base+cloud)
	g.reload(t).want(t, exitOK, "uplink.cloud: added\n", "")
	if s := g.status(t); len(s.Uplinks) != 1 || s.Uplinks[0].Records != 10 {
		t.Errorf("after its return: %+v", s.Uplinks)
	}
	if _, text := g.get(t, "/metrics"); !strings.Contains(text, connected+`"cloud"} 0`) {
		t.Error("the metrics do not say whether the uplink is connected")
	}
}
