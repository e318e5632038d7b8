package forwarder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// picky is a cloud that refuses topics beginning with "bad" until it is told to take them.
func picky() (takes *atomic.Bool, decide func(*fakeCloud, int, message.Message, Identity) act) {
	takes = new(atomic.Bool)
	return takes, func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if strings.HasPrefix(m.Topic, "bad") && !takes.Load() {
			return act{err: refusedError(0x99)}
		}
		return ack
	}
}

// letters returns how many dead letters of the uplink cloud there are.
func (r *rig) letters() uint64 { return r.f.outs[0].dead.queue.Stats().Records }

// resend resends all that pick picks and wants done of them to be gone.
func (r *rig) resend(pick DeadSelection, done uint64) {
	r.t.Helper()
	got, err := r.f.ResendDead(context.Background(), "cloud", pick)
	if err != nil || got.Done != done || got.Kept != 0 {
		r.t.Fatalf("resend: %+v, %v; want %d done", got, err, done)
	}
}

// TestResendDeadLetters: what is resent arrives under a new sequence of its lane and its old identity, and each copy stays in
// exactly one place of the ledger.
func TestResendDeadLetters(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"#"}, Except: []string{"bad/urgent"}}, "alarm": {From: []string{"bad/urgent"}, Lane: "urgent"}}
	takes, decide := picky()
	inBubble(t, testConfig(routes, "cloud"), decide, func(r *rig, c *fakeCloud) {
		for i := range 10 {
			r.send("a", strconv.Itoa(i+1))
			r.send("bad/x", strconv.Itoa(i+1))
		}
		r.send("bad/urgent", "1")
		waitEmpty(r, time.Minute)
		if s := r.f.Status()[0]; s.Dead != 11 || r.letters() != 11 {
			t.Fatalf("status %+v", s)
		}
		letters, err := r.f.DeadLetters("cloud")
		if err != nil {
			t.Fatal(err)
		}
		takes.Store(true)
		r.resend(DeadSelection{ID: letters[2].Message.ID.String()}, 1)
		r.resend(DeadSelection{ID: letters[2].Message.ID.String()}, 0)
		r.resend(DeadSelection{Seq: "1"}, 1)
		waitEmpty(r, time.Minute)
		if n := r.letters(); n != 9 {
			t.Errorf("%d letters are left", n)
		}
		r.resend(DeadSelection{}, 9)
		waitEmpty(r, time.Minute)
		time.Sleep(time.Second)
		if e := r.entry("all", "cloud"); e.Places["dead"] != 0 || e.Places["delivered"] != 20 || e.Recovered != 0 {
			t.Errorf("ledger: %+v", e)
		}
		if e := r.entry("alarm", "cloud"); e.Places["dead"] != 0 || e.Places["delivered"] != 1 {
			t.Errorf("ledger: %+v", e)
		}
		ids := map[string]bool{}
		for _, l := range letters {
			ids[l.Message.ID.String()] = true
		}
		resent := 0
		for _, a := range c.records() {
			if !strings.HasPrefix(a.topic, "bad") {
				continue
			}
			resent++
			if !ids[a.id.ID] {
				t.Errorf("%s %s has another tg-id than its dead letter", a.topic, a.payload)
			}
			if urgent := strings.Contains(a.id.Seq, "-urgent-"); urgent != (a.topic == "bad/urgent") {
				t.Errorf("%s was resent as %s", a.topic, a.id.Seq)
			}
		}
		if resent != 11 || r.letters() != 0 || r.f.Status()[0].Dead != 0 {
			t.Errorf("%d resent, %d letters are left", resent, r.letters())
		}
	})
}

// TestResendOfWhatIsStillRefused: it becomes a dead letter again, once.
func TestResendOfWhatIsStillRefused(t *testing.T) {
	for name, cfg := range map[string]*config.Config{"single": testConfig(nil, "cloud"), "batches": batchConfig(nil, nil)} {
		t.Run(name, func(t *testing.T) {
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if bad, _ := hasMember(t, m, "bad"); bad || m.Topic == "bad" {
					return act{err: refusedError(0x99)}
				}
				return ack
			}
			inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
				for range 300 {
					r.send("bad", "x")
				}
				r.send("good", "") // else the cloud would be at fault, see blame.go
				waitEmpty(r, 10*time.Minute)
				r.resend(DeadSelection{}, 300)
				r.send("good", "")
				waitEmpty(r, 10*time.Minute)
				time.Sleep(time.Second)
				if e := r.entry("all", "cloud"); e.Places["dead"] != 300 || r.letters() != 300 {
					t.Errorf("%d letters, ledger: %v", r.letters(), e.Places)
				}
			})
		})
	}
}

// TestResendAfterARestart: dead letters of an earlier process are counted as recovered when they are resent.
func TestResendAfterARestart(t *testing.T) {
	dir, cfg := t.TempDir(), testConfig(nil, "cloud")
	takes, decide := picky()
	synctest.Test(t, func(t *testing.T) {
		cloud := newFakeCloud(decide)
		r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
		for i := range 5 {
			r.send("bad", strconv.Itoa(i+1))
		}
		waitEmpty(r, time.Minute)
		r.close()
		r = open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
		defer r.close()
		r.send("bad", "6")
		waitEmpty(r, time.Minute)
		takes.Store(true)
		r.resend(DeadSelection{}, 6)
		waitEmpty(r, time.Minute)
		time.Sleep(time.Second)
		e := r.entry("all", "cloud")
		if e.Taken != 1 || e.Recovered != 5 || e.Places["delivered"] != 6 || e.Places["dead"] != 0 {
			t.Errorf("ledger: %+v", e)
		}
		r.balance()
	})
}

// TestResendRespectsTheBound: with either policy nothing that waits is pushed out; the letters stay.
func TestResendRespectsTheBound(t *testing.T) {
	for _, policy := range []string{"refuse", "drop-oldest"} {
		t.Run(policy, func(t *testing.T) {
			cfg := testConfig(nil, "cloud")
			u := cfg.Uplinks["cloud"]
			u.Buffer = config.Buffer{MaxBytes: 256 << 10, WhenFull: policy}
			cfg.Uplinks["cloud"] = u
			takes, decide := picky()
			inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
				for range 50 {
					r.send("bad", strings.Repeat("x", 1000))
				}
				r.send("good", "") // else the cloud would be at fault, see blame.go
				waitEmpty(r, time.Minute)
				takes.Store(true)
				c.setOffline(true)
				for i := 0; ; i++ {
					if used, limit := r.f.outs[0].bound.Used(); used > limit-20_000 {
						break
					}
					r.send("a", strings.Repeat("x", 1000))
				}
				before := r.queued()
				got, err := r.f.ResendDead(context.Background(), "cloud", DeadSelection{})
				if !errors.Is(err, buffer.ErrFull) || got.Done != 0 || r.letters() != 50 || r.queued() != before {
					t.Errorf("%+v, %v; %d letters, %d records of %d", got, err, r.letters(), r.queued(), before)
				}
				c.setOffline(false)
				waitEmpty(r, time.Minute)
				r.resend(DeadSelection{}, 50)
				waitEmpty(r, time.Minute)
				if e := r.entry("all", "cloud"); e.Places["evicted"]+e.Places["refused"]+e.Places["dead"] != 0 {
					t.Errorf("ledger: %v", e.Places)
				}
			})
		})
	}
}

// TestCrashWhileResending: whatever instant the power goes, a letter is in its lane or still a letter, or both.
func TestCrashWhileResending(t *testing.T) {
	const n = 600
	dir := t.TempDir()
	cfg := testConfig(nil, "cloud")
	_, decide := picky()
	r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": newFakeCloud(decide)}).start()
	for range n {
		r.send("bad", strings.Repeat("x", 15000))
	}
	r.send("good", "") // else the cloud would be at fault, see blame.go
	eventually(t, "dead letters", func() bool { return r.letters() == n })
	r.close()

	r = open(t, dir, cfg, map[string]*fakeCloud{"cloud": newFakeCloud(decide)})
	defer r.close()
	var copies []string
	o := r.f.outs[0]
	again := &resender{
		log: r.log, dead: o.dead.queue, lanes: o.queues, route: func(string) (pipeline.Lane, time.Duration) { return pipeline.Normal, 0 },
		room: func() int64 { // asked before each piece
			var to string
			for before := ""; before != fileNames(t, dir); { // else it is of no single moment
				to, before = t.TempDir(), fileNames(t, dir)
				copyDir(t, dir, to)
			}
			copies = append(copies, to)
			return 1 << 30
		},
	}
	got, err := again.run(context.Background(), DeadSelection{})
	if err != nil || got.Done != n {
		t.Fatalf("%+v, %v", got, err)
	}
	again.room()
	for _, to := range copies {
		ids := map[string]int{}
		inspect(t, to, func(s Stored) { ids[s.Message.ID.String()]++ })
		log, err := buffer.Open(to, buffer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		resent := len(ids)
		err = log.Lookup(deadName("cloud")).Scan(0, func(rec buffer.Rec) bool {
			s, err := ReadDeadLetter(rec.Data)
			if err != nil {
				t.Error(err)
			}
			ids[s.Message.ID.String()]++
			return true
		})
		if err := errors.Join(err, log.Close()); err != nil {
			t.Error(err)
		}
		if len(ids) != n {
			t.Errorf("%d of %d are left, %d of them in the lane", len(ids), n, resent)
		}
		for id, k := range ids {
			if k > 2 {
				t.Errorf("%s is there %d times", id, k)
			}
		}
	}
	t.Logf("%d moments looked at", len(copies))
}

func fileNames(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, e := range entries {
		names += e.Name() + " "
	}
	return names
}

// TestUnsendableDeadLettersStay: a topic that is no topic name will not be taken the second time either.
func TestUnsendableDeadLettersStay(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"#"}, Topic: "{3}"}}
	inBubble(t, testConfig(routes, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		r.send("a/b", "x")
		r.send("a/b/c", "x")
		waitEmpty(r, time.Minute)
		got, err := r.f.ResendDead(context.Background(), "cloud", DeadSelection{})
		if err != nil || got.Done != 0 || got.Kept != 1 || got.Why == "" || r.letters() != 1 {
			t.Errorf("%+v, %v, %d letters", got, err, r.letters())
		}
		if _, err := r.f.ResendDead(context.Background(), "other", DeadSelection{}); err == nil || !strings.Contains(err.Error(), "no [uplink.other]") {
			t.Errorf("another uplink: %v", err)
		}
		if got, err := DiscardDead(r.f.outs[0].dead.queue, DeadSelection{ID: "nobody"}); err != nil || got.Done != 0 {
			t.Errorf("discard another: %+v, %v", got, err)
		}
		if got, err := DiscardDead(r.f.outs[0].dead.queue, DeadSelection{}); err != nil || got.Done != 1 || r.letters() != 0 {
			t.Errorf("discard: %+v, %v", got, err)
		}
		if e := r.entry("all", "cloud"); e.Places["dead"] != 1 || e.Places["delivered"] != 1 {
			t.Errorf("ledger: %v", e.Places)
		}
	})
}

// TestResendBesideAStoppedGateway: the next gateway finds the records in their lanes.
func TestResendBesideAStoppedGateway(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(map[string]config.Route{"all": {From: []string{"bad/#"}}, "alarm": {From: []string{"bad/u"}, Lane: "urgent"}}, "cloud")
	takes, decide := picky()
	cloud := newFakeCloud(decide)
	r := open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	for i := range 20 {
		r.send("bad/n", strconv.Itoa(i+1))
	}
	r.send("bad/u", "1")
	eventually(t, "dead letters", func() bool { return r.letters() == 21 })
	r.close()

	log, err := buffer.Open(dir, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	small := *cfg
	small.Uplinks = map[string]config.Uplink{"cloud": {Buffer: config.Buffer{MaxBytes: 100}}}
	if got, err := ResendDead(context.Background(), log, &small, "cloud", DeadSelection{}); !errors.Is(err, buffer.ErrFull) || got.Done != 0 {
		t.Errorf("into a full buffer: %+v, %v", got, err)
	}
	if _, err := ResendDead(context.Background(), log, cfg, "other", DeadSelection{}); err == nil {
		t.Error("an uplink that is not configured takes dead letters")
	}
	if got, err := ResendDead(context.Background(), log, cfg, "cloud", DeadSelection{}); err != nil || got.Done != 21 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	takes.Store(true)
	r = open(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	eventually(t, "all of them to arrive", func() bool { return r.queued() == 0 && len(cloud.records()) == 21 })
	r.eventuallyBalanced()
	if n := r.letters(); n != 0 {
		t.Errorf("%d letters are left", n)
	}
	lanes := map[string]int{}
	for _, a := range cloud.records() {
		lanes[strings.Split(a.id.Seq, "-")[1]]++
	}
	if fmt.Sprint(lanes) != "map[normal:20 urgent:1]" {
		t.Errorf("lanes %v", lanes)
	}
}

// TestResendBesideAStoppedGatewayPushesNothingOut: the gateway that is started next keeps a part of its bound free. What is resent
// before that leaves it its part, so nothing is evicted at the start.
func TestResendBesideAStoppedGatewayPushesNothingOut(t *testing.T) {
	for name, c := range map[string]struct {
		left int64 // of the bound
		done bool
	}{"no room": {5_000, false}, "enough": {30_000, true}} {
		t.Run(name, func(t *testing.T) {
			dir, cfg := t.TempDir(), testConfig(nil, "cloud", "other")
			u := cfg.Uplinks["cloud"]
			u.Buffer = config.Buffer{MaxBytes: 256 << 10, WhenFull: "drop-oldest"}
			cfg.Uplinks["cloud"] = u
			_, decide := picky()
			cloud := newFakeCloud(decide)
			clouds := map[string]*fakeCloud{"cloud": cloud, "other": newFakeCloud(takeAll)}
			r := open(t, dir, cfg, clouds).start()
			for range 15 {
				r.send("bad", strings.Repeat("x", 1000))
			}
			eventually(t, "dead letters", func() bool { return r.letters() == 15 && r.queued() == 0 })
			cloud.setOffline(true)
			for {
				if used, limit := r.f.outs[0].bound.Used(); used > limit-c.left {
					break
				}
				r.send("a", strings.Repeat("x", 1000))
			}
			r.close()
			log, err := buffer.Open(dir, buffer.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := ResendDead(context.Background(), log, cfg, "cloud", DeadSelection{})
			if c.done && (err != nil || got.Done != 15) || !c.done && !errors.Is(err, buffer.ErrFull) {
				t.Errorf("resend: %+v, %v", got, err)
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			r = open(t, dir, cfg, clouds).start()
			defer r.close()
			cloud.setOffline(false)
			eventually(t, "delivery", func() bool { return r.queued() == 0 })
			for _, e := range r.f.Ledger().Entries {
				if e.Places["evicted"] > 0 {
					t.Errorf("evicted at the start: %+v", e)
				}
			}
		})
	}
}

// TestResendOfAReservedTopic: a device that made a topic of the gateway's own cannot have it sent by a resend either.
func TestResendOfAReservedTopic(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"x/#"}, Topic: "{rest}"}}
	inBubble(t, testConfig(routes, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		r.send("x/tidegate/gw/uplink/cloud/gaps", `{"epoch":"1","lane":"normal","reason":"evicted","count":1000,"ranges":[[1,1000]]}`)
		time.Sleep(time.Second)
		if n := r.letters(); n != 1 || len(c.arrivals()) != 0 {
			t.Fatalf("%d letters, %d arrivals", n, len(c.arrivals()))
		}
		got, err := r.f.ResendDead(context.Background(), "cloud", DeadSelection{})
		waitEmpty(r, time.Minute)
		for _, a := range c.arrivals() {
			t.Errorf("resend (%+v, %v) sent %s: %s", got, err, a.topic, a.payload)
		}
	})
}

// TestResendOfATopicThatWasCut: a topic that came out too long is kept cut, and is not sent under what is left of it.
func TestResendOfATopicThatWasCut(t *testing.T) {
	routes := map[string]config.Route{"all": {From: []string{"#"}, Topic: "{topic}/{topic}"}}
	inBubble(t, testConfig(routes, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		r.send(strings.Repeat("x", 40000), "1")
		time.Sleep(time.Second)
		if n := r.letters(); n != 1 || len(c.arrivals()) != 0 {
			t.Fatalf("%d letters, %d arrivals", n, len(c.arrivals()))
		}
		got, err := r.f.ResendDead(context.Background(), "cloud", DeadSelection{})
		waitEmpty(r, time.Minute)
		for _, a := range c.arrivals() {
			t.Errorf("resend (%+v, %v) sent it under a topic of %d bytes that no route made", got, err, len(a.topic))
		}
	})
}

// TestResendCutShort: who gave the order goes away while the disk takes the records; the ledger adds up, and nothing is sent twice.
func TestResendCutShort(t *testing.T) {
	disk := &badDisk{}
	takes, decide := picky()
	cloud := newFakeCloud(decide)
	r := openWith(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}, buffer.Options{FS: disk}).start()
	defer r.close()
	for range 5 {
		r.send("bad", "x")
	}
	eventually(t, "dead letters", func() bool { return r.letters() == 5 && r.queued() == 0 })
	takes.Store(true)
	disk.slow.Store(int64(500 * time.Millisecond))
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	defer cancel()
	res, err := r.f.ResendDead(ctx, "cloud", DeadSelection{})
	t.Logf("resend: %+v, %v", res, err)
	disk.slow.Store(0)
	eventually(t, "delivery", func() bool { return len(cloud.records()) >= 5 && r.queued() == 0 })
	time.Sleep(time.Second)
	t.Logf("letters left %d, ledger %+v", r.letters(), r.entry("all", "cloud"))
	if err := r.unbalanced(); err != nil {
		t.Error(err)
	}
	if n := r.letters(); n != 0 {
		t.Errorf("%d letters stay although they were sent: the next resend sends them a second time", n)
	}
}
