package buffer

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// collector gathers what OnDrop tells.
type collector struct {
	mu  sync.Mutex
	got map[Reason]map[string][]Seq
}

// all gives what was told of a queue, once it is as much as the log has given up.
func (c *collector) all(t *testing.T, q *Queue, why Reason) []Seq {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		requireWithin(t, q.bound, 0)
		st := q.Stats()
		want := map[Reason]uint64{Evicted: st.Evicted, Purged: st.Purged}[why]
		c.mu.Lock()
		got := slices.Clone(c.got[why][q.Name()])
		c.mu.Unlock()
		if uint64(len(got)) == want {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d %v records of %s were told, want %d", len(got), why, q.Name(), want)
		}
	}
}

func newCollector() *collector { return &collector{got: map[Reason]map[string][]Seq{}} }

func (c *collector) onDrop(q *Queue, why Reason, recs []Rec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.got[why] == nil {
		c.got[why] = map[string][]Seq{}
	}
	for _, r := range recs {
		if why == Evicted && string(r.Data[:len(q.Name())]) != q.Name() {
			r.Seq = 0 // a wrong record: the test finds it
		}
		c.got[why][q.Name()] = append(c.got[why][q.Name()], r.Seq)
	}
}

func filled(name string, size int) []byte {
	return append([]byte(name), make([]byte, size-len(name))...)
}

// requireWithin wants the bound to hold. What a commit brought beyond it is evicted before the next commit.
func requireWithin(t *testing.T, b *Bound, records int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		used, limit := b.Used()
		if used <= limit {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d records: %d of %d bytes used", records, used, limit)
		}
	}
}

func TestDropOldestTakesTheFirstLaneFirst(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 16 << 10})
	c := newCollector()
	b := l.NewBound(64<<10, DropOldest)
	normal := queueOf(t, l, "normal", QueueOptions{Bound: b, OnDrop: c.onDrop})
	urgent := queueOf(t, l, "urgent", QueueOptions{Bound: b, OnDrop: c.onDrop})
	for range 20 {
		put(t, l, Record{Queue: urgent, Data: filled("urgent", 1000)})
	}
	for i := range 200 {
		put(t, l, Record{Queue: normal, Data: filled("normal", 1000)})
		requireWithin(t, b, i)
	}
	evicted := c.all(t, normal, Evicted)
	for i, seq := range evicted {
		if seq != Seq(i+1) {
			t.Fatalf("evicted %v: not the oldest in order", evicted)
		}
	}
	if len(c.all(t, urgent, Evicted)) != 0 {
		t.Fatal("the urgent lane lost records while the normal one had some")
	}
	got := drain(t, normal, 0)
	if len(got)+len(evicted) != 200 || len(got) < 10 {
		t.Fatalf("%d are there, %d were evicted of 200", len(got), len(evicted))
	}
	if got := normal.Ack(evicted[0]); len(got) != 0 {
		t.Fatal("an evicted record was acknowledged")
	}
	if len(drain(t, urgent, 0)) != 20 {
		t.Fatal("urgent records are missing")
	}
	// Only urgent ones now: they push out their own.
	normal.Purge()
	purged := c.all(t, normal, Purged)
	for range 80 {
		put(t, l, Record{Queue: urgent, Data: filled("urgent", 1000)})
	}
	if n := len(c.all(t, urgent, Evicted)); n == 0 || len(drain(t, urgent, 0))+n != 100 {
		t.Fatalf("%d urgent records evicted", n)
	}
	if st := normal.Stats(); st.Evicted != uint64(len(evicted)) || st.Purged != uint64(len(got)) || len(purged) != len(got) {
		t.Fatalf("stats %+v, want %d evicted and %d purged", st, len(evicted), len(got))
	}
}

func TestRefuse(t *testing.T) {
	l := openLog(t, "/log", Options{FS: newMemFS(), SegmentBytes: 16 << 10})
	b := l.NewBound(10<<10, Refuse)
	full := queueOf(t, l, "full", QueueOptions{Bound: b})
	other := queueOf(t, l, "other", QueueOptions{})
	n := 0
	for ; ; n++ {
		p, err := l.Append(Record{Queue: full, Data: make([]byte, 1000)})
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Wait(t.Context(), p)
	}
	if n != 7 { // a quarter is kept for files that are not full
		t.Fatalf("%d records of about 1100 bytes fit in 10240", n)
	}
	before := other.Stats().Next
	if _, err := l.Append(Record{Queue: other, Data: []byte("x")}, Record{Queue: full, Data: make([]byte, 1000)}); !errors.Is(err, ErrFull) {
		t.Fatalf("a full queue of two: %v", err)
	}
	if other.Stats().Next != before {
		t.Fatal("a refused append used up a sequence")
	}
	if _, err := l.Append(Record{Queue: full, Data: make([]byte, 11<<10)}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("larger than the bound: %v", err)
	}
	if _, err := l.Append(Record{Queue: other, Data: make([]byte, MaxRecordBytes+1)}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("larger than any record: %v", err)
	}
	full.Ack(1)
	put(t, l, Record{Queue: full, Data: make([]byte, 1000)})
}

func TestBusyWhileTheDiskIsSlow(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, GatherBytes: 64 << 10})
	q := queueOf(t, l, "q", QueueOptions{})
	put(t, l, Record{Queue: q, Data: []byte("first")})
	hold := make(chan struct{})
	m.setFault(func(op, _ string) error {
		if op == "sync" {
			m.mu.Unlock()
			<-hold
			m.mu.Lock()
		}
		return nil
	})
	var last Pos
	for n := 0; ; n++ {
		p, err := l.Append(Record{Queue: q, Data: make([]byte, 1000)})
		if errors.Is(err, ErrBusy) {
			break
		}
		if err != nil || n > 200 {
			t.Fatalf("after %d records: %v", n, err)
		}
		last = p
	}
	if l.Durable(last) {
		t.Fatal("durable before the fsync")
	}
	m.setFault(nil)
	close(hold)
	if err := l.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	put(t, l, Record{Queue: q, Data: []byte("again")})
}

// TestLargeRecord stores records larger than a segment.
func TestLargeRecord(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 16 << 10})
	q := queueOf(t, l, "q", QueueOptions{})
	big := payload(1, 3<<20)
	put(t, l, Record{Queue: q, Data: []byte("small")}, Record{Queue: q, Data: big})
	put(t, l, Record{Queue: q, Data: []byte("after")})
	got := drain(t, q, 0)
	if got[2] != string(big) || got[3] != "after" {
		t.Fatal("the large record is not there")
	}
	q.Ack(1, 2, 3)
}

// TestDiskBound fills one queue and drains another: the files stay near the sum of the bounds, though the stuck queue has records in each.
func TestDiskBound(t *testing.T) {
	m := newMemFS()
	const segment, bound = 16 << 10, 128 << 10
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: segment})
	stuck := queueOf(t, l, "stuck", QueueOptions{Bound: l.NewBound(bound, DropOldest)})
	busy := queueOf(t, l, "busy", QueueOptions{Bound: l.NewBound(bound, Refuse)})
	var want []Seq
	for i := range 4000 {
		recs := []Record{{Queue: busy, Data: payload(i, 200)}}
		if i%50 == 0 {
			recs = append(recs, Record{Queue: stuck, Data: payload(i, 300)})
		}
		put(t, l, recs...)
		busy.Ack(recs[0].Seq)
		if len(recs) == 2 {
			want = append(want, recs[1].Seq)
		}
		if st := l.Stats(); st.Bytes > 2*bound+segment {
			t.Fatalf("after %d appends %d bytes on disk: %+v", i, st.Bytes, st)
		}
	}
	if l.Stats().RelocatedBytes == 0 {
		t.Fatal("nothing was relocated")
	}
	check := func() {
		t.Helper()
		i := 0
		if err := stuck.Scan(0, func(r Rec) bool {
			if r.Seq != want[i] || string(r.Data) != string(payload(50*i, 300)) {
				t.Fatalf("record %d is %d", i, r.Seq)
			}
			i++
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if i != len(want) {
			t.Fatalf("%d of %d records", i, len(want))
		}
	}
	check()
	c := m.kill()
	_ = l.Close()
	l = openLog(t, "/log", Options{FS: c, SegmentBytes: segment})
	stuck = queueOf(t, l, "stuck", QueueOptions{})
	check()
	if st := l.Stats(); st.Damaged != 0 {
		t.Fatalf("%d damaged", st.Damaged)
	}
}

// TestManyRestarts leaves one record per start: the small segments are joined.
func TestManyRestarts(t *testing.T) {
	m := newMemFS()
	const starts = 3 * crowded
	for i := range starts {
		l := openLog(t, "/log", Options{FS: m})
		q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(8<<20, Refuse)})
		put(t, l, Record{Queue: q, Data: payload(i, 100)})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := openLog(t, "/log", Options{FS: m})
	q := queueOf(t, l, "q", QueueOptions{})
	if got := drain(t, q, 0); len(got) != starts {
		t.Fatalf("%d records", len(got))
	}
	if st := l.Stats(); st.Segments > crowded+5 || st.Bytes > 1<<20 {
		t.Fatalf("%d segments with %d bytes", st.Segments, st.Bytes)
	}
}

// TestFilesKeepToTheBound: whatever the records are like, the files take no more than the bound and one segment, and not much less.
func TestFilesKeepToTheBound(t *testing.T) {
	const bound, segment = 1 << 20, 32 << 10 // a segment is a thirty-second of the bounds
	for _, c := range []struct{ size, batch int }{{20, 1}, {60, 1}, {60, 64}, {256, 8}, {1000, 1}, {1000, 7}, {3000, 2}} {
		for _, policy := range []Policy{DropOldest, Refuse} {
			for _, compress := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d of %d, policy %d, compress %v", c.batch, c.size, policy, compress), func(t *testing.T) {
					t.Parallel()
					l := openLog(t, "/log", Options{FS: newMemFS(), SegmentBytes: segment, Compress: compress, eager: compress})
					q := queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(bound, policy)})
					most := int64(0)
					for total := 0; total < 2*bound; total += c.batch * (c.size + 60) {
						var recs []Record
						for i := range c.batch {
							recs = append(recs, Record{Queue: q, Data: reading(total + i)})
							for len(recs[i].Data) < c.size {
								recs[i].Data = append(recs[i].Data, reading(total+i+len(recs[i].Data))...)
							}
							recs[i].Data = recs[i].Data[:c.size]
						}
						p, err := l.Append(recs...)
						if policy == Refuse && errors.Is(err, ErrFull) {
							break
						}
						if err != nil || l.Wait(t.Context(), p) != nil {
							t.Fatal(err)
						}
						st := l.Stats()
						if most = max(most, st.Bytes); st.Bytes > bound+segment {
							t.Fatalf("%d bytes on disk: %+v", st.Bytes, st)
						}
					}
					if !compress && most < bound*3/4 {
						t.Errorf("only %d bytes were used", most)
					}
				})
			}
		}
	}
}

// TestFullBoundIsNotEvictedAtTheStart: at the start bounds come one after the other, and each keeps the less free the more others there
// are. The first one, which is as full as it may be, must not make room meanwhile.
func TestFullBoundIsNotEvictedAtTheStart(t *testing.T) {
	const first, others = 256 << 10, 32 << 20
	for name, o := range map[string]Options{"": {Bounds: first + others}, "segments of a size": {Bounds: first + others, SegmentBytes: 256 << 10}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLog(t, dir, o)
			full := l.NewBound(first, DropOldest)
			q := queueOf(t, l, "full", QueueOptions{Bound: full})
			l.NewBound(others, DropOldest)
			for {
				if used, limit := full.Used(); used > limit-3000 {
					break
				}
				put(t, l, Record{Queue: q, Data: filled("full", 1000)})
			}
			records, evicted := q.Stats().Records, q.Stats().Evicted
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openLog(t, dir, o)
			q = queueOf(t, l, "full", QueueOptions{Bound: l.NewBound(first, DropOldest)})
			time.Sleep(50 * time.Millisecond) // the committer would evict by now
			l.NewBound(others, DropOldest)
			if st := q.Stats(); st.Records != records || st.Evicted != evicted {
				t.Errorf("%d of %d records are left, %d were evicted", st.Records, records, st.Evicted-evicted)
			}
		})
	}
}
