package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// watch is a running `tidegate verify`.
type watch struct {
	t    *testing.T
	c    *cloud
	cmd  *exec.Cmd
	out  *logBuffer
	errs *logBuffer
}

// account is what `verify --json` prints.
type account struct {
	Messages, Batches, Received, Missing, Announced, Earlier, Unsure, Duplicates, Reordered, Unidentified, Unreadable int

	Lanes []struct {
		Gateway, Uplink, Epoch, Lane                                     string
		First, Last, Received, Missing, Announced, Duplicates, Reordered int
		MissingRanges                                                    [][2]int `json:"missing_ranges"`
		Devices                                                          []struct{ Source string }
	}
}

// watchedCloud is a cloud broker whose log tells what the watching client has taken.
func watchedCloud(t *testing.T) *cloud {
	t.Helper()
	return startCloud(t, "log_type all")
}

// startVerify runs `verify --json` against a broker and waits until it is subscribed.
func startVerify(t *testing.T, c *cloud, args ...string) *watch {
	t.Helper()
	w := &watch{t: t, c: c, out: &logBuffer{}, errs: &logBuffer{}}
	w.cmd = exec.Command(program, append([]string{"verify", "--json", "--server", c.url(), "-i", "watcher"}, args...)...)
	w.cmd.Stdout, w.cmd.Stderr = w.out.run(nil), w.errs.run(nil)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			_ = w.cmd.Process.Kill()
			_ = w.cmd.Wait()
		}
	})
	waitFor(t, soon, "verify to watch", func() bool { return w.errs.contains("watching") }, func() string { return w.errs.tail(1000) })
	return w
}

// end waits until it has taken what the broker sent to it, interrupts it and returns what it found.
func (w *watch) end() (account, int) {
	w.t.Helper()
	waitFor(w.t, soon, "verify to take everything", func() bool {
		log := w.c.log.tail(64 << 20)
		return strings.Count(log, "Sending PUBLISH to watcher") == strings.Count(log, "Received PUBACK from watcher")
	})
	if err := w.cmd.Process.Signal(syscall.SIGINT); err != nil {
		w.t.Fatal(err)
	}
	_ = w.cmd.Wait()
	var a account
	if err := json.Unmarshal([]byte(w.out.tail(1<<20)), &a); err != nil {
		w.t.Fatalf("verify --json: %v\n%s\n%s", err, w.out.tail(2000), w.errs.tail(2000))
	}
	code := w.cmd.ProcessState.ExitCode()
	w.t.Logf("verify: exit code %d, %d messages in %d batches and alone, %d different, %d missing, %d announced, %d again, %d reordered\n%s",
		code, a.Messages, a.Batches, a.Received, a.Missing, a.Announced, a.Duplicates, a.Reordered, w.errs.tail(300))
	return a, code
}

// TestVerify: two uplinks of one gateway lead to one broker, one with a PUBLISH for each message and one with batches; the
// line is cut and the gateway killed in mid-stream. Every message is there, and verify says so.
func TestVerify(t *testing.T) {
	c := watchedCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t, plantUp, uplinkTo("one", line.url(), "5"), uplinkTo("two", line.url(), "5", `  batch = { max_messages = 20, max_delay = "50ms" }`))
	w := startVerify(t, c, "--filter", "#")
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	var fleet []*device
	for i, version := range []string{"3.1.1", "5"} {
		name := fmt.Sprintf("dev%d", i)
		d := &device{name: name, topic: "plant/" + name, version: version, qos: 1, window: 20, addr: g.here, pause: 2 * time.Millisecond}
		fleet = append(fleet, d.start(t))
	}
	goOn := func() {
		t.Helper()
		begin := fleet[0].ackedCount()
		waitFor(t, 60*time.Second, "the stream to go on", func() bool { return fleet[0].ackedCount() >= begin+100 })
	}
	goOn()
	line.cut()
	goOn()
	g.kill()
	g.start()
	goOn()
	line.mend()
	goOn()
	g.kill()
	g.start()
	goOn()
	halt(fleet)
	for _, d := range fleet {
		far.requireAll(t, d.topic, d.finish(t, 0, soon), 60*time.Second)
	}
	g.requireDrained("one", soon)
	g.requireDrained("two", soon)
	a, code := w.end()
	if code != 0 || a.Missing != 0 || a.Reordered != 0 || a.Unreadable != 0 || a.Unidentified != 0 || a.Batches == 0 {
		t.Errorf("verify found %+v", a)
	}
	received := map[string]int{}
	for _, l := range a.Lanes {
		received[l.Gateway+"/"+l.Uplink] += l.Received
		if len(l.Devices) != 2 {
			t.Errorf("devices of %s: %v", l.Uplink, l.Devices)
		}
	}
	// Devices send again what was not acknowledged, so records may be more than their messages, but both uplinks have all.
	sent := fleet[0].ackedCount() + fleet[1].ackedCount()
	if received["gw/one"] < sent || received["gw/one"] != received["gw/two"] || len(received) != 2 {
		t.Errorf("received %v of %d messages", received, sent)
	}
	g.stop()
}

// TestVerifyFindsALoss: a filter that leaves some of the messages out is a consumer that loses them.
func TestVerifyFindsALoss(t *testing.T) {
	c := watchedCloud(t)
	g := newGateway(t, plantUp, uplinkTo("cloud", c.url(), "5"))
	w := startVerify(t, c, "--filter", "plant/kept")
	g.start()
	g.requireConnected("cloud")
	publishLines(t, g.addr(devices), "5", "dev", "plant/kept", 1, 1, 20)
	publishLines(t, g.addr(devices), "5", "dev", "plant/dropped", 1, 1, 7)
	publishLines(t, g.addr(devices), "5", "dev", "plant/kept", 1, 21, 20)
	publishLines(t, g.addr(devices), "5", "dev", "plant/dropped", 1, 8, 1)
	publishLines(t, g.addr(devices), "5", "dev", "plant/kept", 1, 41, 1)
	g.requireDrained("cloud", soon)
	g.stop()
	a, code := w.end()
	if code != 1 || a.Missing != 8 || len(a.Lanes) != 1 || a.Received != 41 {
		t.Fatalf("exit code %d: %+v", code, a)
	}
	if got := fmt.Sprint(a.Lanes[0].MissingRanges); got != "[[21 27] [48 48]]" {
		t.Errorf("missing %s", got)
	}
	if !w.errs.contains("8 messages are missing") {
		t.Errorf("verify says %s", w.errs.tail(500))
	}
}

// TestVerifyComesIntoADrain: a gateway with live_first works off a backlog when the watch begins. What it sent before is not missing, of
// the fresh records neither, although older ones come after them.
func TestVerifyComesIntoADrain(t *testing.T) {
	c := watchedCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t, plantUp, uplinkTo("cloud", line.url(), "5", "  live_first = true\n  max_rate = { messages = \"200/s\" }"))
	g.start()
	g.requireConnected("cloud")
	line.cut()
	publishLines(t, g.addr(devices), "5", "dev", "plant/old", 1, 1, 1500)
	line.mend()
	d := (&device{name: "dev0", topic: "plant/dev0", version: "5", qos: 1, window: 20, addr: g.here, pause: 20 * time.Millisecond}).start(t)
	delivered := func(n int) {
		t.Helper()
		waitFor(t, 60*time.Second, fmt.Sprintf("%d records at the cloud", n), func() bool { return int(g.uplink("cloud").Delivered) >= n && d.ackedCount() > 20 })
	}
	delivered(300)
	w := startVerify(t, c, "--filter", "#", "--unordered")
	delivered(900)
	halt([]*device{d})
	d.finish(t, 0, soon)
	g.requireDrained("cloud", 60*time.Second)
	a, code := w.end()
	if code != 0 || a.Missing != 0 || a.Unsure != 0 || a.Earlier == 0 || a.Received < 600 {
		t.Errorf("exit code %d: %+v", code, a)
	}
	g.stop()
}

// TestVerifyKnowsAnnouncedGaps: what the gateway had to give up, and said so, is accounted for.
func TestVerifyKnowsAnnouncedGaps(t *testing.T) {
	const n = 3000
	c := watchedCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t, plantUp, uplinkTo("cloud", line.url(), "5", "  batch = {}\n  buffer.max_bytes = \"256KiB\""))
	w := startVerify(t, c, "--filter", "tidegate/gw/uplink/cloud/batch")
	reports := subscribe(t, c.addr(), "%p", "-q", "1", "-t", "tidegate/gw/uplink/cloud/gaps")
	g.start()
	g.requireConnected("cloud")
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, 100)
	g.requireDrained("cloud", soon)
	line.cut()
	pad := strings.Repeat("x", 200)
	publishLines(t, g.addr(devices), "5", "dev "+pad, "plant/dev", 1, 1, n)
	waitFor(t, soon, "records to be evicted", func() bool { return g.uplink("cloud").Evicted > 0 })
	line.mend()
	g.requireDrained("cloud", 60*time.Second)
	evicted := int(g.uplink("cloud").Evicted)
	waitFor(t, soon, "all of them to be announced", func() bool {
		announced := 0
		for _, text := range reports.got() {
			var r struct{ Count int }
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatal(err)
			}
			announced += r.Count
		}
		return announced >= evicted
	})
	a, code := w.end()
	if code != 0 || a.Missing != 0 || a.Announced != evicted || a.Received != 100+n-evicted {
		t.Errorf("exit code %d, %d evicted: %+v", code, evicted, a)
	}
	g.stop()
}

// TestVerifyLogin: over TLS with the broker's own authority, and user and password, in both protocol versions.
func TestVerifyLogin(t *testing.T) {
	c := newCloud(t, "allow_anonymous false")
	c.secure("auditor", "right")
	c.start()
	authority := filepath.Join(c.dir, "ca.crt")
	server := "mqtts://" + c.addr()
	for _, version := range []string{"5", "3.1.1"} {
		ask := func(args ...string) result {
			return runCommand(t, c.dir, "", append([]string{"verify", "--server", server, "--filter", "#", "--for", "50ms", "-V", version}, args...)...)
		}
		if r := ask("-u", "auditor", "-P", "right", "--ca", authority); r.code != 0 || !strings.Contains(r.err, "nothing was verified") {
			t.Errorf("%s: %v", version, r)
		}
		if r := ask("-u", "auditor", "-P", "wr0ng", "--ca", authority); r.code != 1 || strings.Contains(r.err, "wr0ng") {
			t.Errorf("%s with a wrong password: %v", version, r)
		}
		if r := ask("-u", "auditor", "-P", "right"); r.code != 69 || !strings.Contains(r.err, "unknown authority") {
			t.Errorf("%s without the authority: %v", version, r)
		}
	}
}
