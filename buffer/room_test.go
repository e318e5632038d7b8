package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestDiskFull fills the disk: drop-oldest goes on with what there is, refuse refuses, and both heal when room returns.
func TestDiskFull(t *testing.T) {
	for _, policy := range []Policy{DropOldest, Refuse} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			m := newMemFS()
			m.setRoom(200 << 10)
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 10})
			q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<20, policy)})
			var last Seq
			refused := 0
			for i := range 1000 {
				recs := []Record{{Queue: q, Data: payload(i, 1000)}}
				p, err := l.Append(recs...)
				if err == nil {
					err = l.Wait(t.Context(), p)
				}
				if err != nil {
					if !errors.Is(err, ErrFull) && !errors.Is(err, ErrBusy) && !errors.Is(err, syscall.ENOSPC) {
						t.Fatal(err)
					}
					refused++
					time.Sleep(time.Millisecond)
					continue
				}
				last = recs[0].Seq
			}
			got := drain(t, q, 0)
			if got[last] == "" || len(got) < 60 {
				t.Fatalf("%d records are there, the last (%d): %v", len(got), last, got[last] != "")
			}
			if policy == DropOldest && refused > 100 || policy == Refuse && (refused < 500 || len(got)+refused != 1000) {
				t.Fatalf("%d refused, %d stored", refused, len(got))
			}
			// Draining makes room, or the operator does.
			if policy == Refuse {
				for seq := range got {
					q.Ack(seq)
				}
			} else {
				m.setRoom(0)
			}
			deadline := time.Now().Add(60 * time.Second)
			for {
				p, err := l.Append(Record{Queue: q, Data: make([]byte, 1000)})
				if err == nil && l.Wait(t.Context(), p) == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("still refused: %v", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// TestFullDiskEvictsForRoomOnly: where the backlog stands in the one segment that cannot be used again, a full disk costs none of it. Where
// there are others the oldest of them goes, and the operator is told once.
func TestFullDiskEvictsForRoomOnly(t *testing.T) {
	for _, segments := range []string{"1", "1234"} {
		t.Run(segments+" segments", func(t *testing.T) {
			m := newMemFS()
			var out safeBuffer
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 10, Logger: slog.New(slog.NewTextHandler(&out, nil))})
			c := newCollector()
			a := queueOf(t, l, "a", QueueOptions{Bound: l.NewBound(100<<20, DropOldest), OnDrop: c.onDrop})
			b := queueOf(t, l, "b", QueueOptions{Bound: l.NewBound(100<<20, DropOldest), OnDrop: c.onDrop})
			refuse := queueOf(t, l, "refuse", QueueOptions{Bound: l.NewBound(100<<20, Refuse), OnDrop: c.onDrop})
			m.setFault(func(op, path string) error {
				if op == "create" && (strings.Contains(path, spareSuffix) || !strings.ContainsAny(path[len(path)-5:len(path)-4], segments)) {
					return syscall.ENOSPC
				}
				return nil
			})
			if len(segments) == 1 {
				put(t, l, Record{Queue: refuse, Data: []byte("kept")})
			}
			var err error
			taken := 0
			for i := 0; err == nil && i < 300; i++ {
				var p Pos
				if p, err = l.Append(Record{Queue: a, Data: filled("a", 1000)}, Record{Queue: b, Data: filled("b", 10)}); err == nil {
					if err = l.Wait(t.Context(), p); err == nil {
						taken++
					}
				}
			}
			_ = l.Close() // it cannot write; nothing calls back from here on
			evicted := len(c.got[Evicted]["a"])
			if len(segments) == 1 {
				if taken < 20 || !errors.Is(err, ErrFailed) && !errors.Is(err, ErrFull) {
					t.Fatalf("%d taken, then %v", taken, err)
				}
				if evicted != 0 || int(a.Stats().Records) != taken || refuse.Stats().Records != 1 {
					t.Fatalf("%d of %d evicted for nothing", evicted, taken)
				}
				return
			}
			if evicted == 0 || evicted+int(a.Stats().Records) != 300 || a.Stats().Records < 40 {
				t.Fatalf("%d evicted, %d left: %v", evicted, a.Stats().Records, err)
			}
			if got := slices.Max(c.got[Evicted]["a"]); got > 270 {
				t.Fatalf("record %d of 300 was evicted", got)
			}
			if n := strings.Count(out.String(), "the oldest records are being evicted"); n < 1 || n > 2 || !strings.Contains(out.String(), "the disk has no room") {
				t.Fatalf("told %d times:\n%s", n, out.String())
			}
		})
	}
}

// safeBuffer takes what a logger writes from any goroutine.
type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestEvictionIsTold: one line when a bound begins to lose records, one when it has room again.
func TestEvictionIsTold(t *testing.T) {
	var out safeBuffer
	l := openLog(t, "/log", Options{FS: newMemFS(), Logger: slog.New(slog.NewTextHandler(&out, nil))})
	q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(64<<10, DropOldest)})
	for round := 1; round <= 2; round++ {
		for i := range 200 {
			put(t, l, Record{Queue: q, Data: payload(i, 1000)})
		}
		q.Purge()
		put(t, l, Record{Queue: q}, Record{Queue: q})
		put(t, l, Record{Queue: q})
		begun := strings.Count(out.String(), "the oldest records are being evicted")
		ended := strings.Count(out.String(), "no more records are evicted")
		if begun != round || ended != round || !strings.Contains(out.String(), "the bound is reached") {
			t.Fatalf("round %d:\n%s", round, out.String())
		}
	}
}

// TestNoRoomForSpare: while the disk has no room for a spare, what fits the active segment is taken, and what never fits is not told to
// be busy.
func TestNoRoomForSpare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l, err := Open("/log", Options{FS: m, SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		m.setFault(func(op, path string) error {
			if strings.Contains(path, spareSuffix) && op != "remove" {
				return syscall.ENOSPC
			}
			return nil
		})
		b := l.NewBound(8<<20, DropOldest)
		q := queueOf(t, l, "q", QueueOptions{Bound: b})
		put(t, l, Record{Queue: q, Data: []byte("first")})
		q.Ack(1)
		time.Sleep(time.Second)
		if !l.Stats().NoSpace {
			t.Fatal("a spare was made")
		}
		_, limit := b.Used()
		if _, err := l.Append(Record{Queue: q, Data: make([]byte, limit)}); !errors.Is(err, ErrFull) {
			t.Fatalf("append of %d bytes: %v", limit, err)
		}
		for i := range 100 {
			put(t, l, Record{Queue: q, Data: payload(i, 1000)})
		}
		if st := q.Stats(); st.Records != 100 || st.Evicted != 0 {
			t.Fatalf("%+v", st)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRoomReturns: soon after a full disk has room again appends are taken, and the bounds hold what they should.
func TestRoomReturns(t *testing.T) {
	for _, policy := range []Policy{DropOldest, Refuse} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemFS()
				l, err := Open("/log", Options{FS: m, SegmentBytes: 32 << 10, OnSync: func(time.Duration) { time.Sleep(time.Millisecond) }})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<20, policy)})
				add := func(i int) error {
					p, err := l.Append(Record{Queue: q, Data: payload(i, 1000)})
					if err == nil {
						err = l.Wait(t.Context(), p)
					}
					return err
				}
				if err := add(0); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				m.setFault(func(op, path string) error {
					if op == "create" || op == "write" && strings.Contains(path, tmpSuffix) {
						return syscall.ENOSPC
					}
					return nil
				})
				for i := range 400 {
					_ = add(i)
					time.Sleep(100 * time.Millisecond)
				}
				if !l.Stats().NoSpace {
					t.Fatal("the disk is not full")
				}
				m.setFault(nil)
				begin := time.Now()
				for err := add(0); err != nil || l.Stats().NoSpace; err = add(0) {
					if time.Since(begin) > time.Minute {
						t.Fatalf("after %s: %v", time.Since(begin), err)
					}
					time.Sleep(time.Second)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestSpareMadeMeanwhile: a spare that is made while the committer finds no room for a file of its own is room: bounds that refuse do not act
// as full for ever because of it.
func TestSpareMadeMeanwhile(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 64 << 10})
	q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<20, Refuse)})
	put(t, l, Record{Queue: q, Data: payload(0, 1000)})
	await(t, l, "a spare", func() bool { return len(l.spares) > 0 })

	var full atomic.Bool
	full.Store(true)
	begin := make(chan struct{})
	started := sync.OnceFunc(func() { close(begin) })
	m.mu.Lock()
	m.gate = func(op, path string) {
		switch {
		case !full.Load() || op != "create":
		case strings.Contains(path, spareSuffix):
			<-begin // the filler is late, and takes what room there is
		default:
			started()
			await(t, l, "the filler", func() bool { return len(l.spares) > 0 })
		}
	}
	m.fault = func(op, path string) error {
		if op == "create" && !strings.Contains(path, spareSuffix) && full.Swap(false) { // a smaller file has room then
			return syscall.ENOSPC
		}
		return nil
	}
	m.mu.Unlock()
	send := func() error {
		p, err := l.Append(Record{Queue: q, Data: payload(0, 1000)})
		if err == nil {
			err = l.Wait(t.Context(), p)
		}
		return err
	}
	for stored, deadline := 0, time.Now().Add(20*time.Second); stored < 300; { // of five segments
		if send() == nil {
			stored++
		} else if time.Sleep(5 * time.Millisecond); time.Now().After(deadline) {
			t.Fatalf("after %d records they are refused although there is a spare, and room", stored)
		}
	}
}
