package buffer

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLossList: what is noted leaves the list from its beginning on, be it in the middle of a run, and what is beyond the bound counts as noted.
func TestLossList(t *testing.T) {
	var s lossList
	for _, x := range []Loss{{Evicted, 7, 1, 3}, {Evicted, 7, 4, 4}, {Damaged, 7, 5, 5}, {Evicted, 8, 6, 9}} {
		s.add(x)
	}
	s.note(6)
	if want := []Loss{{Evicted, 8, 7, 9}}; s.total != 9 || s.noted != 6 || !slices.Equal(s.list, want) {
		t.Errorf("%+v, want %v", s, want)
	}
	older := lossList{list: []Loss{{Damaged, 7, 5, 5}, {Evicted, 8, 6, 8}}, total: 8, noted: 4}
	later := s
	older.join(&later)
	later.join(&lossList{total: 9, noted: 5, list: []Loss{{Evicted, 8, 6, 9}}})
	if !slices.Equal(older.list, s.list) || !slices.Equal(later.list, s.list) {
		t.Errorf("joined: %+v and %+v, want %+v", older, later, s)
	}
	for i := range Seq(2 * maxLosses) {
		s.add(Loss{Expired, 8, 20 + 2*i, 20 + 2*i})
	}
	if n := len(s.list); n != maxLosses || s.noted != s.total-maxLosses {
		t.Errorf("%d runs, %d noted of %d", n, s.noted, s.total)
	}
}

// TestLossesSurviveAKill: what left a queue is known after a kill until it was noted, by who evicted it and by who acknowledged it as lost.
func TestLossesSurviveAKill(t *testing.T) {
	m := newMemFS()
	o := Options{FS: m, SegmentBytes: 32 << 10, SaveEvery: time.Millisecond}
	open := func() (*Log, *Queue) {
		l := openLog(t, "/log", o)
		return l, queueOf(t, l, "q", QueueOptions{Bound: l.NewBound(100<<10, DropOldest), OnDrop: func(*Queue, Reason, []Rec) {}, KeepLosses: true})
	}
	restart := func(l *Log) (*Log, *Queue) {
		m = m.kill()
		o.FS = m
		_ = l.Close()
		return open()
	}
	l, q := open()
	for i := range 200 {
		put(t, l, Record{Queue: q, Data: payload(i, 1000)})
	}
	first := q.Stats().First
	l, q = restart(l)
	losses, mark := q.Losses()
	if len(losses) != 1 || losses[0].First != 1 || losses[0].Last < first-1 || losses[0].Why != Evicted || losses[0].Epoch == 0 {
		t.Fatalf("losses %+v, want those up to %d", losses, first-1)
	}
	last := q.Stats().Last
	own := OwnReason + 3
	lost := []Loss{{own, 5, last, last}, {own, 5, 1, 1}, {own, 5, last - 2, last - 2}} // the one in the middle is gone already
	if fresh := q.AckLost([]Seq{last, 1, last - 1, last - 2}, lost); len(fresh) != 3 {
		t.Errorf("%v were there", fresh)
	}
	q.Noted(mark)
	await(t, l, "the state to be written", func() bool { return len(l.dirty) == 0 && !q.dirty })
	put(t, l, Record{Queue: q, Data: []byte("behind it")})
	l, q = restart(l)
	losses, mark = q.Losses()
	if want := []Loss{{own, 5, last, last}, {own, 5, last - 2, last - 2}}; !slices.Equal(losses, want) {
		t.Errorf("losses %+v, want %+v", losses, want)
	}
	q.Noted(mark)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, q = open()
	if losses, _ := q.Losses(); len(losses) != 0 {
		t.Errorf("losses %+v were noted", losses)
	}
}

// TestStays: on a full disk a queue that stays keeps its records, although its bound would let them go, until that is full itself.
func TestStays(t *testing.T) {
	d := newFullDisk(t, 400<<10, Options{SegmentBytes: 32 << 10})
	stays := queueOf(t, d.l, "stays", QueueOptions{Bound: d.l.NewBound(20<<10, DropOldest), Stays: true})
	for i := range 40 {
		put(t, d.l, Record{Queue: stays, Data: payload(i, 100)})
		d.send(50, 25, 100)
	}
	d.check()
	if s := stays.Stats(); s.Records != 40 || d.backlog.Stats().Evicted == 0 {
		t.Errorf("%d of 40 are there; %d others were evicted", s.Records, d.backlog.Stats().Evicted)
	}
	for i := range 400 {
		put(t, d.l, Record{Queue: stays, Data: payload(i, 100)})
	}
	if s := stays.Stats(); s.Evicted == 0 || s.Bytes > 20<<10 {
		t.Errorf("%d bytes in it, %d records evicted", s.Bytes, s.Evicted)
	}
}

func FuzzLosses(f *testing.F) {
	f.Add(appendLosses(nil, 3, &lossList{list: []Loss{{Evicted, 7, 10, 12}, {OwnReason, 6, 2, 2}}, total: 9, noted: 5}), uint32(1))
	f.Add([]byte{1, 0, 2, 0, 1, 1, 0}, uint32(2))
	f.Fuzz(func(t *testing.T, b []byte, count uint32) {
		n := uint32(len(b))
		all, err := decodeLosses(section{sectionHeader: sectionHeader{kind: sectionLosses, count: count, raw: n, stored: n}, bytes: b})
		if err != nil {
			return
		}
		for id, s := range all {
			again := appendLosses(nil, id, &s)
			n := uint32(len(again))
			same, err := decodeLosses(section{sectionHeader: sectionHeader{kind: sectionLosses, count: 1, raw: n, stored: n}, bytes: again})
			if err != nil || same[id].total != s.total || same[id].noted != s.noted || !slices.Equal(same[id].list, s.list) {
				t.Fatalf("%+v became %+v: %v", s, same, err)
			}
		}
	})
}

// TestLossesOnTheirWay: what is written while the owner is being told of a loss has it too, so that a kill right then costs no word of it: of what
// is purged, what a reader finds damaged, and what is missing at the start, be there an owner or not.
func TestLossesOnTheirWay(t *testing.T) {
	o := Options{SegmentBytes: 32 << 10, SaveEvery: time.Millisecond}
	quiet := QueueOptions{KeepLosses: true, OnDrop: func(*Queue, Reason, []Rec) {}}
	fill := func(m *memFS) (*Log, *Queue) {
		o.FS = m
		l := openLog(t, "/log", o)
		q := queueOf(t, l, "q", quiet)
		for i := range 10 {
			put(t, l, Record{Queue: q, Data: payload(i, 1000)})
		}
		return l, q
	}
	damage := func(m *memFS) {
		for path, f := range m.names {
			if at := bytes.Index(f.data, payload(4, 100)); at >= 0 && strings.HasSuffix(path, segmentSuffix) {
				f.data[at+50] ^= 1
			}
		}
	}
	// written waits until the state is on disk, while what block belongs to goes on only when that is closed.
	written := func(l *Log, q *Queue) {
		await(t, l, "the state to be written", func() bool { return len(l.dirty) == 0 && !q.dirty && q.purged+q.damaged > 0 })
		put(t, l, Record{Queue: queueOf(t, l, "other", QueueOptions{})}) // what was being written is on disk before that
	}
	for _, how := range []string{"purge", "damage", "missing, killed", "missing, stopped"} {
		t.Run(how, func(t *testing.T) {
			l, q := fill(newMemFS())
			block, entered := make(chan struct{}), make(chan struct{}, 100)
			wait := func() { entered <- struct{}{}; <-block }
			want := 1
			var left *memFS
			switch how {
			case "purge":
				want = 10
				q = queueOf(t, l, "q", QueueOptions{KeepLosses: true, OnDrop: func(*Queue, Reason, []Rec) { wait() }})
				go q.Purge()
				<-entered
				written(l, q)
				left = o.FS.(*memFS).kill()
			case "damage":
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				m := o.FS.(*memFS).copyFS()
				damage(m)
				o.FS, o.OnDamage = m, func(Damage) { wait() }
				l = openLog(t, "/log", o)
				q = queueOf(t, l, "q", quiet)
				go func() { _ = q.Scan(0, func(Rec) bool { return true }) }()
				<-entered
				written(l, q)
				left = m.kill()
			default:
				m := o.FS.(*memFS).kill() // left open, so that it is scanned
				_ = l.Close()
				damage(m)
				o.FS = m
				l = openLog(t, "/log", o) // nobody declares the queue
				if how == "missing, killed" {
					left = m.kill()
				} else if err := l.Close(); err != nil {
					t.Fatal(err)
				} else {
					left = m.copyFS()
				}
			}
			close(block)
			_ = l.Close()
			o.FS, o.OnDamage = left, nil
			l = openLog(t, "/log", o)
			q = queueOf(t, l, "q", quiet)
			losses, _ := q.Losses()
			n := 0
			for _, x := range losses {
				n += int(x.count())
			}
			if s := q.Stats(); n != want || int(s.Records)+n != 10 {
				t.Errorf("%d records, losses %+v, want %d of them", s.Records, losses, want)
			}
		})
	}
}

// TestLeaving: what the owner was told is no more on its way, in whatever order.
func TestLeaving(t *testing.T) {
	q := &Queue{keepLosses: true, declared: true}
	q.leaves(Purged, 7, []span{{1, 5}, {8, 8}})
	for _, seq := range []Seq{3, 8, 1, 9, 5} {
		q.told(seq)
	}
	if want := []Loss{{Purged, 7, 2, 2}, {Purged, 7, 4, 4}}; !slices.Equal(q.leaving, want) {
		t.Errorf("%+v, want %+v", q.leaving, want)
	}
	for i := range Seq(1000) {
		q.leaves(Purged, 7, []span{{10 + 2*i, 10 + 2*i}})
	}
	if len(q.leaving) > maxLosses {
		t.Errorf("%d runs", len(q.leaving))
	}
}
