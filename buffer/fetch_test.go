package buffer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// TestFetch: any choice of records is found wherever they are, with or without compression, while others come, are acknowledged,
// evicted and moved; what is not there any more is left out and nothing else is given.
func TestFetch(t *testing.T) {
	for _, compress := range []bool{false, true} {
		m := newMemFS()
		synctest.Test(t, func(t *testing.T) {
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, Compress: compress, eager: compress})
			defer l.Close()
			evicted := map[Seq]bool{}
			q := queueOf(t, l, "q", QueueOptions{
				Bound: l.NewBound(60<<10, DropOldest),
				OnDrop: func(_ *Queue, _ Reason, recs []Rec) { // the committer's goroutine, at rest when evicted is read
					for _, r := range recs {
						evicted[r.Seq] = true
					}
				},
			})
			other := queueOf(t, l, "other", QueueOptions{})
			rnd := rand.New(rand.NewPCG(1, uint64(len(evicted))))
			acked := map[Seq]bool{}
			last := Seq(0)
			var b Batch
			for range 60 {
				for range 1 + rnd.IntN(40) {
					r := []Record{
						{Queue: other, Data: []byte(strings.Repeat("o", rnd.IntN(200)))},
						{Queue: q, Data: fmt.Appendf(nil, "%d %s", last+1, strings.Repeat("x", rnd.IntN(300)))},
					}
					put(t, l, r...)
					last = r[1].Seq
					if rnd.IntN(3) > 0 {
						other.Ack(r[0].Seq)
					}
				}
				synctest.Wait()
				for range rnd.IntN(30) {
					s := 1 + Seq(rnd.Uint64N(uint64(last)))
					q.Ack(s)
					acked[s] = true
				}
				var ask, want []Seq
				one := 1 + rnd.IntN(20)
				for s := Seq(1); s <= last+3; s++ {
					if rnd.IntN(one) == 0 {
						ask = append(ask, s)
						if s <= last && !acked[s] && !evicted[s] {
							want = append(want, s)
						}
					}
				}
				var got []Seq
				if err := q.Fetch(ask, &b, func(r Rec) {
					if !strings.HasPrefix(string(r.Data), fmt.Sprint(r.Seq, " ")) {
						t.Fatalf("record %d is %q", r.Seq, r.Data)
					}
					got = append(got, r.Seq)
				}); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("asked for %d: got %v, want %v", ask, got, want)
				}
			}
			if len(evicted) == 0 {
				t.Error("nothing was evicted")
			}
		})
	}
}

// TestFetchReportsTheDisk: what cannot be read is an error, and nothing is given up for it.
func TestFetchReportsTheDisk(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
	defer l.Close()
	q := queueOf(t, l, "q", QueueOptions{})
	for i := range 300 {
		put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "record %d %s", i+1, strings.Repeat("x", 100))})
	}
	bad := errors.New("input/output error")
	m.setFault(func(op, _ string) error {
		if op == "read" {
			return bad
		}
		return nil
	})
	var b Batch
	if err := q.Fetch([]Seq{5}, &b, func(Rec) { t.Error("found") }); !errors.Is(err, bad) {
		t.Errorf("the error is %v", err)
	}
	m.setFault(nil)
	found := 0
	if err := q.Fetch([]Seq{5, 299, 301}, &b, func(Rec) { found++ }); err != nil || found != 2 {
		t.Errorf("%d found: %v", found, err)
	}
}
