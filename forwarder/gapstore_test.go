package forwarder

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

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
			if r.entry("all", "cloud").Places["evicted"] == 0 {
				t.Fatal("nothing was evicted")
			}
			if how == "killed" {
				// One that is being written counts as saved before it is, so what the disk has is looked at.
				eventually(t, "the report is on disk", func() bool {
					return r.gapRecords() == 1 && r.saved() && r.reported(t) == r.entry("all", "cloud").Places["evicted"]
				})
				left := t.TempDir()
				disk.snapshot(t, dir, left)
				dir = left
			}
			r.close()

			r = open(t, dir, cfg, clouds).start()
			cloud.setOffline(false)
			eventually(t, "the gap is announced", func() bool { return r.queued() == 0 && r.gapRecords() == 0 })
			// What the log moves in the background may push out some more at any time; what has not come is announced in any case.
			requireGaps(t, cloud, gap(1, uint64(100-len(cloud.records())), "evicted"))
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

// TestGapsSurviveAnEarlyKill: what was lost is announced although the gateway was killed before any report of it was on disk.
func TestGapsSurviveAnEarlyKill(t *testing.T) {
	cfg := testConfig(nil, "cloud")
	cfg.Uplinks["cloud"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 32 << 10}}
	cloud := newFakeCloud(takeAll)
	clouds := map[string]*fakeCloud{"cloud": cloud}
	dir, disk := t.TempDir(), &badDisk{}
	r := openWith(t, dir, cfg, clouds, buffer.Options{FS: disk, SaveEvery: time.Millisecond}) // nobody writes reports before Run
	for range 100 {
		r.send("a", strings.Repeat("x", 1000))
	}
	l := r.f.outs[0].lanes[pipeline.Normal]
	last := l.queue.Stats().Last
	dead := &flight{lane: pipeline.Normal, seq: last - 1, epoch: r.log.Epoch(), cell: l.ledger.cell([]byte("all"), l.uplink, l.kind)}
	acks := ackList{}
	acks.add(dead, placeDead)
	l.release(&acks)
	r.send("a", "the state is written with the next record")
	if n := r.gapRecords(); n > 0 {
		t.Fatalf("%d reports are on disk", n)
	}
	left := t.TempDir()
	disk.snapshot(t, dir, left)
	r.close()

	r = open(t, left, cfg, clouds).start()
	eventually(t, "the gaps are announced", func() bool {
		return r.queued() == 0 && r.gapRecords() == 0 && len(cloud.arrivals()) >= len(cloud.records())+2
	})
	requireGaps(t, cloud, gap(uint64(last)-1, uint64(last)-1, "dead"), gap(1, uint64(100-len(cloud.records())), "evicted"))
	for _, o := range r.f.outs {
		if losses, _ := o.lanes[pipeline.Normal].queue.Losses(); len(losses) > 0 {
			t.Errorf("the log still keeps %v", losses)
		}
	}
	r.close()
}

// reported counts the sequences in the reports on disk.
func (r *rig) reported(t *testing.T) uint64 {
	t.Helper()
	n := uint64(0)
	for _, o := range r.f.outs {
		err := o.gaps.store.queue.Scan(0, func(rec buffer.Rec) bool {
			g, err := readGapReport(rec.Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range g.lost.list {
				n += uint64(x.to-x.from) + 1
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
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
	for i := range buffer.Seq(maxGaps + 20) {
		for n := range buffer.Seq(maxRanges + i%2) { // some end with a report that has one range
			g.add(gapKey{epoch: uint64(1 + i), reason: "evicted"}, 10*n+1)
			g.add(gapKey{epoch: uint64(1 + i), reason: "evicted"}, 10*n+2)
		}
	}
	eventually(t, "as many are on disk as in memory", func() bool { return r.saved() && r.gapRecords() == maxGaps })
}

// TestGapsAreBoundedInMemory: reports that were on their way count too, and what is beyond the bound is the oldest and is let go
// of, also on disk.
func TestGapsAreBoundedInMemory(t *testing.T) {
	dropped := prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped"})
	g := newGaps(dropped)
	epoch := uint64(0)
	add := func() {
		epoch++
		g.add(gapKey{epoch: epoch, reason: "evicted"}, 1)
	}
	for range maxGaps {
		add()
	}
	r := g.due()
	add()
	g.failed(r, 0)
	add()
	if n := len(g.list); n != maxGaps {
		t.Fatalf("%d reports are kept, want %d", n, maxGaps)
	}
	for i, o := range g.list {
		if want := epoch - uint64(maxGaps-1-i); o.epoch != want || o.over {
			t.Errorf("report %d is of epoch %d, over %v; want %d", i, o.epoch, o.over, want)
		}
	}
	if n := testutil.ToFloat64(dropped); n != 2 || !r.over {
		t.Errorf("%g counted as dropped, the oldest over: %v", n, r.over)
	}
}

// TestScatteredLossesShareReports: what is lost here and there is announced together.
func TestScatteredLossesShareReports(t *testing.T) {
	g := newGaps(prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped"}))
	k := gapKey{epoch: 7, lane: pipeline.Urgent, reason: "expired"}
	for n := range buffer.Seq(2000) {
		g.add(k, 2*n+1)
	}
	g.add(k, 2) // joins the first two
	g.add(gapKey{epoch: 7, lane: pipeline.Normal, reason: "expired"}, 1)
	var total uint64
	for _, r := range g.list {
		if len(r.lost.list) > maxRanges {
			t.Errorf("%d ranges in a report", len(r.lost.list))
		}
		for _, x := range r.lost.list {
			total += uint64(x.to-x.from) + 1
		}
	}
	if total != 2002 || len(g.list) != 5 {
		t.Errorf("%d sequences in %d reports", total, len(g.list))
	}
}

func FuzzReadGapReport(f *testing.F) {
	f.Add([]byte(`{"epoch":"1z","lane":"urgent","reason":"evicted","count":8,"ranges":[[1,7],[9,9]]}`))
	f.Add([]byte(`{"epoch":"","lane":"","ranges":[[9,7]]}`))
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
		if err != nil || o.gapKey != r.gapKey || !slices.Equal(o.lost.list, r.lost.list) {
			t.Fatalf("%s became %s: %v", b, strconv.Quote(string(again)), err)
		}
		if o.lane >= pipeline.Lanes {
			t.Fatalf("lane %d", o.lane)
		}
	})
}

// FuzzRuns: a set of runs is the set of what was added, in as few runs as that takes.
func FuzzRuns(f *testing.F) {
	f.Add([]byte{1, 3, 2, 9, 8, 1}, []byte{4, 7})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var x, y runs
		in := map[buffer.Seq]bool{}
		for _, n := range a {
			grew := !x.continues(buffer.Seq(n))
			before := len(x.list)
			x.add(buffer.Seq(n))
			if len(x.list) > before && !grew {
				t.Fatalf("adding %d was to make no run more", n)
			}
			in[buffer.Seq(n)] = true
		}
		for _, n := range b {
			y.add(buffer.Seq(n))
			in[buffer.Seq(n)] = true
		}
		x.union(y)
		n := 0
		for i, r := range x.list {
			n += int(r.to-r.from) + 1
			if r.to < r.from || i > 0 && r.from <= x.list[i-1].to+1 {
				t.Fatalf("runs %v", x.list)
			}
		}
		for seq := range in {
			if !x.has(seq) {
				t.Fatalf("%d is missing in %v", seq, x.list)
			}
		}
		if n != len(in) {
			t.Fatalf("%v holds %d sequences, want %d", x.list, n, len(in))
		}
	})
}

// TestLossesAreNotedAtOnce: the log lets go of a loss when the report is on disk, also where that was quicker than the log, and not only with the
// next loss: else it would be announced again after a kill.
func TestLossesAreNotedAtOnce(t *testing.T) {
	cloud := newFakeCloud(takeAll)
	cloud.setOffline(true)
	r := open(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	o := r.f.outs[0]
	l := o.lanes[pipeline.Normal]
	_, err := r.log.Queue(l.queue.Name(), buffer.QueueOptions{Bound: o.bound, KeepLosses: true, OnDrop: func(q *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
		l.dropped(q, why, recs)
		eventually(t, "the report is on disk", func() bool { return r.gapRecords() == 1 && r.saved() })
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.send("a", "x")
	l.queue.Purge()
	eventually(t, "the log keeps no loss", func() bool {
		losses, _ := l.queue.Losses()
		return len(losses) == 0
	})
}
