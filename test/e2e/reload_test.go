package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reload makes the running gateway follow a new file and wants that to work; it returns what the command printed.
func (g *gateway) reload(sections ...string) string {
	g.t.Helper()
	g.configure(append([]string{head}, sections...)...)
	r := g.run("reload")
	if r.code != 0 {
		g.t.Fatalf("reload: %v", r)
	}
	return r.out
}

// TestReloadUnderLoad: while devices publish, a bridge, a route, a listener and an uplink are added, changed and removed, wrong
// files are tried and SIGHUP comes often. No message is lost, no device is dropped, the uplink that does not change keeps its
// connection, and the ledger adds up.
func TestReloadUnderLoad(t *testing.T) {
	const counters = 5
	plc := startOPCUA(t, counters, 100*time.Millisecond)
	one, two := startCloud(t), startCloud(t)
	route := "[route.up]\n  from = [\"plant/dev/#\"]\n  to = [\"cloud\"]\n"
	cloud := uplinkTo("cloud", one.url(), "5")
	second := uplinkTo("second", two.url(), "5")
	other := "[route.other]\n  from = [\"plant/dev/+\"]\n  to = [\"second\"]\n  topic = \"other/{topic}\"\n"
	press := opcuaSection("press", plc.url(), counters) + "[route.press]\n  from = [\"plant/press/#\"]\n  to = [\"cloud\"]\n  topic = \"press/{topic}\"\n"
	g := newGateway(t, route, cloud)
	far := consume(t, one.addr(), "application", "plant/dev/#", "press/#")
	beyond := consume(t, two.addr(), "application", "other/#")
	bridged := subscribe(t, one.addr(), "%t", "-V", "mqttv5", "-q", "1", "-t", "press/#")
	g.start()
	g.requireConnected("cloud")
	var fleet []*device
	for i := range 4 {
		name := fmt.Sprint("d", i)
		fleet = append(fleet, (&device{name: name, topic: "plant/dev/" + name, version: "5", qos: 1, window: 20, addr: g.here, pause: time.Millisecond}).start(t))
	}
	step := func(what string) {
		t.Helper()
		for _, d := range fleet {
			n := d.ackedCount()
			waitFor(t, 60*time.Second, d.name+" to send "+what, func() bool { return d.ackedCount() >= n+50 }, d.String)
		}
	}
	want := func(out string, lines ...string) {
		t.Helper()
		if out != strings.Join(lines, "\n")+"\n" {
			t.Errorf("reload printed %q, want %q", out, lines)
		}
	}
	// after a storm of SIGHUP one of them may have read the file already.
	after := func(out string, lines ...string) {
		t.Helper()
		if !strings.HasPrefix(out, "nothing to apply: ") {
			want(out, lines...)
		}
	}
	step("before anything changes")
	want(g.reload(route, cloud, press), "route.press: added", "opcua.press: added")
	g.requireBridges("press")
	waitFor(t, soon, "values of the added bridge at the cloud", func() bool { return len(bridged.got()) >= counters })
	step("with a bridge more")

	want(g.reload(route, cloud, press, second, other, "[listener.more]\n  listen = \"mqtt://127.0.0.1:0\"\n"),
		"uplink.second: added", "route.other: added", "listener.more: added")
	g.requireConnected("second")
	step("with an uplink more")

	wrong := []string{head, route, "[uplink.cloud]\n  servers = [\"mqtt://127.0.0.1:1\"]\n  keep_alife = \"5s\"\n"}
	g.configure(wrong...)
	line := strings.Count(strings.Join(wrong, "\n"), "\n")
	if r := g.run("reload"); r.code != 78 || !strings.Contains(r.err, fmt.Sprintf("gw.toml:%d:3: uplink.cloud.keep_alife: ", line)) {
		t.Errorf("reload of a wrong file: %v", r)
	}
	step("under the configuration from before the wrong one")

	slower := uplinkTo("second", two.url(), "5", "  keep_alive = \"20s\"")
	for range 3 {
		after(g.reload(route, cloud, press, slower, other), "uplink.second: changed: keep_alive", "listener.more: removed")
		g.requireConnected("second")
		want(g.reload(route, cloud, press, second, other, "[listener.more]\n  listen = \"mqtt://127.0.0.1:0\"\n"),
			"uplink.second: changed: keep_alive", "listener.more: added")
		for range 20 {
			if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	step("while the second uplink comes and goes")
	g.requireConnected("second")
	for _, d := range fleet {
		n := d.ackedCount()
		waitFor(t, soon, "the second cloud to get what "+d.name+" sent", func() bool { return beyond.distinct("other/plant/dev/"+d.name) > n/2 }, d.String)
	}
	removed := g.reload(route, cloud, press)
	said := "uplink.second: removed"
	if n := g.backlog("second"); n > 0 {
		said += fmt.Sprintf("; %d records stay on disk until it is back, or tidegate buffer purge --yes --uplink second", n)
	}
	after(removed, said, "route.other: removed", "listener.more: removed")
	step("without the second uplink")
	want(g.reload(route, cloud), "route.press: removed", "opcua.press: removed")
	step("without the bridge")
	if b := g.bridges(); len(b) != 0 {
		t.Errorf("the removed bridge is still there: %v", b)
	}

	halt(fleet)
	sent := 0
	for _, d := range fleet {
		n := d.finish(t, 0, soon)
		far.requireAll(t, d.topic, n, 60*time.Second)
		sent += n
		d.mu.Lock()
		connects := d.connects
		d.mu.Unlock()
		if connects != 1 {
			t.Errorf("%s was dropped: %v", d.name, d)
		}
	}
	far.requireSound(t)
	beyond.requireSound(t)
	g.requireDrained("cloud", soon)
	m := g.metrics()
	if n := m.sum("tidegate_uplink_reconnects_total", "uplink=cloud"); n != 0 {
		t.Errorf("the uplink that did not change connected again %v times", n)
	}
	if n := m.sum("tidegate_ledger_total", "uplink=cloud", "route=up", "place=delivered"); int(n) != sent {
		t.Errorf("the ledger has %v of %d messages delivered", n, sent)
	}
	places := m.places("second")
	all := 0
	for _, n := range places {
		all += int(n)
	}
	if stored := g.backlog("second"); int(places["buffered"]) != stored || int(places["delivered"])+stored != all {
		t.Errorf("the ledger of the removed uplink: %s, and %d are stored", ledgerText(places), stored)
	}
	if n := m.sum("tidegate_reload_total", "result=refused"); n != 1 {
		t.Errorf("%v reloads were refused", n)
	}
	t.Logf("%d messages of %d devices; %s for the uplink that came and went; %v reloads", sent, len(fleet), ledgerText(places), m.sum("tidegate_reload_total"))

	// What the removed uplink left is sent when it is back.
	left := g.backlog("second")
	g.reload(route, cloud, second, other)
	g.requireDrained("second", soon)
	if n := int(g.metrics().places("second")["delivered"]) - int(places["delivered"]); n != left {
		t.Errorf("%d of %d records left when the uplink came back", n, left)
	}
	g.stop()
}

// TestReloadRules: a rule is taken away from a client that is subscribed, and a user is removed.
func TestReloadRules(t *testing.T) {
	all := "[auth]\n  [[auth.rule]]\n    user = \"*\"\n    publish = [\"#\"]\n    subscribe = [\"#\"]\n"
	less := "[auth]\n  [[auth.rule]]\n    user = \"*\"\n    publish = [\"#\"]\n    subscribe = [\"open/#\"]\n"
	g := newGateway(t, all)
	g.start()
	secret := subscribe(t, g.addr(devices), "%p", "-i", "secret", "-V", "mqttv5", "-q", "1", "-t", "closed/#")
	open := subscribe(t, g.addr(devices), "%p", "-i", "open", "-V", "mqttv5", "-q", "1", "-t", "open/#")
	publish(t, g.addr(devices), "-q", "1", "-t", "closed/a", "-m", "1")
	publish(t, g.addr(devices), "-q", "1", "-t", "open/a", "-m", "1")
	secret.await("1")
	open.await("1")
	if out := g.reload(less); out != "auth: changed: rule\n" {
		t.Errorf("reload printed %q", out)
	}
	publish(t, g.addr(devices), "-q", "1", "-t", "closed/a", "-m", "2")
	publish(t, g.addr(devices), "-q", "1", "-t", "open/a", "-m", "2")
	open.await("2")
	if !g.log.contains("reason=subscription_lost") || !g.log.contains("client=secret") || g.log.contains("client disconnected\" part=edge audit=true reason=subscription_lost listener=dev client=open") {
		t.Error("the log does not say who was disconnected")
	}
	if got := secret.got(); len(got) != 1 {
		t.Errorf("after the reload the subscriber got %q", got[1:])
	}

	g.write("users.toml", "")
	if r := runCommand(t, g.dir, "one\n", "passwd", "a", "--config", g.config); r.code == 0 {
		t.Error("passwd works without a users file")
	}
	named := "[auth]\n  users_file = \"users.toml\"\n  anonymous = true\n"
	g.configure(head, named)
	for _, user := range []string{"a", "b"} {
		if r := runCommand(t, g.dir, "one\n", "passwd", user, "--config", g.config); r.code != 0 {
			t.Fatal(r)
		}
	}
	users := strings.SplitAfter(readFile(t, g.dir+"/users.toml"), "\n")
	g.reload(named)
	a, err := dial(g.addr(devices), "5", login{client: "a", user: "a", password: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	b, err := dial(g.addr(devices), "5", login{client: "b", user: "b", password: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	var kept []string
	for _, line := range users {
		if !strings.HasPrefix(line, `"a"`) {
			kept = append(kept, line)
		}
	}
	g.write("users.toml", strings.Join(kept, ""))
	g.run("reload") // or the gateway has seen it by itself
	p, err := a.read()
	if err != nil || p.kind != typeDisconnect&0xf0 && p.kind != typeDisconnect {
		t.Errorf("the client whose user is gone got %+v, %v", p, err)
	}
	if err := b.publish("x", 1, 1, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if p, err := b.read(); err != nil || p.kind != typePuback {
		t.Errorf("the client of another user got %+v, %v", p, err)
	}
	g.stop()
}

// backlog counts the records that are stored for an uplink, configured or not.
func (g *gateway) backlog(uplink string) (n int) {
	g.t.Helper()
	for _, q := range g.list() {
		if q.Uplink == uplink {
			n += q.Records
		}
	}
	return n
}
