package buffer

import (
	"fmt"
	"syscall"
	"testing"
)

// eviction follows how many records of a queue are evicted at once, and how few it holds after that.
type eviction struct {
	before, most, fewest uint64
}

func (e *eviction) look(q *Queue) {
	s := q.Stats()
	if s.Evicted > e.before {
		if e.fewest == 0 || s.Records < e.fewest {
			e.fewest = s.Records
		}
		e.most = max(e.most, s.Evicted-e.before)
	}
	e.before = s.Evicted
}

// TestFullDiskEvictsLittle: a disk on which not even one segment of the usual size has room is never emptied to make one.
func TestFullDiskEvictsLittle(t *testing.T) {
	const room = 6 << 20
	for _, segment := range []int64{256 << 10, 1 << 20, 4 << 20, 16 << 20} {
		t.Run(fmt.Sprint(segment>>10, " KiB"), func(t *testing.T) {
			m := newMemFS()
			m.setRoom(room)
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: segment})
			q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(1<<30, DropOldest)})
			var e eviction
			refused := 0
			for i := range 20000 {
				p, err := l.Append(Record{Queue: q, Data: payload(i, 1000)})
				if err == nil {
					err = l.Wait(t.Context(), p)
				}
				if err != nil {
					refused++
				}
				e.look(q)
			}
			t.Logf("%d evicted at once, %d left, %d refused", e.most, e.fewest, refused)
			// One segment may be the larger part of what fits; the others stay.
			if e.fewest < room/8/1000 || refused > 100 {
				t.Error("that is too few, or too many")
			}
		})
	}
}

// TestFilesRemovedInVain: where files that are removed give no room, as somebody else was quicker, small segments are not given up for nothing.
func TestFilesRemovedInVain(t *testing.T) {
	m := newMemFS()
	o := Options{FS: m, SegmentBytes: 256 << 10}
	for start := range 25 {
		l := openLog(t, "/log", o)
		q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<20, DropOldest)})
		for i := range 20 {
			put(t, l, Record{Queue: q, Data: payload(100*start+i, 1000)})
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := openLog(t, "/log", o)
	q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<20, DropOldest)})
	put(t, l, Record{Queue: q, Data: []byte("first")})
	await(t, l, "a spare", func() bool { return len(l.spares) > 0 })
	m.setFault(func(op, _ string) error {
		if op == "create" {
			return syscall.ENOSPC
		}
		return nil
	})
	var e eviction
	for i := range 700 {
		put(t, l, Record{Queue: q, Data: payload(i, 1000)})
		e.look(q)
	}
	if e.before == 0 || e.most > 200 || e.before > 500 {
		t.Errorf("%d were evicted, %d at once", e.before, e.most)
	}
}

// TestSpareThatIsTooSmall: on a full disk a spare that cannot take what a segment begins with, as there are very many queues, is in nobody's way.
func TestSpareThatIsTooSmall(t *testing.T) {
	m := newMemFS()
	m.setRoom(1500 << 10)
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 10})
	backlog := queueOf(t, l, "backlog", QueueOptions{Bound: l.NewBound(100<<20, DropOldest)})
	var states []*Queue
	for i := range 300 {
		states = append(states, queueOf(t, l, fmt.Sprint("state ", i), QueueOptions{}))
	}
	refused := 0
	for i := range 5000 {
		recs := []Record{{Queue: backlog, Data: payload(i, 1000)}}
		if i%5 == 0 {
			recs = append(recs, Record{Queue: states[i%len(states)], Data: payload(i, 50)})
		}
		p, err := l.Append(recs...)
		if err == nil {
			err = l.Wait(t.Context(), p)
		}
		if err != nil {
			refused++
		}
	}
	if refused > 100 {
		t.Errorf("%d of 5000 refused", refused)
	}
}
