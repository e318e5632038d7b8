package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSessionsSurviveKill: what waits for clients that keep their sessions is there after SIGKILL, again and again, in order,
// with QoS 1 and 2; who comes once more gets nothing twice.
func TestSessionsSurviveKill(t *testing.T) {
	g := local(t)
	var readers []*subscriber
	args := func(version string) []string {
		a := []string{"-V", mosquittoVersion[version], "-i", "reader" + version, "-c", "-q", "2", "-t", "news/#", "-t", "other"}
		if version == "5" {
			a = append(a, "-x", "600")
		}
		return a
	}
	versions := []string{"3.1.1", "5"}
	for _, version := range versions {
		subscribe(t, g.here(), "%p", args(version)...).stop()
	}
	var want []string
	for round := range 3 {
		one, two := fmt.Sprint("one", round), fmt.Sprint("two", round)
		publishLines(t, g.here(), "3.1.1", one, "news/a", 1, 1, 150)
		publishLines(t, g.here(), "5", two, "news/b", 2, 1, 150)
		for _, name := range []string{one, two} {
			for i := range 150 {
				want = append(want, fmt.Sprint(name, " ", i+1))
			}
		}
		g.kill()
		g.start()
	}
	if n := g.status().Sessions; n != len(versions) {
		t.Errorf("%d sessions after the restart", n)
	}
	for _, version := range versions {
		s := subscribe(t, g.here(), "%p", args(version)...)
		s.await("two2 150")
		readers = append(readers, s)
		waitFor(t, soon, "all messages", func() bool { return len(s.got()) >= len(want) })
		for _, name := range []string{"one", "two"} { // mosquitto_sub shows QoS 2 later than QoS 1
			other := func(l string) bool { return !strings.HasPrefix(l, name) }
			got, want := slices.DeleteFunc(s.got(), other), slices.DeleteFunc(slices.Clone(want), other)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %d messages, want %d; first difference: %s", version, len(got), len(want), difference(got, want))
			}
		}
	}
	publish(t, g.here(), "-q", "1", "-t", "other", "-m", "live")
	for _, s := range readers {
		s.await("live")
		s.stop()
	}
	waitFor(t, soon, "the readers to be gone", func() bool { return g.metrics().sum("tidegate_clients_connected") == 0 })
	publish(t, g.here(), "-q", "1", "-r", "-t", "marker", "-m", "x") // its acknowledgement says that all before is on disk
	g.kill()
	g.start()
	for _, version := range versions {
		s := subscribe(t, g.here(), "%p", args(version)...)
		publish(t, g.here(), "-q", "1", "-t", "other", "-m", "after"+version)
		s.await("after" + version)
		for _, l := range s.got() {
			if !strings.HasPrefix(l, "after") {
				t.Errorf("%s: %q comes again", version, l)
			}
		}
	}
	g.stop()
}

func difference(got, want []string) string {
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Sprintf("message %d is %q, want %q", i+1, append(got, "")[i], want[i])
		}
	}
	return "more than wanted"
}

// TestRetainedSurvivesKill: with all properties and what is left of the expiry; what was taken away or has expired does not
// come back.
func TestRetainedSurvivesKill(t *testing.T) {
	g := local(t)
	pub := func(topic, text string, more ...string) {
		publish(t, g.here(), append([]string{"-V", "mqttv5", "-q", "1", "-r", "-t", topic, "-m", text}, more...)...)
	}
	pub("keep/a", "old")
	pub("keep/a", "new", "-D", "publish", "content-type", "text/x", "-D", "publish", "user-property", "k", "v",
		"-D", "publish", "response-topic", "r/t", "-D", "publish", "message-expiry-interval", "100000")
	pub("keep/gone", "x")
	publish(t, g.here(), "-q", "1", "-r", "-n", "-t", "keep/gone")
	pub("keep/short", "x", "-D", "publish", "message-expiry-interval", "2")
	publish(t, g.here(), "-q", "0", "-r", "-t", "keep/zero", "-m", "zero")
	publish(t, g.here(), "-q", "1", "-t", "keep/end", "-m", "x") // the commit that the message with QoS 0 is in, at the latest
	begin := time.Now()
	g.kill()
	time.Sleep(time.Until(begin.Add(2500 * time.Millisecond)))
	g.start()
	s := subscribe(t, g.here(), "%t %p %r %C %P %R %E", "-V", "mqttv5", "-q", "1", "-t", "keep/#", "-t", "marker")
	publish(t, g.here(), "-q", "1", "-t", "marker", "-m", "end")
	waitFor(t, soon, "the marker", func() bool {
		return slices.ContainsFunc(s.got(), func(l string) bool { return strings.HasPrefix(l, "marker") })
	})
	got := s.got()
	slices.Sort(got)
	if len(got) != 3 || !strings.HasPrefix(got[0], "keep/a new 1 text/x k:v r/t 99") || !strings.HasPrefix(got[1], "keep/zero zero 1") {
		t.Errorf("%q", got)
	}
	g.stop()
}

// TestDelayedWillSurvivesKill: a will that waits for its delay is published when it is due, once, although the gateway was
// killed meanwhile; that of a client which is back is not.
func TestDelayedWillSurvivesKill(t *testing.T) {
	g := local(t)
	will := func(name, delay string) []string {
		return []string{
			"-V", "mqttv5", "-i", name, "-c", "-x", "600", "-t", "x", "-q", "1",
			"--will-topic", "wills/" + name, "--will-payload", "gone", "--will-qos", "1", "-D", "will", "will-delay-interval", delay,
		}
	}
	watch := []string{"-i", "watch", "-c", "-q", "1", "-t", "wills/#"}
	subscribe(t, g.here(), "", watch...).stop()
	var dead []*subscriber
	for name, delay := range map[string]string{"dead": "5", "back": "300"} {
		dead = append(dead, subscribe(t, g.here(), "", will(name, delay)...))
	}
	before := g.metrics().sum("tidegate_clients_connected")
	for _, s := range dead {
		s.kill()
	}
	waitFor(t, soon, "the gateway to notice", func() bool { return g.metrics().sum("tidegate_clients_connected") < before })
	waitFor(t, soon, "the gateway to notice", func() bool { return g.metrics().sum("tidegate_clients_connected") == 0 })
	time.Sleep(100 * time.Millisecond) // and to write it down
	g.kill()
	g.start()
	subscribe(t, g.here(), "", will("back", "300")...)
	s := subscribe(t, g.here(), "", watch...)
	s.await("wills/dead gone")
	g.kill()
	g.start()
	s = subscribe(t, g.here(), "", watch...)
	publish(t, g.here(), "-q", "1", "-t", "wills/marker", "-m", "end")
	s.await("wills/marker end")
	for _, l := range s.got() {
		if l == "wills/back gone" {
			t.Errorf("%q", s.got())
		}
	}
	if n := len(slices.DeleteFunc(s.got(), func(l string) bool { return l != "wills/dead gone" })); n > 1 {
		t.Errorf("the will comes %d times: %q", n, s.got())
	}
	g.stop()
}

// TestSessionsEndInTime: a session whose expiry passes while the gateway is away is not revived, and a rule that was changed
// meanwhile holds for what waits and for what comes.
func TestSessionsEndInTime(t *testing.T) {
	g := local(t)
	short := []string{"-V", "mqttv5", "-i", "short", "-c", "-q", "1", "-t", "news/#"}
	subscribe(t, g.here(), "%p", append(short, "-x", "2")...).stop()
	long := []string{"-i", "long", "-c", "-q", "1", "-t", "news/#", "-t", "other/#"}
	subscribe(t, g.here(), "%p", long...).stop()
	publish(t, g.here(), "-q", "1", "-t", "news/a", "-m", "early")
	begin := time.Now()
	g.kill()
	time.Sleep(time.Until(begin.Add(2500 * time.Millisecond)))
	g.configure(head, "[auth]\n  [[auth.rule]]\n    user = \"anonymous\"\n    publish = [\"#\"]\n    subscribe = [\"other/#\", \"free/#\"]\n")
	g.start()
	waitFor(t, soon, "the session to end", func() bool { return g.status().Sessions == 1 })
	publish(t, g.here(), "-q", "1", "-t", "news/a", "-m", "refused")
	publish(t, g.here(), "-q", "1", "-t", "other/a", "-m", "allowed")
	host, port := hostPort(g.here())
	out, _ := exec.Command("timeout", "20", "mosquitto_sub", "-h", host, "-p", port, "-i", "long", "-c", "-q", "1", "-t", "free/x", "-C", "1").CombinedOutput()
	if got := strings.TrimSpace(string(out)); got != "allowed" {
		t.Errorf("after the rules were changed: %q", got)
	}
	g.stop()
}

// TestCommandsSurviveKill: what the cloud was told is taken, for a client that keeps its session and is away, is on disk.
func TestCommandsSurviveKill(t *testing.T) {
	const n = 200
	c := startCloud(t)
	g := newGateway(t, uplinkTo("cloud", c.url(), "5", "[[uplink.cloud.command]]\n  from = \"cmd/{gateway}/#\"\n  to = \"cmd/{rest}\""))
	g.start()
	g.requireConnected("cloud")
	valve := []string{"-i", "valve", "-c", "-q", "1", "-t", "cmd/#"}
	subscribe(t, g.here(), "%p", valve...).stop()
	for i := range 4 {
		publishLines(t, c.addr(), "5", fmt.Sprint("command", i), "cmd/gw/valve", 1, 1, n/4)
		if i%2 == 0 {
			waitFor(t, soon, "commands", func() bool { return g.metrics().sum("tidegate_commands_total") > 0 })
		}
		g.kill()
		g.start()
		g.requireConnected("cloud")
	}
	s := subscribe(t, g.here(), "%p", valve...)
	s.await(fmt.Sprint("command3 ", n/4))
	seen := map[string]int{}
	for _, l := range s.got() {
		seen[l]++
	}
	if len(seen) != n {
		t.Errorf("%d of %d commands arrived", len(seen), n)
	}
	g.stop()
}

// TestSessionStoreIsBounded: all sessions together keep to session_store on disk, the oldest go first and are counted, and
// damage costs what is damaged and no start.
func TestSessionStoreIsBounded(t *testing.T) {
	g := newGateway(t, "[broker]\n  session_store = \"2MiB\"\n")
	g.start()
	reader := []string{"-i", "reader", "-c", "-q", "1", "-t", "news/#"}
	subscribe(t, g.here(), "%p", reader...).stop()
	d := (&device{name: "dev", topic: "news/a", version: "5", qos: 1, window: 100, pad: 1000, addr: g.here}).start(t)
	const total = 6000
	d.finish(t, total, 60*time.Second)
	d.stop()
	waitFor(t, soon, "the oldest to go", func() bool { return g.metrics().sum("tidegate_session_drops_total", "reason=store_full") > 3000 })
	g.kill()
	g.start()
	s := subscribe(t, g.here(), "%p", reader...)
	waitFor(t, soon, "the newest message", func() bool {
		return slices.ContainsFunc(s.got(), func(l string) bool { return strings.HasPrefix(l, fmt.Sprint("dev ", total, " ")) })
	})
	got := s.got()
	for i, l := range got {
		if want := fmt.Sprint("dev ", total-len(got)+i+1, " "); !strings.HasPrefix(l, want) {
			t.Fatalf("message %d of %d is %.20q, want %q", i+1, len(got), l, want)
		}
	}
	if len(got) < 500 || len(got) > 2500 {
		t.Errorf("%d messages of about 1 KiB in 2 MiB", len(got))
	}
	if r := g.run("buffer", "ls", "--config", g.config); r.code != 0 || strings.Contains(r.out, "session") {
		t.Errorf("%v", r)
	}
	g.stop()
}

// TestSessionsAreEncrypted: with a key of [broker] nothing of what waits, and of retained messages, can be read from the disk; a
// wrong key changes nothing; records whose key is lost can be given up.
func TestSessionsAreEncrypted(t *testing.T) {
	const secret = "the recipe of the sauce"
	g := newGateway(t)
	keyed := func(digit string) {
		g.configure(head, "[broker]\n  encryption_key = \""+strings.Repeat(digit, 64)+"\"\n")
	}
	keyed("7")
	g.start()
	reader := []string{"-i", "reader", "-c", "-q", "1", "-t", "news/#"}
	subscribe(t, g.here(), "%p", reader...).stop()
	for i := range 20 {
		publish(t, g.here(), "-q", "1", "-r", "-t", fmt.Sprint("news/", i), "-m", secret)
	}
	g.kill()
	found := exec.Command("grep", "-rl", secret, g.data())
	if out, err := found.CombinedOutput(); err == nil {
		t.Errorf("it is in %s", out)
	}
	keyed("8")
	if err := g.tryStart(); err == nil || !strings.Contains(err.Error(), "[broker]") {
		t.Errorf("with a wrong key: %v", err)
	}
	keyed("7")
	g.start()
	s := subscribe(t, g.here(), "%p", reader...)
	waitFor(t, soon, "what waited, and what is retained", func() bool { return len(s.got()) >= 40 })
	s.stop()
	if r := g.run("buffer", "purge", "--yes", "--sessions", "--config", g.config); r.code == 0 {
		t.Errorf("a running gateway gave its sessions up: %v", r)
	}
	if r := g.run("buffer", "purge", "--yes", "--config", g.config); r.code != 0 || r.out != "" {
		t.Errorf("a purge of the uplinks' records: %v", r)
	}
	g.stop()
	keyed("8")
	if r := g.run("buffer", "purge", "--yes", "--sessions", "--config", g.config); r.code != 0 || !strings.Contains(r.out, "session retained: 20 records purged") {
		t.Errorf("%v", r)
	}
	g.start()
	if n := g.status().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
	g.stop()
}

// TestDamagedSessions: bytes that went bad cost what they hold, and never the start.
func TestDamagedSessions(t *testing.T) {
	g := local(t)
	for i := range 20 { // first: mosquitto_sub does not always end when it is told to while messages come
		subscribe(t, g.here(), "%p", "-i", fmt.Sprint("reader", i), "-c", "-q", "1", "-t", "news/#").stop()
	}
	for i := range 20 {
		publish(t, g.here(), "-q", "1", "-r", "-t", fmt.Sprint("news/", i), "-m", fmt.Sprint("message ", i))
	}
	g.kill()
	files, err := filepath.Glob(filepath.Join(g.data(), "log", "*.seg"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v: %v", files, err)
	}
	bad := 0
	for _, path := range files {
		b := []byte(readFile(t, path))
		for at := 4096; at < min(len(b), 64<<10); at += 1500 {
			b[at] ^= 0x55
			bad++
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.start()
	samples := g.metrics()
	t.Logf("%d bytes changed: %d of 20 sessions are left, %v records are lost", bad, g.status().Sessions, samples.sum("tidegate_session_lost_records_total"))
	if samples.sum("tidegate_session_lost_records_total") == 0 {
		t.Error("nothing was counted")
	}
	subscribe(t, g.here(), "%p", "-i", "fresh", "-c", "-q", "1", "-t", "fresh/#").stop()
	publish(t, g.here(), "-q", "1", "-t", "fresh/x", "-m", "new")
	g.kill()
	g.start()
	s := subscribe(t, g.here(), "%p", "-i", "fresh", "-c", "-q", "1", "-t", "other")
	s.await("new")
	g.stop()
}
