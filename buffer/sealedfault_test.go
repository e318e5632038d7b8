package buffer

import (
	"bytes"
	"fmt"
	"maps"
	"syscall"
	"testing"
	"time"
)

// TestLockedBlocksNoSuspect: a segment whose fsync failed is written again, also where records of an uplink that is not configured any more
// stand in it and cannot be read.
func TestLockedBlocksNoSuspect(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprint("sealed ", sealed), func(t *testing.T) {
			m := newMemFS()
			keys := map[string][]Key{"orphan": nil, "q": nil}
			if sealed {
				keys["orphan"] = []Key{testKey(t, 1)}
			}
			o := Options{FS: m, SegmentBytes: 64 << 10, Keys: func(q string) ([]Key, bool) { k, ok := keys[q]; return k, ok }}
			l := openLog(t, "/log", o)
			orphan, q := queueOf(t, l, "orphan", QueueOptions{}), queueOf(t, l, "q", QueueOptions{})
			for i := range 20 {
				put(t, l, Record{Queue: orphan, Data: []byte("o")}, Record{Queue: q, Data: fmt.Appendf(nil, "%d", i)})
			}
			// One fsync fails; the batch goes to a new segment; then the process is killed before it could move the rest.
			failed := false
			m.setFault(func(op, _ string) error {
				if op == "read" {
					return syscall.EIO // nothing can be moved yet
				}
				if op == "sync" && !failed {
					failed = true
					return syscall.EIO
				}
				return nil
			})
			put(t, l, Record{Queue: q, Data: []byte("20")})
			m.setFault(nil)
			m = m.kill()
			_ = l.Close()
			delete(keys, "orphan")
			o.FS = m
			l = openLog(t, "/log", o)
			q = queueOf(t, l, "q", QueueOptions{})
			put(t, l, Record{Queue: q, Data: []byte("21")})
			left := uint64(0)
			for range 100 {
				time.Sleep(20 * time.Millisecond)
				l.mu.Lock()
				left = 0
				for _, e := range q.extents {
					if e.seg.suspect {
						left += e.live
					}
				}
				l.mu.Unlock()
				if left == 0 {
					break
				}
			}
			if left > 0 {
				t.Errorf("%d records of q, which were acknowledged, still stand in the segment whose fsync failed", left)
			}
		})
	}
}

// TestLockedEpoch: records that are purged without their key are reported under their own epoch, as the index names it.
func TestLockedEpoch(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		m := newMemFS()
		var keys []Key
		if sealed {
			keys = []Key{testKey(t, 1)}
		}
		o := Options{FS: m, SegmentBytes: 8 << 10, Sync: time.Millisecond, Keys: keysFor(keys...)}
		l := openLog(t, "/log", o)
		a := queueOf(t, l, "a", QueueOptions{})
		first := l.Epoch()
		for range 5 {
			put(t, l, Record{Queue: a, Data: []byte("x")})
		}
		m = m.kill()
		_ = l.Close()
		o.FS = m
		l = openLog(t, "/log", o)
		if l.Epoch() == first {
			t.Fatal("the epoch is the same")
		}
		q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(16<<10, DropOldest)})
		for n := 0; n < 500 || l.Stats().RelocatedBytes == 0; n++ {
			if n == 50000 {
				t.Fatal("nothing was moved")
			}
			put(t, l, Record{Queue: q, Data: make([]byte, 300)})
		}
		_ = l.Close()
		o.Keys = nil
		l = openLog(t, "/log", o)
		var got []uint64
		a = queueOf(t, l, "a", QueueOptions{OnDrop: func(_ *Queue, _ Reason, recs []Rec) {
			for _, r := range recs {
				got = append(got, r.Epoch)
			}
		}})
		a.Purge()
		for _, e := range got {
			if e != first {
				t.Errorf("sealed %v: a record of epoch %d was reported under epoch %d", sealed, first, e)
				break
			}
		}
		if len(got) != 5 {
			t.Errorf("%d reported", len(got))
		}
	}
}

// TestStalePlaintext: after encryption was switched on and every plain record is gone, nothing readable is on disk.
func TestStalePlaintext(t *testing.T) {
	m := newMemFS()
	o := Options{FS: m, SegmentBytes: 16 << 10}
	l := openLog(t, "/log", o)
	q := queueOf(t, l, "q", QueueOptions{})
	for i := range 300 {
		put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "SECRET %100d", i)})
	}
	_ = l.Close()
	o.Keys = keysFor(testKey(t, 1))
	l = openLog(t, "/log", o)
	q = queueOf(t, l, "q", QueueOptions{})
	for seq := Seq(1); seq <= 300; seq++ {
		q.Ack(seq)
	}
	readable := func() (n int) {
		for _, b := range contents(m) {
			n += bytes.Count(b, []byte("SECRET"))
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); readable() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d records still stand on disk as they came", readable())
		}
		put(t, l, Record{Queue: q, Data: []byte("SECRET")})
		q.Ack(q.Stored())
	}
}

// TestWrongKeyTouchesNothing: a wrong key leaves the disk as it is, also where other things in the folder are not clean.
func TestWrongKeyTouchesNothing(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, Keys: keysFor(testKey(t, 1))})
	q := queueOf(t, l, "q", QueueOptions{})
	for i := range 100 {
		put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "%100d", i)})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// A second segment lost its headers, and a spare was not finished.
	var names []string
	for n := range contents(m) {
		names = append(names, n)
	}
	m.mu.Lock()
	for _, n := range names {
		if n == "/log/0000000000000002.seg" {
			for i := range m.names[n].data {
				if i < dataStart || i >= len(m.names[n].data)-tailLen {
					m.names[n].data[i] = 0xff
				}
			}
		}
	}
	m.mu.Unlock()
	f, err := m.Create("/log/0000000000000009.spare.tmp")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt(make([]byte, 100), 0)
	before := contents(m)
	if _, err := Open("/log", Options{FS: m, Keys: keysFor(testKey(t, 2))}); err == nil {
		t.Fatal("opened")
	} else {
		t.Log(err)
	}
	after := contents(m)
	if !maps.EqualFunc(before, after, bytes.Equal) {
		for n := range before {
			if after[n] == nil {
				t.Errorf("%s is gone", n)
			}
		}
		for n := range after {
			if before[n] == nil {
				t.Errorf("%s is new", n)
			}
		}
	}
}
