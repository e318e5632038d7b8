package buffer

import (
	"errors"
	"fmt"
	"testing"
)

// TestSameEnd: a record that ends like the one before takes next to nothing on disk, unless it has another key, and is read, moved and found again
// like any other.
func TestSameEnd(t *testing.T) {
	for _, how := range []string{"plain", "same key", "other key"} {
		t.Run(how, func(t *testing.T) {
			m := newMemFS()
			o := Options{FS: m, SegmentBytes: 64 << 10}
			if how != "plain" {
				one, two := testKey(t, 1), testKey(t, 2)
				if how == "same key" {
					two = one
				}
				o.Keys = func(queue string) ([]Key, bool) {
					if queue == "a" {
						return []Key{one}, true
					}
					return []Key{two}, true
				}
			}
			l := openLog(t, "/log", o)
			a, b := queueOf(t, l, "a", QueueOptions{}), queueOf(t, l, "b", QueueOptions{})
			const n, size = 40, 1000
			want := map[Seq]string{}
			for i := range n {
				data := payload(i, size)
				want[Seq(i+1)] = fmt.Sprint("head ", i) + string(data[100:])
				recs := []Record{{Queue: a, Data: data}, {Queue: b, Data: []byte(fmt.Sprint("head ", i)), SameEnd: size - 100}}
				put(t, l, recs...)
				if recs[1].Seq != Seq(i+1) {
					t.Fatalf("sequence %d", recs[1].Seq)
				}
			}
			l.mu.Lock()
			used := int64(0)
			for _, s := range l.segments {
				used += s.end - dataStart
			}
			l.mu.Unlock()
			if twice := used > 3*n*size/2; twice != (how == "other key") {
				t.Errorf("%d bytes for %d records of %d and as many that end like them", used, n, size)
			}
			if s := b.Stats(); s.Bytes < n*(size-100) {
				t.Errorf("%d bytes are charged", s.Bytes)
			}
			check := func(when string) {
				t.Helper()
				got := drain(t, b, 0)
				for seq, data := range want {
					if got[seq] != data {
						t.Fatalf("%s: record %d is %.20q", when, seq, got[seq])
					}
				}
			}
			check("written")
			a.Purge()
			check("without the other")
			for i := range 500 { // in other segments, so that the old ones are worth to be emptied
				put(t, l, Record{Queue: a, Data: payload(i, size)})
				a.Ack(Seq(n + i + 1))
			}
			check("later")
			o.FS = m.kill()
			_ = l.Close()
			l = openLog(t, "/log", o)
			b = queueOf(t, l, "b", QueueOptions{})
			check("after a kill")
			if s := b.Stats(); s.Damaged != 0 || s.Records != n {
				t.Errorf("%d records, %d damaged", s.Records, s.Damaged)
			}
		})
	}
}

// TestSameEndOfNothing: a record cannot end like one that is not there.
func TestSameEndOfNothing(t *testing.T) {
	l := openLog(t, "/log", Options{FS: newMemFS()})
	q := queueOf(t, l, "q", QueueOptions{})
	whole := Record{Queue: q, Data: make([]byte, 100)}
	for _, recs := range [][]Record{
		{{Queue: q, SameEnd: 1}}, {whole, {Queue: q, SameEnd: 101}}, {whole, {Queue: q, SameEnd: -1}}, {whole, {Queue: q, SameEnd: 50}, {Queue: q, SameEnd: 50}},
	} {
		if _, err := l.Append(recs...); !errors.Is(err, errNoEnd) {
			t.Errorf("%v: %v", recs[len(recs)-1].SameEnd, err)
		}
	}
	put(t, l, whole, Record{Queue: q, SameEnd: 100}, whole, Record{Queue: q, Data: []byte("x"), SameEnd: 3})
	if got := drain(t, q, 0); len(got) != 4 || len(got[2]) != 100 || got[4] != "x\x00\x00\x00" {
		t.Errorf("%v", got)
	}
}
