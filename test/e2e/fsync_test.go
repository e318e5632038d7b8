package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// syncCalls are the system calls by which a Linux program asks for bytes to be on disk.
const syncCalls = "fdatasync,fsync,sync_file_range,sync,syncfs,msync"

// tracer is strace on a running gateway.
type tracer struct {
	t    testing.TB
	cmd  *exec.Cmd
	path string // its record
	log  *logBuffer
}

// attach starts strace on the gateway and waits until it holds the process; options say what to trace and to inject.
func attach(g *gateway, options ...string) *tracer {
	g.t.Helper()
	tr := &tracer{t: g.t, path: filepath.Join(g.t.TempDir(), "strace"), log: &logBuffer{}}
	args := append([]string{"-f", "-ttt", "-o", tr.path}, options...)
	tr.cmd = exec.Command("strace", append(args, "-p", strconv.Itoa(g.pid()))...)
	tr.cmd.Stderr = tr.log.run(nil)
	if err := tr.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(tr.detach)
	waitFor(g.t, soon, "strace to attach", func() bool { return tr.log.contains("attached") },
		func() string { return tr.log.tail(1000) })
	return tr
}

// detach lets the gateway go on undisturbed.
func (tr *tracer) detach() {
	if tr.cmd.ProcessState == nil {
		_ = tr.cmd.Process.Signal(syscall.SIGINT)
		_ = tr.cmd.Wait()
	}
}

var traceLine = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (<\.\.\. )?(\w+)(\(| resumed>)(.*)$`)

// injected returns the calls that strace delayed or failed, after detach.
func (tr *tracer) injected() int {
	tr.t.Helper()
	f, err := os.Open(tr.path)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if traceLine.MatchString(s.Text()) && (strings.Contains(s.Text(), "(DELAYED)") || strings.Contains(s.Text(), "(INJECTED)")) {
			n++
		}
	}
	return n
}

// syncDelay is how long strace holds back every sync in TestNoAckBeforeFsync.
const syncDelay = 300 * time.Millisecond

// TestNoAckBeforeFsync delays every sync of the gateway: no acknowledgement is earlier than that after its message, while
// a client's later packets are read all the same, so that hundreds of messages share a few syncs.
func TestNoAckBeforeFsync(t *testing.T) {
	for _, version := range []string{"3.1.1", "5"} {
		for _, qos := range []byte{1, 2} {
			t.Run(fmt.Sprintf("%s QoS %d", version, qos), func(t *testing.T) {
				g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", "mqtt://127.0.0.1:9", "5"))
				g.start()
				// The log has a segment in use: the sync that counts is that of a commit.
				early := &device{name: "early", topic: "plant/early", version: version, qos: qos, window: 10, addr: g.here}
				early.start(t).finish(t, 20, soon)
				early.stop()
				tr := attach(g, "-e", "trace="+syncCalls, "-e", fmt.Sprintf("inject=%s:delay_enter=%d", syncCalls, syncDelay.Microseconds()))
				// On a busy machine the scrape that shows how far reading got may come too late: it has three tries. The
				// promise about the acknowledgements is checked in every one of them.
				read := false
				for attempt := 0; attempt < 3 && !read; attempt++ {
					read = pipelineUnderDelay(t, g, version, qos, attempt)
				}
				if !read {
					t.Errorf("within %v not all messages were ingested: packets behind an unacknowledged one are not read", syncDelay)
				}
				tr.detach()
				if tr.injected() == 0 {
					t.Error("strace delayed nothing: the test proves nothing")
				}
				g.kill()
			})
		}
	}
}

// pipelineUnderDelay writes 500 messages at once, or as many as the gateway grants, and looks at the time of every
// acknowledgement. It reports whether all of them were ingested before the first acknowledgement came.
func pipelineUnderDelay(t *testing.T, g *gateway, version string, qos byte, attempt int) (read bool) {
	t.Helper()
	before := g.metrics()
	w, err := dial(g.addr(devices), version, login{client: fmt.Sprintf("dev%d", attempt)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	window := min(500, w.receiveMax)
	var all []byte
	for i := range window {
		all = append(all, publishPacket(version, "plant/dev", qos, uint16(i+1), fmt.Appendf(nil, "dev %d", i+1))...)
	}

	begin := time.Now()
	var first atomic.Int64 // nanoseconds until the first acknowledgement
	ended := make(chan error, 1)
	go func() { // ends with the last acknowledgement, or 30 s after the one before
		for i := range window {
			p, err := w.readWithin(30 * time.Second)
			first.CompareAndSwap(0, int64(time.Since(begin)))
			want := byte(typePuback) + (qos-1)<<4
			if err == nil && (p.kind != want || p.reason() >= 0x80 || p.id() != uint16(i+1)) {
				err = fmt.Errorf("packet %#x, identifier %d, reason %#x", p.kind, p.id(), p.reason())
			}
			if err != nil {
				ended <- fmt.Errorf("acknowledgement %d: %w", i+1, err)
				return
			}
		}
		ended <- nil
	}()
	if err := w.write(all); err != nil {
		t.Fatal(err)
	}
	ingested := time.Duration(0)
	for first.Load() == 0 && !read {
		m := g.metrics()
		if first.Load() == 0 {
			n := m.sum("tidegate_ingested_messages_total") - before.sum("tidegate_ingested_messages_total")
			read, ingested = int(n) == window, time.Since(begin)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	last := time.Since(begin)
	syncs := g.metrics().sum("tidegate_buffer_fsync_seconds_count") - before.sum("tidegate_buffer_fsync_seconds_count")
	t.Logf("%d messages; all ingested before the first acknowledgement: %t (%v); first acknowledgement after %v, last after %v; %.0f syncs",
		window, read, ingested.Round(time.Millisecond), time.Duration(first.Load()).Round(time.Millisecond), last.Round(time.Millisecond), syncs)
	if first := time.Duration(first.Load()); first < syncDelay {
		t.Errorf("first acknowledgement %v after its message, before a sync of %v can have ended", first, syncDelay)
	}
	if syncs < 1 || syncs > 12 {
		t.Errorf("%.0f syncs for %d pipelined messages", syncs, window)
	}
	return read
}

// TestNoAckWhenTheDiskFails: with every sync failing, or every write, no acknowledgement leaves and status says why; when the
// disk is well again the gateway takes messages again, without a restart.
func TestNoAckWhenTheDiskFails(t *testing.T) {
	for _, fault := range []struct{ name, inject, says string }{
		{"sync", syncCalls + ":error=EIO", "input/output error"},
		{"write", "pwrite64,pwritev,pwritev2,fallocate,ftruncate:error=ENOSPC", "no space left on device"},
	} {
		for _, version := range []string{"3.1.1", "5"} {
			t.Run(fault.name+" "+version, func(t *testing.T) { diskFails(t, version, fault.inject, fault.says) })
		}
	}
}

func diskFails(t *testing.T, version, inject, says string) {
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	g.requireConnected("cloud")
	// The log has a segment in use, so that it is a commit that fails first, not the making of a segment.
	early := &device{name: "early", topic: "plant/early", version: version, qos: 1, window: 10, addr: g.here}
	far.requireAll(t, "plant/early", early.start(t).finish(t, 20, soon), soon)
	calls, _, _ := strings.Cut(inject, ":")
	tr := attach(g, "-e", "trace="+calls, "-e", "inject="+inject)

	if acks := acksWhileFailing(g, version); acks > 0 {
		t.Errorf("%d messages were acknowledged while the disk failed", acks)
	}
	r := g.run("status", "--json")
	if r.code != 0 || !strings.Contains(r.out, says) {
		t.Errorf("status --json does not say %q: %v", says, r)
	}
	if r := g.run("status"); r.code != 0 || !strings.Contains(r.out, says) {
		t.Errorf("status does not say %q: %v", says, r)
	}
	if code, body := g.get("/readyz"); code == 200 || !strings.Contains(body, says) {
		t.Errorf("/readyz answers %d %q while the disk fails", code, body)
	}
	tr.detach()
	if tr.injected() == 0 {
		t.Error("strace failed nothing: the test proves nothing")
	}

	d := &device{name: "dev", topic: "plant/dev", version: version, qos: 1, window: 10, addr: g.here}
	far.requireAll(t, "plant/dev", d.start(t).finish(t, 50, 60*time.Second), 60*time.Second)
	waitFor(t, soon, "/readyz to answer 200 again", func() bool { code, _ := g.get("/readyz"); return code == 200 })
	g.requireDrained("cloud", soon)
	g.stop()
}

// acksWhileFailing publishes with QoS 1 and 2 and counts acknowledgements. Whoever is refused or cut off comes again.
func acksWhileFailing(g *gateway, version string) (acks int) {
	for attempt := range 3 {
		w, err := dial(g.here(), version, login{client: fmt.Sprintf("dev%d", attempt)})
		if err != nil {
			continue // refused at the door is fine
		}
		for i := range 20 {
			_ = w.publish("plant/lost", 1+byte(i%2), uint16(i+1), fmt.Appendf(nil, "lost %d", i+1))
		}
		for {
			p, err := w.readWithin(time.Second)
			if err != nil {
				break
			}
			if (p.kind == typePuback || p.kind == typePubrec) && p.reason() < 0x80 {
				acks++
			}
		}
		w.close()
	}
	return acks
}

// TestSlowDiskPushesBack: devices that send faster than the disk takes it are slowed down, not refused: their messages are
// taken in, in order, on the same connection. A refusal would make a 3.1.1 device come back and send the same again, for ever.
func TestSlowDiskPushesBack(t *testing.T) {
	for _, clients := range []int{1, 12} {
		t.Run(fmt.Sprint(clients, " clients"), func(t *testing.T) {
			g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", "mqtt://127.0.0.1:9", "5"))
			g.start()
			attach(g, "-e", "trace="+syncCalls, "-e", "inject="+syncCalls+":delay_enter=100000")
			errs := make(chan error, clients)
			for i := range clients {
				name := fmt.Sprint("dev", i)
				go func() { errs <- flood(g.here(), name, 24000/clients) }() // ends with the last acknowledgement or the connection
			}
			for range clients {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			m := g.metrics()
			if n := m.sum("tidegate_refused_messages_total"); n != 0 {
				t.Errorf("%v messages were refused", n)
			}
			g.requireLedger("cloud", 24000/clients*clients)
			t.Logf("resident memory: %d KiB", residentKiB(t, g))
			g.kill()
		})
	}
}

// flood writes n messages of 1 KiB without waiting for anything and wants every acknowledgement, in order.
func flood(addr, name string, n int) error {
	w, err := dial(addr, "3.1.1", login{client: name})
	if err != nil {
		return err
	}
	defer w.close()
	written := make(chan error, 1)
	go func() { // ends with the last message or with the connection
		payload := make([]byte, 1024)
		for i := range n {
			if err := w.publish("plant/"+name, 1, uint16(i%65535+1), payload); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for i := range n {
		p, err := w.readWithin(60 * time.Second)
		if err != nil {
			return fmt.Errorf("%s: after %d of %d acknowledgements: %w", name, i, n, err)
		}
		if p.kind != typePuback || p.id() != uint16(i%65535+1) {
			return fmt.Errorf("%s: acknowledgement %d: packet %#x, identifier %d", name, i+1, p.kind, p.id())
		}
	}
	return <-written
}

// TestStopWithBadDisk: an orderly stop ends soon, whatever the disk does; a slow one costs nothing, and a failing one is no
// reason to hang.
func TestStopWithBadDisk(t *testing.T) {
	for name, inject := range map[string]string{"slow": ":delay_enter=300000", "failing": ":error=EIO"} {
		t.Run(name, func(t *testing.T) {
			c := startCloud(t)
			g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
			far := consume(t, c.addr(), "application", "plant/#")
			g.start()
			d := &device{name: "dev", topic: "plant/dev", version: "3.1.1", qos: 1, window: 50, addr: g.here}
			d.start(t)
			waitFor(t, soon, "the stream to begin", func() bool { return d.ackedCount() > 100 })
			tr := attach(g, "-e", "trace="+syncCalls, "-e", "inject="+syncCalls+inject)
			if name == "slow" {
				begin := d.ackedCount()
				waitFor(t, soon, "the stream to go on", func() bool { return d.ackedCount() > begin+50 })
			}
			begin := time.Now()
			_ = g.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-g.ended:
			case <-time.After(2 * time.Minute):
				t.Fatal("the gateway did not stop within 30 s of SIGTERM")
			}
			t.Logf("stop took %v: %v", time.Since(begin).Round(time.Millisecond), g.err)
			if name == "slow" && g.err != nil {
				t.Errorf("orderly stop on a slow disk: %v", g.err)
			}
			tr.detach()
			g.start()
			far.requireAll(t, d.topic, d.finish(t, 0, soon), 60*time.Second)
			g.stop()
		})
	}
}
