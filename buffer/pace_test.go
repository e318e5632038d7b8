package buffer

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPaceFindsTheWindow: a pause at the same number twice is the senders' window, any other an accident.
func TestPaceFindsTheWindow(t *testing.T) {
	p := pace{target: maxTarget}
	p.pause(300)
	p.pause(1000)
	if p.target != maxTarget {
		t.Errorf("target %d after two pauses at different numbers", p.target)
	}
	p.pause(990)
	if p.target != 495 {
		t.Errorf("target %d after pauses at 1000 and 990, want half of the last", p.target)
	}
	n := 0
	for ; p.target < 990; n++ {
		p.reached()
	}
	if n < 64 || n > 100 {
		t.Errorf("the target came back to the window in %d commits", n)
	}
	p.pause(990)
	if p.target != 495 {
		t.Errorf("target %d after the window was met again", p.target)
	}
	for range 1000 {
		p.reached()
	}
	if p.target != maxTarget {
		t.Errorf("target %d, want %d at the most", p.target, maxTarget)
	}
}

// slowDisk takes d for each fsync.
type slowDisk struct {
	*memFS
	d time.Duration
}

func (s slowDisk) Create(path string) (File, error) {
	f, err := s.memFS.Create(path)
	return slowFile{f, s.d}, err
}

func (s slowDisk) Open(path string, write bool) (File, error) {
	f, err := s.memFS.Open(path, write)
	return slowFile{f, s.d}, err
}

type slowFile struct {
	File
	d time.Duration
}

func (f slowFile) Sync() error {
	time.Sleep(f.d)
	return f.File.Sync()
}

// TestLoneRecordsAreNotDelayed: who sends one record at a time, or few, waits for the disk alone.
func TestLoneRecordsAreNotDelayed(t *testing.T) {
	const disk = 300 * time.Microsecond
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, "log", Options{FS: slowDisk{newMemFS(), disk}})
		q := queueOf(t, l, "q", QueueOptions{})
		put(t, l, Record{Queue: q, Data: []byte("first")}) // makes the segment
		for n := range 20 {
			recs := make([]Record, n+1)
			for i := range recs {
				recs[i] = Record{Queue: q, Data: []byte("x")}
			}
			start := time.Now()
			put(t, l, recs...)
			if took := time.Since(start); took != disk {
				t.Errorf("%d records took %v, want %v: that of the disk", len(recs), took, disk)
			}
		}
		_ = l.Close()
	})
}

// stream keeps a window of records on the way, one each every so often, and returns how many commits n of them took and how long.
func stream(t *testing.T, l *Log, m *memFS, q *Queue, n, window int, every time.Duration) (syncs int, took time.Duration) {
	t.Helper()
	start, before := time.Now(), m.syncCount()
	free := make(chan struct{}, window)
	for range n {
		free <- struct{}{}
		time.Sleep(every)
		p, err := l.Append(Record{Queue: q, Data: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		l.Notify(p, func(err error) {
			if err != nil {
				t.Error(err)
			}
			<-free
		})
	}
	for range window {
		free <- struct{}{}
	}
	return m.syncCount() - before, time.Since(start)
}

// TestStreamIsGathered: a quick disk is not asked for every handful of records of a stream, and the stream does not become slower.
func TestStreamIsGathered(t *testing.T) {
	for _, c := range []struct {
		name   string
		disk   time.Duration
		window int
		least  int // records of a commit
	}{
		{name: "wide window", disk: 200 * time.Microsecond, window: 4000, least: 400},
		{name: "narrow window", disk: 200 * time.Microsecond, window: 300, least: 130},
		{name: "slow disk", disk: 5 * time.Millisecond, window: 40_000, least: 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n, every = 40_000, 2 * time.Microsecond
				m := newMemFS()
				l := openLog(t, "log", Options{FS: slowDisk{m, c.disk}, SegmentBytes: 16 << 20})
				q := queueOf(t, l, "q", QueueOptions{})
				put(t, l, Record{Queue: q, Data: []byte("first")})
				syncs, took := stream(t, l, m, q, n, c.window, every)
				if got := n / syncs; got < c.least {
					t.Errorf("%d records for a commit, want %d or more", got, c.least)
				}
				if most := n*every + n*every/10 + 2*c.disk + 2*time.Millisecond; took > most {
					t.Errorf("the stream took %v, want %v at the most", took, most)
				}
				_ = l.Close()
			})
		})
	}
}
