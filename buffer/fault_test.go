package buffer

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// failOp lets an operation fail n times.
func failOp(op string, n int, err error) func(string, string) error {
	return func(o, _ string) error {
		if o == op && n > 0 {
			n--
			return err
		}
		return nil
	}
}

// TestFailedSyncIsNeverDurable: after one failed fsync the frame goes to another file, which alone makes it durable.
func TestFailedSyncIsNeverDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		var alarms []error
		l := openLog(t, "/log", Options{FS: m, OnAlarm: func(err error) { alarms = append(alarms, err) }})
		q := queueOf(t, l, "q", QueueOptions{})
		put(t, l, Record{Queue: q, Data: []byte("before")})
		first := l.Stats().Segments
		synctest.Wait() // the spare is made: its fsync is not the one to fail
		m.setFault(failOp("sync", 1, syscall.EIO))
		put(t, l, Record{Queue: q, Data: []byte("while")})
		m.setFault(nil)
		put(t, l, Record{Queue: q, Data: []byte("after")})
		if len(alarms) == 0 || !errors.Is(alarms[0], syscall.EIO) || l.Stats().Alarms != 1 {
			t.Fatalf("alarms %v, stats %+v", alarms, l.Stats())
		}
		if l.Stats().Segments == first && l.Stats().RelocatedBytes == 0 {
			t.Fatal("the file whose fsync failed is still used")
		}
		// The kernel dropped what it could not write.
		c := m.powerCut(func() bool { return false })
		_ = l.Close()
		l = openLog(t, "/log", Options{FS: c})
		got := drain(t, queueOf(t, l, "q", QueueOptions{}), 0)
		if len(got) != 3 || got[1] != "before" || got[2] != "while" || got[3] != "after" {
			t.Fatalf("after the power cut: %v", got)
		}
		_ = l.Close()
	})
}

// TestDeadDisk: nothing becomes durable, everybody who waits is told, appends are refused with the cause, and it heals.
func TestDeadDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		var mu sync.Mutex
		var alarms []error
		failed := 0
		l, err := Open("/log", Options{FS: m, OnAlarm: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			alarms = append(alarms, err)
		}})
		if err != nil {
			t.Fatal(err)
		}
		q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(1<<20, Refuse), OnDrop: func(_ *Queue, why Reason, recs []Rec) {
			if why == Failed {
				failed += len(recs)
				if recs[0].Epoch == 0 {
					t.Error("the failed record has no epoch")
				}
			}
		}})
		put(t, l, Record{Queue: q, Data: []byte("before")})
		m.setFault(failOp("sync", 1<<30, syscall.EIO))
		p, err := l.Append(Record{Queue: q, Data: []byte("lost")})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Wait(t.Context(), p); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("wait: %v", err)
		}
		if l.Durable(p) {
			t.Fatal("durable on a dead disk")
		}
		if _, err := l.Append(Record{Queue: q, Data: []byte("refused")}); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("append: %v", err)
		}
		if l.Stats().LastError == nil {
			t.Fatal("stats say all is well")
		}
		time.Sleep(time.Minute)
		m.setFault(nil)
		time.Sleep(time.Minute)
		put(t, l, Record{Queue: q, Data: []byte("after")})
		if l.Durable(p) {
			t.Fatal("a failed record became durable when the disk healed")
		}
		if settled, err := l.Settled(p); !settled || !errors.Is(err, ErrFailed) {
			t.Fatalf("the failed record: %v, %v", settled, err)
		}
		for at, want := range map[Pos]bool{p - 1: true, p + 1: true, p + 2: false} {
			if settled, err := l.Settled(at); settled != want || err != nil {
				t.Fatalf("position %d, %d failed: %v, %v", at, p, settled, err)
			}
		}
		called := false
		l.Notify(p, func(err error) { called = errors.Is(err, ErrFailed) })
		if !called {
			t.Fatal("a late Notify for a failed record")
		}
		if l.Stats().LastError != nil || failed != 1 || q.Stats().Failed != 1 {
			t.Fatalf("%d failed, stats %+v", failed, l.Stats())
		}
		if got := drain(t, q, 0); got[1] != "before" || got[3] != "after" || len(got) != 2 {
			t.Fatalf("read %v", got)
		}
		if used, _ := q.bound.Used(); used != q.Stats().Bytes || used < 100 || used > 1000 {
			t.Fatalf("%d bytes are charged", used)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := len(alarms); n < 2 || alarms[0] == nil || alarms[n-1] != nil {
			t.Fatalf("alarms %v", alarms)
		}
	})
}

// TestDelayedSync: with an interval a record counts as durable when written, and the fsync follows in time.
func TestDelayedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l, err := Open("/log", Options{FS: m, Sync: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		q := queueOf(t, l, "q", QueueOptions{})
		put(t, l, Record{Queue: q, Data: []byte("one")})
		synctest.Wait()
		before := m.syncCount()
		for range 10 {
			put(t, l, Record{Queue: q, Data: []byte("more")})
			time.Sleep(50 * time.Millisecond)
		}
		if n := m.syncCount() - before; n != 0 {
			t.Fatalf("%d fsyncs within half a second", n)
		}
		time.Sleep(time.Second)
		if m.syncCount() == before {
			t.Fatal("no fsync after more than a second")
		}
		epoch := l.Epoch()
		c := m.powerCut(func() bool { return false })
		_ = l.Close()
		l, err = Open("/log", Options{FS: c})
		if err != nil {
			t.Fatal(err)
		}
		if got := drain(t, queueOf(t, l, "q", QueueOptions{}), 0); len(got) != 11 {
			t.Fatalf("%d records after the power cut", len(got))
		}
		if l.Epoch() == epoch {
			t.Fatal("records may have been read that are lost now: the epoch must change")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCursorIsSavedWhenIdle: an acknowledgement reaches the disk within a second though nothing else is written, without fsync.
func TestCursorIsSavedWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l, err := Open("/log", Options{FS: m})
		if err != nil {
			t.Fatal(err)
		}
		q := queueOf(t, l, "q", QueueOptions{})
		for range 10 {
			put(t, l, Record{Queue: q, Data: []byte("x")})
		}
		synctest.Wait()
		syncs := m.syncCount()
		q.Ack(1, 2, 3, 7)
		time.Sleep(1100 * time.Millisecond)
		if m.syncCount() != syncs {
			t.Fatal("an fsync for a cursor")
		}
		c := m.kill()
		_ = l.Close()
		l, err = Open("/log", Options{FS: c})
		if err != nil {
			t.Fatal(err)
		}
		q = queueOf(t, l, "q", QueueOptions{})
		if got := drain(t, q, 0); q.Floor() != 3 || len(got) != 6 || got[7] != "" {
			t.Fatalf("floor %d, %d records", q.Floor(), len(got))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestReadErrorPasses: a read that fails once costs nothing.
func TestReadErrorPasses(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m})
	q := queueOf(t, l, "q", QueueOptions{})
	put(t, l, Record{Queue: q, Data: []byte("x")})
	m.setFault(failOp("read", 2, syscall.EIO))
	var b Batch
	err := q.Next(t.Context(), 0, &b)
	for tries := 0; err != nil && tries < 5; tries++ {
		err = q.Next(t.Context(), 0, &b)
	}
	if err != nil || len(b.Recs) != 1 {
		t.Fatalf("%v, %d records", err, len(b.Recs))
	}
	if st := l.Stats(); st.Damaged != 0 {
		t.Fatalf("%d records given up", st.Damaged)
	}
}

// TestNextWaits: Next returns when something becomes durable, when its context ends, and when the log is closed.
func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open("/log", Options{FS: newMemFS()})
		if err != nil {
			t.Fatal(err)
		}
		q := queueOf(t, l, "q", QueueOptions{})
		results := make(chan error, 1)
		var b Batch
		ctx, cancel := context.WithCancel(t.Context())
		go func() { results <- q.Next(ctx, 0, &b) }()
		synctest.Wait()
		put(t, l, Record{Queue: q, Data: []byte("x")})
		if err := <-results; err != nil || len(b.Recs) != 1 {
			t.Fatalf("%v, %d records", err, len(b.Recs))
		}
		go func() { results <- q.Next(ctx, 1, &b) }()
		synctest.Wait()
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		go func() { results <- q.Next(t.Context(), 1, &b) }()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-results; !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if _, err := l.Append(Record{Queue: q}); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestEveryFault lets the nth write, sync, create and so on fail once, for every n: what was reported as durable is there afterwards,
// also after a power cut, nothing else is damaged, and the log goes on.
func TestEveryFault(t *testing.T) {
	faults := []struct {
		op   string
		err  error
		most int
	}{
		{"write", syscall.EIO, 70},
		{"write", errShort, 70},
		{"write", syscall.ENOSPC, 70},
		{"sync", syscall.EIO, 60},
		{"create", syscall.ENOSPC, 6},
		{"rename", syscall.EIO, 6},
		{"remove", syscall.EIO, 4},
		{"syncdir", syscall.EIO, 8},
		{"truncate", syscall.EIO, 2},
		{"read", syscall.EIO, 10},
		{"open", syscall.EMFILE, 8},
	}
	for _, f := range faults {
		t.Run(f.op+" "+f.err.Error(), func(t *testing.T) {
			t.Parallel()
			for n := range f.most {
				for _, cut := range []bool{false, true} {
					oneFault(t, f.op, f.err, n, cut)
				}
			}
		})
	}
}

func oneFault(t *testing.T, op string, fault error, n int, cut bool) {
	t.Helper()
	m := newMemFS()
	skip := n
	l, err := Open("/log", Options{FS: m, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	q := queueOf(t, l, "q", QueueOptions{})
	m.setFault(func(o, _ string) error {
		if o != op {
			return nil
		}
		skip--
		if skip == -1 {
			return fault
		}
		return nil
	})
	want := map[Seq]string{}
	for i := range 40 {
		recs := []Record{{Queue: q, Data: payload(i, 300)}}
		p, err := l.Append(recs...)
		if err == nil && l.Wait(t.Context(), p) == nil {
			want[recs[0].Seq] = string(recs[0].Data)
		}
		if i%10 == 9 {
			var b Batch
			if q.Next(t.Context(), 0, &b) == nil {
				for _, seq := range q.Ack(b.Recs[0].Seq, b.Recs[len(b.Recs)-1].Seq) {
					delete(want, seq)
				}
			}
		}
	}
	m.setFault(nil)
	if len(want) < 20 {
		t.Fatalf("%s %d: only %d records became durable", op, n, len(want))
	}
	if cut {
		m = m.powerCut(func() bool { return false })
	}
	if err := l.Close(); err != nil && !cut {
		t.Fatalf("%s %d: close: %v", op, n, err)
	}
	l, err = Open("/log", Options{FS: m, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatalf("%s %d: open: %v", op, n, err)
	}
	got := map[Seq]string{}
	if err := queueOf(t, l, "q", QueueOptions{}).Scan(0, func(r Rec) bool {
		got[r.Seq] = string(r.Data)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for seq, data := range want {
		if got[seq] != data {
			t.Fatalf("%s %d: record %d is %.20q, want %.20q", op, n, seq, got[seq], data)
		}
	}
	if st := l.Stats(); st.Damaged != 0 {
		t.Fatalf("%s %d: %d records damaged", op, n, st.Damaged)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNewestSegmentIsKept: on a full disk everything is acknowledged and then the power fails; no sequence may be given twice, so the
// only segment that knows them must not have been used for something else.
func TestNewestSegmentIsKept(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
	q := queueOf(t, l, "q", QueueOptions{})
	for range 10 {
		put(t, l, Record{Queue: q, Data: []byte("x")})
	}
	epoch := l.Epoch()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for path := range m.names {
		if strings.HasSuffix(path, spareSuffix) {
			delete(m.names, path) // a spare would help
		}
	}
	l = openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
	q = queueOf(t, l, "q", QueueOptions{})
	m.setFault(failOp("create", 1<<30, syscall.ENOSPC))
	q.Purge()
	p, err := l.Append(Record{Queue: q, Data: []byte("y")})
	if err == nil {
		err = l.Wait(t.Context(), p)
	}
	if err == nil {
		t.Fatal("written to a full disk")
	}
	c := m.powerCut(func() bool { return true })
	_ = l.Close()
	l = openLog(t, "/log", Options{FS: c, SegmentBytes: 8 << 10})
	q = queueOf(t, l, "q", QueueOptions{})
	if next := q.Stats().Next; l.Epoch() == epoch && next < 11 {
		t.Fatalf("sequence %d is given again", next)
	}
}
