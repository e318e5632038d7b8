package forwarder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// inBubble runs a forwarder with one fake cloud under fake time.
func inBubble(t *testing.T, cfg *config.Config, decide func(*fakeCloud, int, message.Message, Identity) act, body func(r *rig, c *fakeCloud)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cloud := newFakeCloud(decide)
		start := time.Now()
		clock := func() (uint64, time.Duration) { return 1, time.Since(start) } // the machine ages with the bubble
		r := openWith(t, dir, cfg, map[string]*fakeCloud{"cloud": cloud}, buffer.Options{Clock: clock}).start()
		defer r.close()
		body(r, cloud)
		synctest.Wait()
		r.balance()
	})
}

// waitEmpty lets time pass until everything has left the queues, and returns how long it took.
func waitEmpty(r *rig, limit time.Duration) time.Duration {
	r.t.Helper()
	start := time.Now()
	for r.queued() > 0 {
		if time.Since(start) > limit {
			r.t.Fatalf("%d records are still there after %v", r.queued(), limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(start)
}

// TestQuotaPausesAndResends: 0x97 makes the forwarder wait, longer each time, and lose nothing.
func TestQuotaPausesAndResends(t *testing.T) {
	for name, refusal := range map[string]error{"by code": refusedError(0x97), "by name": fmt.Errorf("x: %w", ErrQuota)} {
		t.Run(name, func(t *testing.T) {
			var asked []time.Time
			opens := time.Time{}
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if time.Now().Before(opens) {
					asked = append(asked, time.Now())
					return act{err: refusal}
				}
				return ack
			}
			inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
				opens = time.Now().Add(20 * time.Second)
				for i := range 20 {
					r.send("a", strconv.Itoa(i+1))
				}
				time.Sleep(5 * time.Second)
				if s := r.f.Status()[0]; !strings.Contains(s.LastError, "pauses") || !s.Connected || s.InFlight != 0 {
					t.Errorf("status while pausing: %+v", s)
				}
				took := waitEmpty(r, 5*time.Minute)
				checkOrder(t, c.records(), map[string]int{"dev a": 20})
				if c.links != 1 {
					t.Errorf("%d connections: a pause needs no new one", c.links)
				}
				if took > 90*time.Second {
					t.Errorf("took %v after a quota of 20 s", took)
				}
				if n := len(asked); n > 120 {
					t.Errorf("asked %d times in 20 s", n)
				}
				if s := r.f.Status()[0]; s.LastError != "" {
					t.Errorf("the alarm stays: %q", s.LastError)
				}
			})
		})
	}
}

// TestNotAuthorizedRaisesAlarm: 0x87 must not empty the buffer into the dead letters.
func TestNotAuthorizedRaisesAlarm(t *testing.T) {
	for _, refusal := range []error{refusedError(0x87), ErrNotAuthorized, refusedError(0x80)} {
		var allowed atomic.Bool
		tries := 0
		decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
			if !allowed.Load() {
				tries++
				return act{err: refusal}
			}
			return ack
		}
		inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
			for i := range 50 {
				r.send("a", strconv.Itoa(i+1))
			}
			time.Sleep(time.Hour)
			if e := r.entry("all", "cloud"); e.Places["dead"] != 0 || e.Places["buffered"] != 50 {
				t.Errorf("%v: after an hour: %v", refusal, e.Places)
			}
			if s := r.f.Status()[0]; !strings.Contains(s.LastError, refusal.Error()) {
				t.Errorf("status shows %q", s.LastError)
			}
			if tries > 50*60 {
				t.Errorf("%d tries in an hour", tries)
			}
			allowed.Store(true)
			if took := waitEmpty(r, 10*time.Minute); took > 5*time.Minute+time.Second {
				t.Errorf("took %v to notice", took)
			}
			checkOrder(t, c.records(), map[string]int{"dev a": 50})
		})
	}
}

// TestRefusedRecordBecomesDeadLetter: 0x90, 0x95 and 0x99 are about the record, which must not block those behind it.
func TestRefusedRecordBecomesDeadLetter(t *testing.T) {
	for _, code := range []byte{0x90, 0x95, 0x99} {
		decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
			if strings.HasPrefix(m.Topic, "bad") {
				return act{err: refusedError(code)}
			}
			return ack
		}
		inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
			for i := range 30 {
				r.send("a", strconv.Itoa(i+1))
				if i%10 == 4 {
					r.send("bad/"+strconv.Itoa(i), "the payload")
				}
			}
			waitEmpty(r, time.Minute)
			checkOrder(t, c.records(), map[string]int{"dev a": 30})
			e := r.entry("all", "cloud")
			if e.Places["dead"] != 3 || e.Places["delivered"] != 30 {
				t.Errorf("code %#x: %v", code, e.Places)
			}
			letters, err := r.f.DeadLetters("cloud")
			if err != nil || len(letters) != 3 {
				t.Fatalf("dead letters: %d, %v", len(letters), err)
			}
			l := letters[0]
			if l.Message.Topic != "bad/4" || string(l.Message.Payload) != "the payload" || l.Route != "all" ||
				!strings.Contains(l.Reason, refusedError(code).Error()) {
				t.Errorf("dead letter %+v", l)
			}
		})
	}
}

// TestRecordThatClosesTheConnection: over 3.1.1 a broker has no other word for a record it does not want.
func TestRecordThatClosesTheConnection(t *testing.T) {
	tries, alone := 0, 0
	sends := map[int]int{} // per connection
	decide := func(_ *fakeCloud, link int, m message.Message, _ Identity) act {
		sends[link]++
		if m.Topic == "bad" {
			tries++
			if tries > suspectCloses && sends[link] == 1 {
				alone++
			}
			return act{cut: true, byPeer: true}
		}
		return ack
	}
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
		for i := range 10 {
			r.send("a", strconv.Itoa(i+1))
		}
		r.send("bad", "x")
		for i := range 10 {
			r.send("b", strconv.Itoa(i+1))
		}
		took := waitEmpty(r, 10*time.Minute)
		checkOrder(t, c.records(), map[string]int{"dev a": 10, "dev b": 10})
		if e := r.entry("all", "cloud"); e.Places["dead"] != 1 || e.Places["delivered"] != 20 {
			t.Errorf("ledger: %v", e.Places)
		}
		if tries != suspectCloses+condemnCloses || alone != condemnCloses {
			t.Errorf("the record was tried %d times, %d times alone", tries, alone)
		}
		t.Logf("given up after %v and %d connections", took, c.links)
	})
}

// TestFlappingLineCondemnsNothing: the peer, or something in between, closes every connection after some fixed time,
// whatever is sent; acknowledgements rarely make it.
func TestFlappingLineCondemnsNothing(t *testing.T) {
	for _, life := range []time.Duration{
		5 * time.Millisecond, 200 * time.Millisecond, time.Second, 1100 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second,
		4 * time.Second, 10 * time.Second, 14 * time.Second, 20 * time.Second,
	} {
		var good atomic.Bool
		decide := func(c *fakeCloud, link int, m message.Message, _ Identity) act {
			if good.Load() {
				return ack
			}
			return act{take: true, silent: true}
		}
		inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
			for i := range 10 {
				r.send("a", strconv.Itoa(i+1))
			}
			for range 500 {
				time.Sleep(life)
				c.drop(true)
			}
			if e := r.entry("all", "cloud"); e.Places["dead"] != 0 {
				t.Errorf("life %v: %d good records became dead letters", life, e.Places["dead"])
			}
			good.Store(true)
			c.drop(true) // the connection that was made meanwhile may have got records as a bad one
			waitEmpty(r, 10*time.Minute)
			checkOrder(t, c.records(), map[string]int{"dev a": 10})
		})
	}
}

// TestUnprovenConnectionCondemnsNothing: where the connection never showed that it works, nothing can be blamed on a record.
func TestUnprovenConnectionCondemnsNothing(t *testing.T) {
	decide := func(*fakeCloud, int, message.Message, Identity) act { return act{cut: true, byPeer: true} }
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
		c.mu.Lock()
		c.unproven = true
		c.mu.Unlock()
		r.send("a", "1")
		time.Sleep(time.Hour)
		if e := r.entry("all", "cloud"); e.Places["buffered"] != 1 {
			t.Errorf("ledger: %v", e.Places)
		}
	})
}

// TestUrgentFirst: with a backlog in the normal lane an urgent record waits for no more than what is in flight.
func TestUrgentFirst(t *testing.T) {
	cfg := testConfig(map[string]config.Route{
		"normal": {From: []string{"n"}}, "urgent": {From: []string{"u"}, Lane: "urgent"},
	}, "cloud")
	decide := func(*fakeCloud, int, message.Message, Identity) act {
		return act{take: true, delay: 100 * time.Millisecond}
	}
	inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		c.mu.Lock()
		c.window = 10
		c.mu.Unlock()
		for i := range 500 {
			r.send("n", strconv.Itoa(i+1))
		}
		c.setOffline(false)
		time.Sleep(time.Second)
		before := len(c.records())
		r.send("u", "1")
		waitEmpty(r, time.Hour)
		for i, a := range c.records() {
			if a.topic == "u" && i > before+11 { // one more is being handed over
				t.Errorf("the urgent record came as number %d, sent after %d", i, before)
			}
		}
		checkOrder(t, c.records(), map[string]int{"dev n": 500, "dev u": 1})
	})
}

// TestExpiredRecordsAreNotSent: they are counted, and announced as records that will not come.
func TestExpiredRecordsAreNotSent(t *testing.T) {
	inBubble(t, testConfig(nil, "cloud"), takeAll, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 10 {
			m := message.Message{Topic: "a", Payload: []byte(strconv.Itoa(i + 1)), Source: message.Source{Client: "dev"}}
			if i >= 5 {
				m.Expires = time.Now().Add(time.Minute)
			}
			if _, err := r.f.Ingest(m); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		c.setOffline(false)
		time.Sleep(3 * time.Second)
		checkOrder(t, c.records(), map[string]int{"dev a": 5})
		if e := r.entry("all", "cloud"); e.Places["expired"] != 5 || e.Places["delivered"] != 5 {
			t.Errorf("ledger: %v", e.Places)
		}
		requireGaps(t, c, gap(6, 10, "expired"))
	})
}

type gapJSON struct {
	Epoch  string      `json:"epoch"`
	Lane   string      `json:"lane"`
	Reason string      `json:"reason"`
	Count  uint64      `json:"count"`
	Ranges [][2]uint64 `json:"ranges"`
}

// gap is a report of one range in the normal lane.
func gap(from, to uint64, reason string) gapJSON {
	return gapJSON{Lane: "normal", Reason: reason, Count: to - from + 1, Ranges: [][2]uint64{{from, to}}}
}

// requireGaps wants what these reports say and nothing else. What expires or is evicted in pieces, or is found by two at a time, may be
// reported in pieces, so ranges that touch are one; a record that is reported twice is a fault.
func requireGaps(t *testing.T, c *fakeCloud, want ...gapJSON) {
	t.Helper()
	var got []gapJSON
	for _, a := range c.arrivals() {
		if a.topic != "tidegate/gw/uplink/cloud/gaps" {
			continue
		}
		var g gapJSON
		if err := json.Unmarshal([]byte(a.payload), &g); err != nil {
			t.Fatal(err)
		}
		if g.Epoch == "" || a.id.Seq != "" || a.msg.QoS != 1 {
			t.Errorf("report %s, identity %+v, QoS %d", a.payload, a.id, a.msg.QoS)
		}
		g.Epoch = ""
		count := uint64(0)
		for _, r := range g.Ranges {
			count += r[1] - r[0] + 1
			got = append(got, gap(r[0], r[1], g.Reason))
			got[len(got)-1].Lane = g.Lane
		}
		if count != g.Count {
			t.Errorf("report %s counts %d in its ranges", a.payload, count)
		}
	}
	got = joined(got)
	if len(got) != len(want) {
		t.Fatalf("got %d reports %+v, want %+v", len(got), got, want)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("report %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

// joined sorts reports of one range each and makes those that touch one.
func joined(reports []gapJSON) []gapJSON {
	slices.SortStableFunc(reports, func(a, b gapJSON) int {
		return cmp.Or(cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Ranges[0][0], b.Ranges[0][0]))
	})
	var out []gapJSON
	for _, g := range reports {
		if n := len(out); n > 0 {
			if last := &out[n-1]; last.Lane == g.Lane && last.Reason == g.Reason && last.Ranges[0][1]+1 == g.Ranges[0][0] {
				last.Ranges[0][1] = g.Ranges[0][1]
				last.Count += g.Count
				continue
			}
		}
		out = append(out, g)
	}
	return out
}

// TestGapReportsAreRetried: a report is sent again until acknowledged, and a cloud that does not want it still gets the
// records.
func TestGapReportsAreRetried(t *testing.T) {
	t.Run("link lost", func(t *testing.T) {
		failures := 3
		decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
			switch {
			case m.Topic == "bad":
				return act{err: refusedError(0x90)}
			case strings.HasPrefix(m.Topic, "tidegate/") && failures > 0:
				failures--
				return act{cut: true}
			}
			return ack
		}
		inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
			r.send("a", "1")
			r.send("bad", "")
			r.send("a", "2")
			time.Sleep(10 * time.Second)
			checkOrder(t, c.records(), map[string]int{"dev a": 2})
			requireGaps(t, c, gap(2, 2, "dead"))
		})
	})
	for name, no := range map[string]act{"refused": {err: refusedError(0x87)}, "closed": {cut: true, byPeer: true}} {
		t.Run(name, func(t *testing.T) {
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				switch {
				case m.Topic == "bad":
					return act{err: refusedError(0x90)}
				case strings.HasPrefix(m.Topic, "tidegate/"):
					return no
				}
				return act{take: true, delay: 20 * time.Millisecond}
			}
			inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
				r.send("bad", "")
				for i := range 300 {
					r.send("a", strconv.Itoa(i+1))
					time.Sleep(50 * time.Millisecond)
				}
				took := waitEmpty(r, time.Minute)
				checkOrder(t, c.records(), map[string]int{"dev a": 300})
				if e := r.entry("all", "cloud"); e.Places["dead"] != 1 {
					t.Errorf("ledger: %v", e.Places)
				}
				if r.f.Status()[0].LastError != "" {
					t.Errorf("an alarm because of a report: %s", r.f.Status()[0].LastError)
				}
				if c.links > 6 {
					t.Errorf("%d connections", c.links)
				}
				_ = took
			})
		})
	}
}

// TestStopWaitsForAcknowledgements: an orderly stop gives what is in flight a moment, so that less is sent twice.
func TestStopWaitsForAcknowledgements(t *testing.T) {
	for _, c := range []struct {
		delay time.Duration
		left  uint64
	}{{500 * time.Millisecond, 0}, {time.Minute, 20}} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			cloud := newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act { return act{take: true, delay: c.delay} })
			r := open(t, dir, testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}).start()
			for i := range 20 {
				r.send("a", strconv.Itoa(i+1))
			}
			time.Sleep(100 * time.Millisecond)
			start := time.Now()
			r.stop()
			if q := r.queued(); q != c.left {
				t.Errorf("delay %v: %d records left", c.delay, q)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("stopping took %v", took)
			}
			r.close()
		})
	}
}

func TestRunEndsWithAnUplinkThatEnds(t *testing.T) {
	r := open(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": newFakeCloud(takeAll)})
	defer r.close()
	r.f.outs[0].uplink = brokenUplink{r.f.outs[0].uplink}
	if err := r.f.Run(context.Background(), nil); !errors.Is(err, errFakeGone) {
		t.Errorf("Run: %v", err)
	}
}

type brokenUplink struct{ Uplink }

func (brokenUplink) Run(context.Context, message.Handler) error { return errFakeGone }

// TestEvictedWhileInFlight: a record is pushed out while its acknowledgement is on the way. It is counted once.
func TestEvictedWhileInFlight(t *testing.T) {
	cfg := testConfig(nil, "cloud")
	cfg.Uplinks["cloud"] = config.Uplink{Buffer: config.Buffer{MaxBytes: 20 << 10}}
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		if strings.HasPrefix(m.Topic, "bad") {
			return act{err: refusedError(0x90), delay: time.Second}
		}
		return act{take: true, delay: time.Second}
	}
	inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
		for i := range 100 {
			topic := "a"
			if i%7 == 3 {
				topic = "bad"
			}
			r.send(topic, strings.Repeat("x", 1000))
		}
		waitEmpty(r, time.Minute)
		e := r.entry("all", "cloud")
		if e.Places["evicted"] == 0 || e.Places["delivered"] == 0 || len(c.records()) <= int(e.Places["delivered"]) {
			t.Errorf("%d arrived, ledger %v", len(c.records()), e.Places)
		}
	})
}

// TestDeadLetterNeedsTheDisk: a refused record leaves its queue when its dead letter is on disk, and not before.
func TestDeadLetterNeedsTheDisk(t *testing.T) {
	disk := &badDisk{}
	cloud := newFakeCloud(func(*fakeCloud, int, message.Message, Identity) act {
		disk.failing.Store(true)
		return act{err: refusedError(0x90)}
	})
	r := openWith(t, t.TempDir(), testConfig(nil, "cloud"), map[string]*fakeCloud{"cloud": cloud}, buffer.Options{FS: disk})
	defer r.close()
	r.f.outs[0].drain.times.quotaMin = time.Millisecond
	r.send("a", "1")
	r.start()
	eventually(t, "the disk's failure is met", func() bool { return strings.Contains(r.f.Status()[0].LastError, "dead letter") })
	if e := r.entry("all", "cloud"); e.Places["dead"] != 0 || r.queued() != 1 {
		t.Errorf("%d records, ledger %v", r.queued(), e.Places)
	}
	cloud.mu.Lock()
	cloud.decide = func(*fakeCloud, int, message.Message, Identity) act { return act{err: refusedError(0x90)} }
	cloud.mu.Unlock()
	disk.failing.Store(false)
	eventually(t, "the record is a dead letter", func() bool { return r.queued() == 0 && r.unbalanced() == nil })
	if l, err := r.f.DeadLetters("cloud"); err != nil || len(l) != 1 {
		t.Errorf("%d dead letters, %v", len(l), err)
	}
}

// TestQuotaPerSecond: a cloud that takes ten messages a second gets nearly that, and the pauses do not grow.
func TestQuotaPerSecond(t *testing.T) {
	var second time.Time
	taken := 0
	decide := func(*fakeCloud, int, message.Message, Identity) act {
		if now := time.Now(); now.Sub(second) >= time.Second {
			second, taken = now, 0
		}
		if taken++; taken > 10 {
			return act{err: ErrQuota}
		}
		return ack
	}
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 300 {
			r.send("a", strconv.Itoa(i+1))
		}
		c.setOffline(false)
		if took := waitEmpty(r, time.Hour); took > 90*time.Second {
			t.Errorf("took %v, 30 s would be perfect", took)
		}
		checkOrder(t, c.records(), map[string]int{"dev a": 300})
	})
}

// TestOrderAfterRefusals: what was in flight behind a record that is refused for the moment comes before it, once. Each
// further try begins with that record alone, so a cloud that keeps refusing does not mix up the rest.
func TestOrderAfterRefusals(t *testing.T) {
	refusals, started := 0, false
	decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
		n, err := strconv.Atoi(string(m.Payload))
		if err != nil {
			return ack
		}
		if n == 1 {
			started = true
		}
		if started && refusals < 5 && n%50 == 1 {
			refusals++
			return act{err: ErrQuota, delay: 20 * time.Millisecond}
		}
		return act{take: true, delay: 20 * time.Millisecond}
	}
	inBubble(t, testConfig(nil, "cloud"), decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		c.mu.Lock()
		c.window = 10
		c.mu.Unlock()
		for i := range 100 {
			r.send("a", strconv.Itoa(i+1))
		}
		c.setOffline(false)
		waitEmpty(r, 10*time.Minute)
		var late int
		highest := 0
		for _, a := range c.records() {
			n, err := strconv.Atoi(a.payload)
			if err != nil {
				t.Fatal(err)
			}
			if n < highest {
				late++
			}
			highest = max(highest, n)
		}
		if late > 1 {
			t.Errorf("%d records came after a later one; want the first that was refused and no other", late)
		}
	})
}
