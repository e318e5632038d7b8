package forwarder

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/message"
)

func liveConfig() *config.Config {
	c := testConfig(nil, "cloud")
	u := c.Uplinks["cloud"]
	u.LiveFirst = true
	c.Uplinks["cloud"] = u
	return c
}

// server is a cloud that takes one message after the other, and answers each after a round trip.
type server struct {
	each, trip time.Duration

	mu    sync.Mutex
	free  time.Time
	first map[string]time.Time // first arrivals, by payload
}

func newServer(each, trip time.Duration) *server {
	return &server{each: each, trip: trip, first: map[string]time.Time{}}
}

func (v *server) decide(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if v.free.Before(now) {
		v.free = now
	}
	v.free = v.free.Add(v.each)
	at := v.free.Add(v.trip / 2)
	if _, ok := v.first[string(m.Payload)]; !ok {
		v.first[string(m.Payload)] = at
	}
	return act{take: true, delay: at.Add(v.trip / 2).Sub(now)}
}

// checkTwoOrders wants every number from 1 to n, and first arrivals that are two rising sequences.
func checkTwoOrders(t *testing.T, got []arrivalAt, n int) {
	t.Helper()
	seen := map[int]string{}
	var a, b int // the last of each, a the greater one
	for _, x := range got {
		i, err := strconv.Atoi(x.payload)
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := seen[i]; ok {
			if id != x.id.ID+x.id.Seq {
				t.Errorf("%d came again with another identity", i)
			}
			continue
		}
		seen[i] = x.id.ID + x.id.Seq
		switch {
		case i > a:
			a = i
		case i > b:
			b = i
		default:
			t.Fatalf("%d came behind %d and %d", i, a, b)
		}
	}
	if len(seen) != n || max(a, b) != n {
		t.Errorf("%d different messages up to %d, want %d", len(seen), max(a, b), n)
	}
}

// TestLiveFirst: while a backlog drains, fresh messages arrive within milliseconds, and the backlog keeps the line busy all the same.
func TestLiveFirst(t *testing.T) {
	for name, v := range map[string]struct {
		each, trip time.Duration
		window     int
		late       time.Duration // the most a fresh message may take from being stored to arrival
	}{
		"quick":     {20 * time.Microsecond, time.Millisecond, 8192, 25 * time.Millisecond},
		"slow":      {2 * time.Millisecond, time.Millisecond, 8192, 100 * time.Millisecond},
		"long line": {200 * time.Microsecond, 200 * time.Millisecond, 8192, 350 * time.Millisecond},
		"window 20": {100 * time.Microsecond, time.Millisecond, 20, 25 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			cloud := newServer(v.each, v.trip)
			inBubble(t, liveConfig(), cloud.decide, func(r *rig, c *fakeCloud) {
				c.setOffline(true)
				c.mu.Lock()
				c.window = v.window
				c.mu.Unlock()
				const backlog, fresh = 6000, 100
				for i := range backlog {
					r.send("a", strconv.Itoa(i+1))
				}
				time.Sleep(time.Minute)
				begin := time.Now()
				c.setOffline(false)
				time.Sleep(v.trip + 20*time.Millisecond)
				var worst time.Duration
				sent := map[string]time.Time{}
				for i := range fresh {
					p := strconv.Itoa(backlog + i + 1)
					sent[p] = time.Now()
					r.send("a", p)
					time.Sleep(10 * time.Millisecond)
				}
				waitEmpty(r, time.Hour)
				took := time.Since(begin)
				for p, at := range sent {
					cloud.mu.Lock()
					worst = max(worst, cloud.first[p].Sub(at))
					cloud.mu.Unlock()
				}
				if worst > v.late {
					t.Errorf("a fresh message took %v", worst)
				}
				if ideal := backlog*v.each + v.trip; took > 2*ideal+time.Duration(v.trip)*20+2*time.Second {
					t.Errorf("the backlog took %v, the cloud could have taken it in %v", took, ideal)
				}
				t.Logf("fresh messages took %v at the most; all of it %v", worst, took)
				checkTwoOrders(t, c.records(), backlog+fresh)
			})
		})
	}
}

// TestLiveFirstJumps: where more comes in than the cloud takes, what comes in is still sent while it is fresh, the rest follows, and
// nothing is lost or sent twice.
func TestLiveFirstJumps(t *testing.T) {
	cloud := newServer(10*time.Millisecond, time.Millisecond)
	inBubble(t, liveConfig(), cloud.decide, func(r *rig, c *fakeCloud) {
		const n = 4000
		sent := make([]time.Time, n+1)
		for i := 1; i <= n; i++ {
			sent[i] = time.Now()
			r.send("a", strconv.Itoa(i))
			time.Sleep(5 * time.Millisecond)
		}
		quick := 0
		cloud.mu.Lock()
		for i := 1; i <= n; i++ {
			if at, ok := cloud.first[strconv.Itoa(i)]; ok && at.Sub(sent[i]) < 2*liveAge {
				quick++
			}
		}
		cloud.mu.Unlock()
		if quick < n/3 {
			t.Errorf("only %d of %d were fresh when they arrived", quick, n)
		}
		waitEmpty(r, time.Hour)
		got := c.records()
		if len(got) != n {
			t.Errorf("%d arrivals of %d messages", len(got), n)
		}
		distinct := map[string]bool{}
		for _, a := range got {
			distinct[a.payload] = true
		}
		if len(distinct) != n {
			t.Errorf("%d of %d arrived", len(distinct), n)
		}
	})
}

// TestLiveFirstStarvesNobody: the backlog goes on where fresh messages alone would take all there is.
func TestLiveFirstStarvesNobody(t *testing.T) {
	cloud := newServer(10*time.Millisecond, time.Millisecond)
	inBubble(t, liveConfig(), cloud.decide, func(r *rig, c *fakeCloud) {
		c.setOffline(true)
		for i := range 100 {
			r.send("old", strconv.Itoa(i+1))
		}
		time.Sleep(time.Minute)
		c.setOffline(false)
		for i := range 4000 {
			r.send("new", strconv.Itoa(i+1))
			time.Sleep(5 * time.Millisecond)
		}
		old := 0
		for _, a := range c.records() {
			if a.topic == "old" {
				old++
			}
		}
		if old < 100 {
			t.Errorf("after 20 s %d of 100 old messages have arrived", old)
		}
		waitEmpty(r, time.Hour)
	})
}

// TestLiveFirstOverLostLinks: links that are lost in mid-drain, and refusals, cost nothing; the order holds within both tracks of a link.
func TestLiveFirstOverLostLinks(t *testing.T) {
	for name, batch := range map[string]*config.Batch{"single": nil, "batches": {MaxMessages: 20, MaxDelay: config.Duration(50 * time.Millisecond), MaxBytes: 64 << 10, Compress: "none", Topic: "b"}} {
		t.Run(name, func(t *testing.T) {
			cfg := liveConfig()
			u := cfg.Uplinks["cloud"]
			u.Batch = batch
			cfg.Uplinks["cloud"] = u
			count := 0
			decide := func(c *fakeCloud, _ int, m message.Message, id Identity) act {
				count++ // links send one after the other
				every := 97
				if batch != nil {
					every = 7
				}
				switch {
				case count%every == 0:
					return act{cut: true}
				case count%(3*every+1) == 0:
					return act{err: refusedError(0x97)}
				}
				return act{take: true, delay: 3 * time.Millisecond}
			}
			inBubble(t, cfg, decide, func(r *rig, c *fakeCloud) {
				c.setOffline(true)
				for i := range 1000 {
					r.send("a", strconv.Itoa(i+1))
				}
				c.setOffline(false)
				for i := range 200 {
					r.send("a", strconv.Itoa(1000+i+1))
					time.Sleep(7 * time.Millisecond)
				}
				waitEmpty(r, 24*time.Hour)
				if e := r.entry("all", "cloud"); e.Places["delivered"] != 1200 {
					t.Errorf("ledger: %v", e.Places)
				}
			})
		})
	}
}

// TestLiveFirstPoison: a record over which the peer closes the connection each time is found, behind a backlog and among fresh records.
func TestLiveFirstPoison(t *testing.T) {
	for _, poison := range []string{"50", "150"} {
		t.Run(poison, func(t *testing.T) {
			decide := func(_ *fakeCloud, _ int, m message.Message, _ Identity) act {
				if string(m.Payload) == poison {
					return act{cut: true, byPeer: true}
				}
				return act{take: true, delay: time.Millisecond}
			}
			inBubble(t, liveConfig(), decide, func(r *rig, c *fakeCloud) {
				c.setOffline(true)
				for i := range 100 {
					r.send("a", strconv.Itoa(i+1))
				}
				c.setOffline(false)
				time.Sleep(10 * time.Millisecond)
				for i := range 100 {
					r.send("a", strconv.Itoa(100+i+1))
				}
				waitEmpty(r, 24*time.Hour)
				if e := r.entry("all", "cloud"); e.Places["delivered"] != 199 || e.Places["dead"] != 1 {
					t.Errorf("ledger: %v", e.Places)
				}
			})
		})
	}
}

// TestLivePace finds a window that keeps a server busy and adds little to its answers, also after the line has changed.
func TestLivePace(t *testing.T) {
	now := time.Unix(0, 0)
	var p livePace
	// run lets a server take messages for a while and returns the mean time of an answer and how busy the server was.
	run := func(each, trip, length time.Duration) (mean time.Duration, busy float64) {
		type job struct{ sent, done time.Time }
		var flying []job
		free := now
		var sum, worked time.Duration
		n := 0
		for end := now.Add(length); now.Before(end); {
			for p.room() {
				start := now.Add(trip / 2)
				if free.After(start) {
					start = free
				}
				free = start.Add(each)
				worked += each
				flying = append(flying, job{now, free.Add(trip / 2)})
				p.sent()
			}
			j := flying[0]
			flying = flying[1:]
			now = j.done
			p.answered(j.done.Sub(j.sent), now)
			sum += j.done.Sub(j.sent)
			n++
		}
		for _, j := range flying {
			p.answered(0, j.done)
		}
		return sum / time.Duration(n), float64(worked) / float64(length)
	}
	for _, c := range []struct{ each, trip time.Duration }{
		{40 * time.Microsecond, 200 * time.Microsecond},
		{100 * time.Microsecond, 200 * time.Millisecond},
		{2 * time.Millisecond, 5 * time.Millisecond},
		{20 * time.Microsecond, time.Millisecond},
	} {
		p = newLivePace(0)
		run(c.each, c.trip, 30*time.Second) // finds it
		mean, busy := run(c.each, c.trip, 30*time.Second)
		if most := 2*(c.trip+c.each) + 2*queueing; mean > most || busy < 0.85 {
			t.Errorf("%v a message, round trip %v: answers took %v, want at most %v; busy %.2f, window %.0f", c.each, c.trip, mean, most, busy, p.window)
		}
		// The same window for a line that was slower, and one that was quicker.
		run(10*c.each, c.trip, time.Minute)
		run(c.each, c.trip, 2*time.Minute)
		again, busyAgain := run(c.each, c.trip, 30*time.Second)
		if again > 2*(c.trip+c.each)+2*queueing || busyAgain < 0.85 {
			t.Errorf("%v a message, round trip %v: after a change of the line answers took %v, busy %.2f", c.each, c.trip, again, busyAgain)
		}
		t.Logf("%v a message, round trip %v: answers took %v, busy %.2f, window %.0f", c.each, c.trip, mean, busy, p.window)
	}
}
