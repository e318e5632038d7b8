package buffer

import (
	"fmt"
	"testing"
)

// TestShortSeal: where the seal of the last segment has no room for the state of the queues, a stop loses neither their names nor what they
// are done with.
func TestShortSeal(t *testing.T) {
	for queues, most := range map[int]int{1: 64, 400: 8} {
		t.Run(fmt.Sprint(queues, " queues"), func(t *testing.T) {
			for n := range most {
				m := newMemFS()
				o := Options{FS: m, SegmentBytes: 256 << 10}
				l := openLog(t, "/log", o)
				var qs []*Queue
				for i := range queues {
					qs = append(qs, queueOf(t, l, fmt.Sprint("queue ", i), QueueOptions{}))
				}
				small := 10000 / queues
				for i := range queues * small {
					if _, err := l.Append(Record{Queue: qs[i%queues], Data: []byte("0123456789")}); err != nil {
						t.Fatal(err)
					}
				}
				if err := l.WaitAll(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, q := range qs {
					for i := Seq(2); i < Seq(small); i += 2 {
						q.Ack(i)
					}
				}
				for i := range n {
					put(t, l, Record{Queue: qs[0], Data: payload(i, 4000)})
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				o.FS = m.copyFS()
				again := openLog(t, "/log", o)
				for i, q := range qs {
					found := again.Lookup(q.Name())
					if found == nil {
						t.Fatalf("%d records more: the name of queue %d is lost", n, i)
					}
					if got, want := found.Stats(), q.Stats(); got.Records != want.Records || got.Floor != want.Floor || got.Next != want.Next {
						t.Fatalf("%d records more: %+v, want %+v", n, got, want)
					}
				}
			}
		})
	}
}
