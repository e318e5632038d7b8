package buffer

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testClock is a Clock that only moves when it is told to.
type testClock struct {
	mu    sync.Mutex
	boot  uint64
	since time.Duration
}

func (c *testClock) read() (uint64, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boot, c.since
}

func (c *testClock) pass(d time.Duration) {
	c.mu.Lock()
	c.since += d
	c.mu.Unlock()
}

// restart is a new start of the machine, since ago.
func (c *testClock) restart(boot uint64, since time.Duration) {
	c.mu.Lock()
	c.boot, c.since = boot, since
	c.mu.Unlock()
}

func TestMachineClock(t *testing.T) {
	boot, since := machineClock()()
	again, later := machineClock()()
	if boot == 0 || boot != again || since <= 0 || later < since {
		t.Errorf("boot %x and %x, since %v and %v", boot, again, since, later)
	}
}

func TestHeaderKeepsBoot(t *testing.T) {
	b := make([]byte, dataStart)
	want := segmentHeader{salt: 1, index: 2, boot: 0xfedcba9876543210, origin: -5, size: 4096}
	putSegmentHeader(b, want)
	if got, version := readSegmentHeader(b); version != formatVersion || got != want {
		t.Errorf("got %+v, version %d", got, version)
	}
}

// TestAge: a record ages with the machine, across restarts of the gateway and of the machine, whatever the wall clock says.
func TestAge(t *testing.T) {
	c := &testClock{boot: 1, since: time.Hour}
	m := newMemFS()
	open := func() (*Log, *Queue) {
		l := openLog(t, "log", Options{FS: m, Clock: c.read})
		return l, queueOf(t, l, "q", QueueOptions{})
	}
	l, q := open()
	put(t, l, Record{Queue: q, Data: []byte("x")})
	want := func(when string, age time.Duration) {
		t.Helper()
		var got []time.Duration
		if err := q.Scan(0, func(r Rec) bool { got = append(got, l.Age(&r)); return true }); err != nil || len(got) != 1 {
			t.Fatalf("%s: %d records: %v", when, len(got), err)
		}
		if got[0] != age {
			t.Errorf("%s: the record is %v old, want %v", when, got[0], age)
		}
		if s := q.Stats(); s.Oldest.Sub(time.Now().Add(-age)).Abs() > time.Minute {
			t.Errorf("%s: oldest record of %v, want one %v old", when, s.Oldest, age)
		}
	}
	want("at once", 0)
	c.pass(10 * time.Second)
	want("after ten seconds", 10*time.Second)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c.pass(20 * time.Second)
	l, q = open()
	want("after a restart of the gateway", 30*time.Second)
	put(t, l, Record{Queue: queueOf(t, l, "other", QueueOptions{}), Data: []byte("begins a segment")})
	c.pass(70 * time.Second)
	want("before the machine starts anew", 100*time.Second)

	// Killed: the last that is on disk is the other record, at 30 s.
	m = m.powerCut(func() bool { return false })
	_ = l.Close()
	c.restart(2, 5*time.Second)
	l, q = open()
	want("after a start of the machine", 35*time.Second)
	c.pass(time.Second)
	put(t, l, Record{Queue: queueOf(t, l, "other", QueueOptions{}), Data: []byte("again")})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c.pass(time.Minute)
	l, q = open()
	want("after a restart of the gateway in that", 96*time.Second)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	c.restart(0, time.Hour)
	l, q = open()
	want("where the start of the machine is not known", 36*time.Second) // the last that was written
}

// TestExpired: records leave when they expired though nobody reads them, what lives on stays, and a restart forgets none of it.
func TestExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &testClock{boot: 1, since: time.Hour}
		m := newMemFS()
		got := newCollector()
		open := func() (*Log, *Queue, *Queue) {
			l := openLog(t, "log", Options{FS: m, Clock: c.read})
			return l, queueOf(t, l, "dies", QueueOptions{OnDrop: got.onDrop}), queueOf(t, l, "lives", QueueOptions{OnDrop: got.onDrop})
		}
		l, dies, lives := open()
		fill := func(n int, life time.Duration) {
			for i := range n {
				put(t, l, Record{Queue: dies, Data: fmt.Appendf(nil, "d%d", i), Lifetime: life}, Record{Queue: lives, Data: []byte("l")})
			}
		}
		fill(10, time.Minute)
		c.pass(30 * time.Second)
		fill(10, 24*time.Hour) // far enough from the first to stand apart
		expect := func(when string, expired, left, living uint64) {
			t.Helper()
			time.Sleep(2 * expireEvery)
			synctest.Wait()
			if n := uint64(len(got.got[Expired]["dies"])); n != expired || dies.Stats().Records != left || lives.Stats().Records != living {
				t.Errorf("%s: %d expired, %d left, %d of the other queue, want %d, %d and %d", when, n, dies.Stats().Records,
					lives.Stats().Records, expired, left, living)
			}
		}
		expect("while all are young", 0, 20, 20)
		c.pass(30 * time.Second)
		expect("after the first ones' lifetime", 10, 10, 20)
		if n := dies.Stats().Expired; n != 10 {
			t.Errorf("%d counted as expired", n)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		c.pass(time.Hour)
		l, dies, lives = open()
		expect("after a restart", 10, 10, 20)
		var lifetimes []time.Duration
		if err := dies.Scan(0, func(r Rec) bool { lifetimes = append(lifetimes, r.Lifetime()); return true }); err != nil || len(lifetimes) != 10 {
			t.Fatalf("%d records: %v", len(lifetimes), err)
		}
		if lifetimes[0] != 24*time.Hour {
			t.Errorf("lifetime %v", lifetimes[0])
		}
		c.restart(2, 24*time.Hour)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, dies, lives = open()
		expect("when all have expired", 20, 0, 20)
		_ = l.Close()
	})
}

// TestMaxAge: what is older leaves, also what was stored before there was a maximum, and a larger one keeps it.
func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &testClock{boot: 1, since: time.Hour}
		m := newMemFS()
		got := newCollector()
		l := openLog(t, "log", Options{FS: m, Clock: c.read})
		q := queueOf(t, l, "q", QueueOptions{})
		for range 6 {
			put(t, l, Record{Queue: q, Data: []byte("q")})
			c.pass(10 * time.Minute)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, "log", Options{FS: m, Clock: c.read})
		put(t, l, Record{Queue: queueOf(t, l, "other", QueueOptions{}), Data: []byte("x")}, Record{Queue: queueOf(t, l, "q", QueueOptions{}), Data: []byte("q")})
		for _, step := range []struct {
			age  time.Duration
			left uint64
		}{{2 * time.Hour, 7}, {0, 7}, {40*time.Minute + time.Second, 5}, {time.Second, 1}} {
			q = queueOf(t, l, "q", QueueOptions{MaxAge: step.age, OnDrop: got.onDrop})
			time.Sleep(2 * expireEvery)
			if n := q.Stats().Records; n != step.left {
				t.Errorf("maximum age %v: %d records, want %d", step.age, n, step.left)
			}
		}
		_ = l.Close()
	})
}
