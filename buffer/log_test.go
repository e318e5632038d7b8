package buffer

import (
	"fmt"
	"slices"
	"testing"
)

// openLog opens a log that is closed at the end of the test.
func openLog(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func queueOf(t testing.TB, l *Log, name string, o QueueOptions) *Queue {
	t.Helper()
	q, err := l.Queue(name, o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// put appends and waits until it is durable.
func put(t testing.TB, l *Log, recs ...Record) {
	t.Helper()
	p, err := l.Append(recs...)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// drain reads all that is there behind after, as Next does, without waiting for more.
func drain(t testing.TB, q *Queue, after Seq) map[Seq]string {
	t.Helper()
	out := map[Seq]string{}
	var b Batch
	for {
		found, err := q.read(after, &b)
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			return out
		}
		for _, r := range b.Recs {
			if r.Seq <= after {
				t.Fatalf("%s: sequence %d after %d", q.Name(), r.Seq, after)
			}
			after = r.Seq
			out[r.Seq] = string(r.Data)
		}
	}
}

// TestWaitAll: then everything appended before is counted among the records.
func TestWaitAll(t *testing.T) {
	l := openLog(t, "/log", Options{FS: newMemFS()})
	q := queueOf(t, l, "q", QueueOptions{})
	for i := range 1000 {
		if _, err := l.Append(Record{Queue: q}); err != nil {
			t.Fatal(err)
		}
		if i%100 > 0 {
			continue
		}
		if err := l.WaitAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := q.Stats().Records; n != uint64(i+1) {
			t.Fatalf("%d records after %d appends", n, i+1)
		}
	}
}

func TestAppendAndReadBack(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, Options{})
	a, b := queueOf(t, l, "a", QueueOptions{}), queueOf(t, l, "b", QueueOptions{})
	for i := range 100 {
		recs := []Record{{Queue: a, Data: fmt.Appendf(nil, "a%d", i)}, {Queue: b, Data: fmt.Appendf(nil, "b%d", i)}}
		put(t, l, recs...)
		if recs[0].Seq != Seq(i+1) || recs[1].Seq != Seq(i+1) {
			t.Fatalf("sequences %d and %d, want %d", recs[0].Seq, recs[1].Seq, i+1)
		}
	}
	check := func(q *Queue, letter string, from int) {
		t.Helper()
		got := drain(t, q, 0)
		if len(got) != 100-from {
			t.Fatalf("%s: %d records, want %d", letter, len(got), 100-from)
		}
		for i := from; i < 100; i++ {
			if got[Seq(i+1)] != fmt.Sprintf("%s%d", letter, i) {
				t.Fatalf("%s: record %d is %q", letter, i+1, got[Seq(i+1)])
			}
		}
	}
	check(a, "a", 0)
	check(b, "b", 0)
	if got := a.Ack(3, 1, 2, 2, 500); !slices.Equal(got, []Seq{3, 1, 2}) {
		t.Fatalf("acknowledged %v", got)
	}
	check(a, "a", 3)
	epoch := l.Epoch()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, dir, Options{})
	if l.Epoch() != epoch {
		t.Fatal("a clean start changed the epoch")
	}
	a, b = queueOf(t, l, "a", QueueOptions{}), queueOf(t, l, "b", QueueOptions{})
	if a.Floor() != 3 {
		t.Fatalf("floor %d", a.Floor())
	}
	check(a, "a", 3)
	check(b, "b", 0)
	put(t, l, Record{Queue: a, Data: []byte("new")})
	if got := drain(t, a, 100); got[101] != "new" {
		t.Fatalf("after the restart: %v", got)
	}
}
