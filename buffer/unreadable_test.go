package buffer

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestUnreadableForAMoment: a disk that cannot be read for a while, or a folder that is away, costs no records; the alarm stands as long.
func TestUnreadableForAMoment(t *testing.T) {
	for op, fault := range map[string]error{"read": syscall.EIO, "open": syscall.ENOENT} {
		t.Run(op, func(t *testing.T) {
			m := newMemFS()
			var alarms []error
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 10, OnAlarm: func(err error) { alarms = append(alarms, err) }})
			c := newCollector()
			q := queueOf(t, l, "q", QueueOptions{OnDrop: c.onDrop})
			for i := range 200 {
				put(t, l, Record{Queue: q, Data: payload(i, 1000)})
			}
			if got := drain(t, q, 0); len(got) != 200 {
				t.Fatalf("%d records", len(got))
			}
			m.setFault(func(o, path string) error {
				if o == op && strings.HasSuffix(path, segmentSuffix) {
					return fault
				}
				return nil
			})
			var b Batch
			for range 10 {
				if err := q.Next(t.Context(), 0, &b); !errors.Is(err, fault) {
					t.Fatalf("next: %v", err)
				}
				if err := q.Scan(0, func(Rec) bool { return true }); !errors.Is(err, fault) {
					t.Fatalf("scan: %v", err)
				}
			}
			if st := l.Stats(); !errors.Is(st.LastError, fault) || st.Alarms != 1 {
				t.Fatalf("stats %+v", st)
			}
			m.setFault(nil)
			if got := drain(t, q, 0); len(got) != 200 || len(c.got) != 0 {
				t.Fatalf("%d of 200 records after the disk came back, told of %v", len(got), c.got)
			}
			if st := l.Stats(); st.LastError != nil || st.Damaged != 0 {
				t.Fatalf("stats %+v", st)
			}
			if len(alarms) != 2 || !errors.Is(alarms[0], fault) || alarms[1] != nil {
				t.Fatalf("alarms %v", alarms)
			}
		})
	}
}

// TestBadPage: a page that cannot be read for long does not keep the records behind it for ever, if the disk works otherwise; the file stays.
func TestBadPage(t *testing.T) {
	for _, works := range []bool{true, false} {
		t.Run(fmt.Sprintf("works %v", works), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemFS()
				l, err := Open("/log", Options{FS: m, SegmentBytes: 32 << 10})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				c := newCollector()
				q := queueOf(t, l, "q", QueueOptions{OnDrop: c.onDrop})
				other := queueOf(t, l, "other", QueueOptions{})
				for i := range 100 {
					put(t, l, Record{Queue: q, Data: payload(i, 1000)})
				}
				bad := firstSegment(m)
				m.setFault(func(op, path string) error {
					if op == "read" && path == bad {
						return syscall.EIO
					}
					return nil
				})
				begin := time.Now()
				var b Batch
				for err = q.Next(t.Context(), 0, &b); err != nil && time.Since(begin) < time.Hour; err = q.Next(t.Context(), 0, &b) {
					if works {
						put(t, l, Record{Queue: other, Data: []byte("x")})
						other.Purge()
					}
					time.Sleep(time.Second)
				}
				took := time.Since(begin)
				if !works {
					if err == nil || len(c.got) != 0 {
						t.Fatalf("next: %v, told of %v", err, c.got)
					}
				} else if lost := len(c.got[Damaged]["q"]); err != nil || took < stallTime || lost == 0 || lost > 35 || b.Recs[0].Seq != Seq(lost+1) {
					t.Fatalf("next: %v after %s, %d records lost", err, took, lost)
				}
				q.Purge()
				time.Sleep(time.Minute)
				m.mu.Lock()
				kept := m.names[bad] != nil
				m.mu.Unlock()
				if works && !kept {
					t.Fatal("the file of which a part could not be read was taken away")
				}
				m.setFault(nil)
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestUnreadableAtStart: reads that fail while the log is opened, wherever, cost nothing: it waits, or does not open.
func TestUnreadableAtStart(t *testing.T) {
	for skip := range 12 {
		for _, length := range []int{1, 100} {
			synctest.Test(t, func(t *testing.T) {
				m, want := bigSample(t, 100, false)
				n := 0
				m.setFault(func(op, path string) error {
					if op == "read" && strings.HasSuffix(path, segmentSuffix) {
						if n++; n > skip && n <= skip+length {
							return syscall.EIO
						}
					}
					return nil
				})
				l, err := Open("/log", Options{FS: m, SegmentBytes: 64 << 10, QuarantineBytes: 16 << 10})
				m.setFault(nil)
				if err == nil {
					err = l.Close()
				} else if length == 1 || !errors.Is(err, syscall.EIO) {
					t.Fatalf("open: %v", err)
				}
				found, damaged := readAll(t, m, want)
				if lost := lostOf(want, found); lost != 0 || damaged != 0 {
					t.Fatalf("%d reads fail behind %d: %d records lost (%v)", length, skip, lost, err)
				}
			})
		}
	}
}

// TestUnreadableWhileLooking: what is opened for reading only shows what can be read.
func TestUnreadableWhileLooking(t *testing.T) {
	m, want := bigSample(t, 150, false)
	bad := firstSegment(m)
	m.setFault(func(op, path string) error {
		if op == "read" && path == bad {
			return syscall.EIO
		}
		return nil
	})
	l, err := OpenReadOnly("/log", Options{FS: m})
	if err != nil {
		t.Fatal(err)
	}
	found := map[Seq]string{}
	if err := l.Lookup("a").Scan(0, func(r Rec) bool {
		found[r.Seq] = string(r.Data)
		return true
	}); err != nil || len(found) == 0 || len(found) == len(want["a"]) {
		t.Fatalf("scan: %v, %d records", err, len(found))
	}
	if r, err := l.Verify(); err != nil || len(r.Damage) == 0 {
		t.Fatalf("verify: %v, %+v", err, r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.setFault(nil)
	if found, _ := readAll(t, m, want); lostOf(want, found) != 0 {
		t.Fatal("looking changed something")
	}
}

// TestSuspectIsMovedLater: a segment whose fsync failed and that cannot be read is moved when it can be.
func TestSuspectIsMovedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l, err := Open("/log", Options{FS: m})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		q := queueOf(t, l, "q", QueueOptions{})
		put(t, l, Record{Queue: q, Data: []byte("before")})
		synced := false
		m.setFault(func(op, path string) error {
			if op == "sync" && strings.HasSuffix(path, segmentSuffix) && !synced {
				synced = true
				return syscall.EIO
			}
			if op == "read" {
				return syscall.EIO
			}
			return nil
		})
		put(t, l, Record{Queue: q, Data: []byte("while")})
		time.Sleep(time.Second)
		moved := l.Stats().RelocatedBytes
		m.setFault(nil)
		time.Sleep(time.Minute)
		if l.Stats().RelocatedBytes == moved {
			t.Fatal("the suspect segment was not moved")
		}
		if got := drain(t, q, 0); len(got) != 2 {
			t.Fatalf("%d records", len(got))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSpareIsNotForgotten: when a spare cannot become a segment, its file does not stay behind.
func TestSpareIsNotForgotten(t *testing.T) {
	for _, op := range []string{"rename", "syncdir", "open"} {
		m := newMemFS()
		l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
		q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(64<<10, DropOldest)})
		armed := false
		m.setFault(func(o, path string) error {
			if armed && o == op && (o == "syncdir" || strings.HasSuffix(path, spareSuffix) || o == "open") {
				armed = false
				return syscall.EIO
			}
			return nil
		})
		for i := range 300 {
			if i%20 == 0 {
				m.mu.Lock()
				armed = true
				m.mu.Unlock()
			}
			if p, err := l.Append(Record{Queue: q, Data: payload(i, 300)}); err == nil {
				_ = l.Wait(t.Context(), p)
			}
		}
		m.setFault(nil)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		known := len(l.segments) + len(l.spares)
		l.mu.Unlock()
		if files := len(segmentFiles(m)) + countSpares(m); files != known {
			t.Fatalf("%s: %d files, %d are known", op, files, known)
		}
	}
}

func countSpares(m *memFS) int {
	n := 0
	for path := range m.names {
		if strings.HasSuffix(path, spareSuffix) {
			n++
		}
	}
	return n
}
