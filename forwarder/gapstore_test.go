package forwarder

import (
	"strconv"
	"strings"
	"testing"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
)

// gapRecords counts the reports on disk.
func (r *rig) gapRecords() int {
	n := 0
	for _, o := range r.f.outs {
		n += int(o.gaps.store.queue.Stats().Records)
	}
	return n
}

// TestGapsSurviveARestart: what was lost while the cloud was away is announced although the gateway was stopped, or
// killed, before it could be.
func TestGapsSurviveARestart(t *testing.T) {
	for _, how := range []string{"stopped", "killed"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			cfg := testConfig(nil, "cloud")
			cfg.Uplinks["cloud"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 32 << 10}}
			cloud := newFakeCloud(takeAll)
			cloud.setOffline(true)
			clouds := map[string]*fakeCloud{"cloud": cloud}
			disk := &badDisk{}
			r := openWith(t, dir, cfg, clouds, buffer.Options{FS: disk}).start()
			payload := strings.Repeat("x", 1000)
			for range 100 {
				r.send("a", payload)
			}
			r.eventuallyBalanced()
			evicted := r.entry("all", "cloud").Places["evicted"]
			if evicted == 0 {
				t.Fatal("nothing was evicted")
			}
			if how == "killed" {
				eventually(t, "the report is on disk", func() bool { return r.gapRecords() == 1 && r.saved() })
				left := t.TempDir()
				disk.snapshot(t, dir, left)
				dir = left
			}
			r.close()

			r = open(t, dir, cfg, clouds).start()
			cloud.setOffline(false)
			eventually(t, "the gap is announced", func() bool { return r.queued() == 0 && r.gapRecords() == 0 })
			requireGaps(t, cloud, gapJSON{Lane: "normal", From: 1, To: evicted, Reason: "evicted", Count: evicted})
			r.close()

			before := len(cloud.arrivals())
			r = open(t, dir, cfg, clouds).start()
			r.send("a", "last")
			eventually(t, "the last record arrives", func() bool { return len(cloud.arrivals()) > before })
			if got := cloud.arrivals()[before:]; len(got) != 1 || got[0].payload != "last" {
				t.Errorf("after another restart came %+v", got)
			}
			r.close()
		})
	}
}

// saved reports whether all reports are on disk as they are.
func (r *rig) saved() bool {
	for _, o := range r.f.outs {
		o.gaps.mu.Lock()
		for _, g := range o.gaps.list {
			if g.unsaved || len(g.stored) != 1 {
				o.gaps.mu.Unlock()
				return false
			}
		}
		o.gaps.mu.Unlock()
	}
	return true
}

// TestGapsOnDiskAreBounded: a report that grows replaces the one on disk, and those beyond the bound leave the disk too.
func TestGapsOnDiskAreBounded(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	r := open(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	g := r.f.outs[0].gaps
	for i := range buffer.Seq(maxGaps + 500) {
		g.add(gapReport{epoch: 1, from: 10*i + 1, to: 10*i + 1, reason: "evicted"})
		g.add(gapReport{epoch: 1, from: 10*i + 2, to: 10*i + 2, reason: "evicted"})
	}
	eventually(t, "as many are on disk as in memory", func() bool { return r.saved() && r.gapRecords() == maxGaps })
}

func FuzzReadGapReport(f *testing.F) {
	f.Add([]byte(`{"epoch":"1z","lane":"urgent","from":1,"to":7,"reason":"evicted","count":7}`))
	f.Add([]byte(`{"epoch":"","lane":"","from":9,"to":7}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readGapReport(b)
		if err != nil {
			return
		}
		again, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		o, err := readGapReport(again)
		if err != nil || o.epoch != r.epoch || o.lane != r.lane || o.from != r.from || o.to != r.to || o.reason != r.reason {
			t.Fatalf("%s became %s: %v", b, strconv.Quote(string(again)), err)
		}
		if o.lane >= pipeline.Lanes {
			t.Fatalf("lane %d", o.lane)
		}
	})
}
