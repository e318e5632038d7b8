package buffer

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestExpiryWaitsForAnOwner: what expired while no process ran is given up only when somebody can be told.
func TestExpiryWaitsForAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &testClock{boot: 1, since: time.Hour}
		o := Options{FS: newMemFS(), Clock: c.read}
		l := openLog(t, "log", o)
		q := queueOf(t, l, "q", QueueOptions{})
		for range 10 {
			put(t, l, Record{Queue: q, Data: []byte("x"), Lifetime: time.Minute})
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		c.pass(time.Hour)
		l = openLog(t, "log", o)
		time.Sleep(3 * expireEvery)
		if s := l.Lookup("q").Stats(); s.Records != 10 || s.Expired != 0 {
			t.Errorf("without an owner: %d records, %d expired", s.Records, s.Expired)
		}
		got := newCollector()
		queueOf(t, l, "q", QueueOptions{OnDrop: got.onDrop})
		time.Sleep(3 * expireEvery)
		synctest.Wait()
		if n := len(got.got[Expired]["q"]); n != 10 {
			t.Errorf("the owner heard of %d records, want 10", n)
		}
		_ = l.Close()
	})
}

// TestUptimeCountsOnce: a process that recovers a log and writes nothing leaves no time of its own in a segment of another start.
func TestUptimeCountsOnce(t *testing.T) {
	c := &testClock{boot: 1, since: time.Hour}
	m := newMemFS()
	l := openLog(t, "log", Options{FS: m, Clock: c.read})
	put(t, l, Record{Queue: queueOf(t, l, "q", QueueOptions{}), Data: []byte("x")})
	m = m.powerCut(func() bool { return false })
	_ = l.Close()
	up := 20 * 24 * time.Hour
	c.restart(2, up)
	for range 3 {
		l = openLog(t, "log", Options{FS: m, Clock: c.read})
		if err := queueOf(t, l, "q", QueueOptions{}).Scan(0, func(r Rec) bool {
			if age := l.Age(&r); age != up {
				t.Errorf("the record is %v old, the machine has been up for %v", age, up)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		c.pass(time.Minute)
		up += time.Minute
	}
}

// TestYoungBehindASlowDisk: a record is as old as itself, not as the frame that gathers behind a disk that stands still.
func TestYoungBehindASlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &testClock{boot: 1, since: time.Hour}
		disk := slowDisk{newMemFS(), time.Minute}
		l := openLog(t, "log", Options{FS: disk, Clock: c.read})
		q := queueOf(t, l, "q", QueueOptions{})
		var last Pos
		for range 4 { // the first is being synced, the others gather
			p, err := l.Append(Record{Queue: q, Data: []byte("x"), Lifetime: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			c.pass(5 * time.Second)
			last = p
		}
		if err := l.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		want := 20 * time.Second
		if err := q.Scan(0, func(r Rec) bool {
			if age := l.Age(&r); age != want {
				t.Errorf("record %d is %v old, want %v", r.Seq, age, want)
			}
			want -= 5 * time.Second
			return true
		}); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	})
}

// TestMixedLifetimes: records that live long, or for ever, do not keep those that do not.
func TestMixedLifetimes(t *testing.T) {
	for _, other := range []time.Duration{0, 24 * time.Hour, 3 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			c := &testClock{boot: 1, since: time.Hour}
			l := openLog(t, "log", Options{FS: newMemFS(), Clock: c.read})
			q := queueOf(t, l, "q", QueueOptions{})
			brief := 0
			for i := range 720 { // two hours
				life := other
				if i%24 > 0 {
					life = time.Minute
					brief++
				}
				put(t, l, Record{Queue: q, Data: []byte("x"), Lifetime: life})
				c.pass(10 * time.Second)
			}
			time.Sleep(3 * expireEvery)
			if s := q.Stats(); s.Expired < uint64(brief)*9/10 || s.Expired > uint64(brief) {
				t.Errorf("beside records of %v: %d of %d that live a minute have expired", other, s.Expired, brief)
			}
			_ = l.Close()
		})
	}
}

// slowReads takes d for each reading of a file.
type slowReads struct {
	slowDisk
	d *time.Duration
}

func (s slowReads) Open(path string, readOnly bool) (File, error) {
	f, err := s.slowDisk.Open(path, readOnly)
	return slowReader{f, s.d}, err
}

func (s slowReads) Create(path string) (File, error) {
	f, err := s.slowDisk.Create(path)
	return slowReader{f, s.d}, err
}

type slowReader struct {
	File
	d *time.Duration
}

func (f slowReader) ReadAt(b []byte, off int64) (int, error) {
	time.Sleep(*f.d)
	return f.File.ReadAt(b, off)
}

// TestExpiryHoldsNobodyUp: while a large backlog is given up from a slow disk, commits go on and Close does not wait for it.
func TestExpiryHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &testClock{boot: 1, since: time.Hour}
		var reading time.Duration
		l := openLog(t, "log", Options{FS: slowReads{slowDisk{newMemFS(), 0}, &reading}, Clock: c.read, SegmentBytes: 4 << 20})
		got := newCollector()
		q := queueOf(t, l, "q", QueueOptions{OnDrop: got.onDrop})
		other := queueOf(t, l, "other", QueueOptions{})
		const n = 400
		for range n {
			put(t, l, Record{Queue: q, Data: make([]byte, 64<<10), Lifetime: time.Minute})
		}
		reading = 100 * time.Millisecond // a few MiB a second
		c.pass(time.Hour)
		time.Sleep(expireEvery + 500*time.Millisecond)
		var worst time.Duration
		for range 5 {
			start := time.Now()
			p, err := l.Append(Record{Queue: other, Data: make([]byte, 64<<10)})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Wait(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(start))
		}
		if worst > 2*time.Second {
			t.Errorf("a commit took %v", worst)
		}
		some := q.Stats().Expired
		if some == 0 || some == n {
			t.Errorf("%d of %d have expired meanwhile", some, n)
		}
		start := time.Now()
		l.StopExpiring()
		stopped := len(got.got[Expired]["q"])
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("closing took %v", took)
		}
		if now := len(got.got[Expired]["q"]); now != stopped {
			t.Errorf("%d records were given up after that was stopped", now-stopped)
		}
		if _, err := l.Append(Record{Queue: other}); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
