package forwarder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// TestLedgerAddsUp does random things to a gateway with three routes and three uplinks, with restarts and crashes in
// between, and checks at each quiet moment that every copy is in exactly one place.
func TestLedgerAddsUp(t *testing.T) {
	seen := map[string]uint64{}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { ledgerRun(t, rand.New(rand.NewPCG(seed, 3)), seen) })
	}
	for _, p := range []string{"delivered", "buffered", "merged", "evicted", "refused", "dead"} {
		if seen[p] == 0 {
			t.Errorf("no copy was ever %s: the test does not try it", p)
		}
	}
	t.Logf("copies by place: %v", seen)
}

func ledgerRun(t *testing.T, rnd *rand.Rand, seen map[string]uint64) {
	cfg := testConfig(map[string]config.Route{
		"alarms": {From: []string{"+/alarm"}, Lane: "urgent"},
		"data":   {From: []string{"#"}, Except: []string{"private/#"}},
		"users":  {From: []string{"u/#"}, To: []string{"roomy"}, Topic: "{user}/{rest}"},
	}, "roomy", "evicting", "refusing")
	cfg.Uplinks["evicting"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 20 << 10}}
	cfg.Uplinks["refusing"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 60 << 10, WhenFull: "refuse"}}
	dir := t.TempDir()
	for round := range 8 {
		clouds := map[string]*fakeCloud{}
		for name := range cfg.Uplinks {
			dice := rand.New(rand.NewPCG(rnd.Uint64(), 1))
			clouds[name] = newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act {
				switch n := dice.IntN(400); {
				case n == 0:
					return act{cut: true}
				case n == 1:
					return act{take: true, cut: true}
				case n < 8:
					return act{err: refusedError(0x90)}
				}
				return ack
			})
			clouds[name].setOffline(rnd.IntN(2) == 0)
		}
		disk := &badDisk{}
		r := openWith(t, dir, cfg, clouds, buffer.Options{FS: disk}).start()
		for _, o := range r.f.outs {
			o.drain.times.quotaMin = time.Millisecond
		}
		ledgerOps(t, r, rnd)
		r.eventuallyBalanced()
		for _, e := range r.f.Ledger().Entries {
			for p, n := range e.Places {
				seen[p] += n
			}
		}
		if round%2 == 0 {
			r.close()
			continue
		}
		crashed := t.TempDir()
		disk.snapshot(t, dir, crashed)
		r.close()
		dir = crashed
	}
}

func ledgerOps(t *testing.T, r *rig, rnd *rand.Rand) {
	topics := []string{"a/b", "a/alarm", "u/x", "private/x", "c"}
	users := []string{"", "hmi", "x/#"}
	names := slices.Sorted(maps.Keys(r.clouds))
	for range 300 {
		if rnd.IntN(60) == 0 {
			r.clouds[names[rnd.IntN(len(names))]].setOffline(rnd.IntN(2) == 0)
		}
		tk, err := r.f.Ingest(message.Message{
			Topic: topics[rnd.IntN(len(topics))], Payload: make([]byte, rnd.IntN(1000)),
			Source: message.Source{Protocol: message.MQTT, Client: "c", User: users[rnd.IntN(len(users))]},
		})
		if err != nil && !errors.Is(err, message.ErrBusy) {
			t.Fatal(err)
		}
		if err == nil && rnd.IntN(10) == 0 {
			if err := tk.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRecoveredRecordsAreCounted: what was on disk at the start appears under its route, also when the drain is as fast as
// the count, and also when the route is configured no more.
func TestRecoveredRecordsAreCounted(t *testing.T) {
	dir := t.TempDir()
	const n = 5000
	cfg := testConfig(map[string]config.Route{"a": {From: []string{"a"}}, "b": {From: []string{"b"}, Lane: "urgent"}}, "cloud")
	off := newFakeCloud(takeAll)
	off.setOffline(true)
	r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": off}).start()
	var last message.Ticket
	for i := range n {
		for _, topic := range []string{"a", "b"} {
			tk, err := r.f.Ingest(message.Message{Topic: topic, Payload: []byte(strconv.Itoa(i + 1)), Source: message.Source{Client: "dev"}})
			if err != nil {
				t.Fatal(err)
			}
			last = tk
		}
	}
	if err := last.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.close()

	delete(cfg.Routes, "b")
	r = open(t, dir, cfg, map[string]*fakeCloud{"cloud": off})
	if e := r.entry("", "cloud"); e.Recovered != 2*n || e.Places["buffered"] != 2*n {
		t.Errorf("before they are counted by route: %+v", e)
	}
	r.balance()
	r.start()
	eventually(t, "all are counted", func() bool {
		return r.entry("a", "cloud").Places["buffered"] == n && r.entry("b", "cloud").Places["buffered"] == n
	})
	r.balance()
	r.close()

	for range 3 {
		crashed := t.TempDir()
		copyDir(t, dir, crashed)
		cloud := newFakeCloud(takeAll)
		r = open(t, crashed, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
		eventually(t, "all are delivered", func() bool { return r.queued() == 0 })
		r.eventuallyBalanced()
		for _, route := range []string{"a", "b"} {
			if e := r.entry(route, "cloud"); e.Recovered != n || e.Places["delivered"] != n || e.Taken != 0 {
				t.Errorf("%s: %+v", route, e)
			}
		}
		checkOrder(t, cloud.records(), map[string]int{"dev a": n, "dev b": n})
		r.close()
	}
}

// TestDamageFindsItsPlace: records that the disk loses while they wait are found out by their route.
func TestDamageFindsItsPlace(t *testing.T) {
	for _, name := range []string{"while running", "before the start", "after a crash"} {
		t.Run(name, func(t *testing.T) {
			restart := name != "while running"
			dir := t.TempDir()
			cloud := newFakeCloud(takeAll)
			cloud.setOffline(true)
			cfg := testConfig(map[string]config.Route{"a": {From: []string{"a"}}, "b": {From: []string{"b"}}}, "cloud")
			clouds := map[string]*fakeCloud{"cloud": cloud}
			r := open(t, dir, cfg, clouds).start()
			for i := range 50 {
				r.send("a", strconv.Itoa(i+1))
				r.send("b", "the payload that is hit, number "+strconv.Itoa(i+1))
			}
			if name == "after a crash" { // the last segment is read when the log is opened
				left := t.TempDir()
				copyDir(t, dir, left)
				dir = left
			}
			if restart {
				r.close()
			}
			flip(t, dir, "is hit, number 20")
			if restart {
				r = open(t, dir, cfg, clouds)
				r.balance() // right away
				r.start()
			}
			cloud.setOffline(false)
			eventually(t, "the queue is empty", func() bool { return r.queued() == 0 })
			r.eventuallyBalanced()
			var damaged uint64
			for _, e := range r.f.Ledger().Entries {
				damaged += e.Places["damaged"]
			}
			if damaged != 1 || len(cloud.records()) != 99 {
				t.Errorf("%d damaged, %d arrived", damaged, len(cloud.records()))
			}
			if b := r.entry("b", "cloud"); !restart && b.Places["damaged"] != 1 {
				t.Errorf("b: %+v", b)
			}
			eventually(t, "the gap is announced", func() bool { return len(cloud.arrivals()) > 99 })
			requireGaps(t, cloud, gap(40, 40, "damaged"))
			r.close()
		})
	}
}

// TestOrphansAreInTheLedger: the records of an uplink that is configured no more stay buffered, under its name, until the
// operator removes them.
func TestOrphansAreInTheLedger(t *testing.T) {
	dir := t.TempDir()
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	r := open(t, dir, testConfig(nil, "old"), map[string]*fakeCloud{"old": cloud}).start()
	for i := range 10 {
		r.send("a", strconv.Itoa(i+1))
	}
	r.close()

	r = open(t, dir, testConfig(nil, "new"), map[string]*fakeCloud{"new": cloud})
	if e := r.entry("", "old"); e.Recovered != 10 || e.Places["buffered"] != 10 {
		t.Errorf("at the start: %+v", e)
	}
	r.start()
	defer r.close()
	eventually(t, "they are counted by route", func() bool { return r.entry("all", "old").Places["buffered"] == 10 })
	if n := r.log.Lookup("uplink/old/normal").Purge(); n != 10 {
		t.Errorf("purged %d", n)
	}
	if e := r.entry("all", "old"); e.Recovered != 10 || e.Places["purged"] != 10 || e.Places["buffered"] != 0 {
		t.Errorf("after the purge: %+v", e)
	}
	if n := len(r.f.Status()); n != 1 {
		t.Errorf("%d uplinks in the status", n)
	}
}

// flip changes one bit of the first file that holds text.
func flip(t *testing.T, dir, text string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(b), text)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no file holds %q", text)
}

// TestPurge: what the operator removes is counted and announced.
func TestPurge(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	r := open(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	for i := range 10 {
		r.send("a", strconv.Itoa(i+1))
	}
	if n := r.f.outs[0].queues[pipeline.Normal].Purge(); n != 10 {
		t.Fatalf("purged %d", n)
	}
	if e := r.entry("all", "cloud"); e.Places["purged"] != 10 || e.Places["buffered"] != 0 {
		t.Errorf("ledger: %v", e.Places)
	}
	r.balance()
	cloud.setOffline(false)
	eventually(t, "the gap is announced", func() bool { return len(cloud.arrivals()) > 0 })
	requireGaps(t, cloud, gap(1, 10, "purged"))
}

func TestMetrics(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cfg := testConfig(map[string]config.Route{"all": {From: []string{"a"}}}, "cloud")
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	for i := range 5 {
		r.send("a", strconv.Itoa(i+1))
	}
	r.send("nobody/wants/it", "")
	eventually(t, "all is delivered", func() bool { return r.entry("all", "cloud").Places["delivered"] == 5 })
	want := `
# HELP tidegate_delivered_messages_total Messages that the cloud broker acknowledged.
# TYPE tidegate_delivered_messages_total counter
tidegate_delivered_messages_total{uplink="cloud"} 5
# HELP tidegate_ledger_total Copies (message x route x uplink) by the place they are in; the place buffered also falls.
# TYPE tidegate_ledger_total untyped
tidegate_ledger_total{place="buffered",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="damaged",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="dead",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="delivered",route="all",uplink="cloud"} 5
tidegate_ledger_total{place="evicted",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="expired",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="filtered",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="merged",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="purged",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="refused",route="all",uplink="cloud"} 0
tidegate_ledger_total{place="unrouted",route="",uplink=""} 1
`
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(want), "tidegate_ledger_total", "tidegate_delivered_messages_total"); err != nil {
		t.Error(err)
	}
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, f := range families {
		if h := f.GetMetric()[0].GetHistogram(); h != nil {
			counts[f.GetName()] = h.GetSampleCount()
		}
	}
	if counts["tidegate_ingest_seconds"] != 5 || counts["tidegate_uplink_seconds"] != 5 {
		t.Errorf("observed: %v", counts)
	}
}

func TestRuns(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var r runs
		want := map[buffer.Seq]bool{}
		for range 60 {
			seq := buffer.Seq(rnd.IntN(50))
			r.add(seq)
			want[seq] = true
		}
		for seq := range buffer.Seq(51) {
			if r.has(seq) != want[seq] {
				t.Fatalf("%d: has %v, want %v in %v", seq, r.has(seq), want[seq], r.list)
			}
		}
		for i := 1; i < len(r.list); i++ {
			if r.list[i].from <= r.list[i-1].to+1 {
				t.Fatalf("runs touch: %v", r.list)
			}
		}
	}
}
