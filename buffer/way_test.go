package buffer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fullDisk is a log on a small disk, with a backlog that may be evicted and a few records in every segment that may not.
type fullDisk struct {
	t       *testing.T
	m       *memFS
	o       Options
	l       *Log
	backlog *Queue
	state   *Queue
	dropped *collector
	kept    map[Seq]string // of the state, durable and not acknowledged
	evicted int            // of the state
	last    Seq
	// refused counts appends that were not taken, row those without one between that was, most the longest row.
	sent, refused, row, most int
}

func newFullDisk(t *testing.T, room int64, o Options) *fullDisk {
	d := &fullDisk{t: t, m: newMemFS(), o: o, kept: map[Seq]string{}}
	d.m.setRoom(room)
	d.open()
	return d
}

func (d *fullDisk) open() {
	d.o.FS = d.m
	d.l = openLog(d.t, "/log", d.o)
	d.dropped = newCollector()
	d.backlog = queueOf(d.t, d.l, "backlog", QueueOptions{Bound: d.l.NewBound(100<<20, DropOldest), OnDrop: d.dropped.onDrop})
	d.state = queueOf(d.t, d.l, "state", QueueOptions{OnDrop: d.dropped.onDrop})
	d.row = 0
}

// restart ends the log in one of the ways there are, and opens it again on a disk as full as before.
func (d *fullDisk) restart(how string) {
	room := d.m.room
	switch how {
	case "stop":
		if err := d.l.Close(); err != nil {
			d.t.Fatal(err)
		}
		d.m = d.m.copyFS()
	case "kill":
		d.m = d.m.kill()
	default:
		d.m = d.m.powerCut(cutRandom(rand.New(rand.NewPCG(uint64(d.sent), 1))))
	}
	_ = d.l.Close()
	d.evicted += len(d.dropped.got[Evicted]["state"]) + len(d.dropped.got[Damaged]["state"])
	d.m.setRoom(room)
	d.open()
}

// send appends n messages of 1,000 bytes, and with each every-th one of them a record of the state.
func (d *fullDisk) send(n, every, stay int) {
	for range n {
		i := d.sent
		d.sent++
		recs := []Record{{Queue: d.backlog, Data: payload(i, 1000)}}
		if i%every == 0 {
			recs = append(recs, Record{Queue: d.state, Data: payload(i, stay)})
		}
		p, err := d.l.Append(recs...)
		if err == nil {
			err = d.l.Wait(d.t.Context(), p)
		}
		if d.m.isDead() {
			return
		}
		if err != nil {
			if !errors.Is(err, ErrFull) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrFailed) && !errors.Is(err, syscall.ENOSPC) {
				d.t.Fatal(err)
			}
			d.refused++
			d.row++
			d.most = max(d.most, d.row)
			time.Sleep(time.Millisecond)
			continue
		}
		d.row = 0
		d.last = recs[0].Seq
		if i%every == 0 {
			seq := recs[1].Seq
			d.kept[seq] = string(recs[1].Data)
			for old := range d.kept {
				if seq%3 == 0 { // replaced, as the state of sessions is
					d.state.Ack(old)
					delete(d.kept, old)
				}
				break
			}
		}
	}
}

// check finds that what must stay is there and that few messages were refused, and none for long.
func (d *fullDisk) check() {
	d.t.Helper()
	if d.refused > d.sent/50 || d.most > 20 {
		d.t.Errorf("%d of %d refused, %d in a row", d.refused, d.sent, d.most)
	}
	got := drain(d.t, d.state, 0)
	for seq, want := range d.kept {
		if got[seq] != want {
			d.t.Fatalf("record %d that must stay is lost", seq)
		}
	}
	if n := d.evicted + len(d.dropped.got[Evicted]["state"]) + len(d.dropped.got[Damaged]["state"]); n != 0 {
		d.t.Errorf("%d records that must stay were evicted", n)
	}
	left := drain(d.t, d.backlog, 0)
	if left[d.last] == "" || len(left) < 50 {
		d.t.Errorf("%d messages are left, the last: %v", len(left), left[d.last] != "")
	}
}

// TestDiskFullBesideRecordsThatStay: a few records in every segment that may not be evicted do not keep a full disk from making room by
// those that may be, and none of them is lost.
func TestDiskFullBesideRecordsThatStay(t *testing.T) {
	for _, stay := range []int{20, 400, 2000} { // bytes of each
		for _, sealed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, compressed %v", stay, sealed), func(t *testing.T) {
				d := newFullDisk(t, 400<<10, Options{SegmentBytes: 32 << 10, Compress: sealed})
				d.send(3000, 60, stay)
				d.check()
			})
		}
	}
}

// TestFullDiskBesideRecordsThatStayFoundLate: the same where the disk is found full only when the next segment is wanted.
func TestFullDiskBesideRecordsThatStayFoundLate(t *testing.T) {
	for _, stay := range []int{20, 400} {
		t.Run(fmt.Sprint(stay), func(t *testing.T) {
			d := newFullDisk(t, 400<<10, Options{SegmentBytes: 32 << 10})
			d.m.setFault(func(op, path string) error {
				if strings.Contains(path, spareSuffix) && op == "create" {
					return syscall.EMFILE // nothing is known of the room
				}
				return nil
			})
			d.send(3000, 60, stay)
			d.check()
		})
	}
}

// TestRestartsOnFullDisk: the same over stops, kills and power cuts, while the disk stays as full.
func TestRestartsOnFullDisk(t *testing.T) {
	for _, how := range []string{"stop", "kill", "power cut"} {
		for _, stay := range []int{20, 400, 2000} {
			t.Run(fmt.Sprintf("%s, %d bytes", how, stay), func(t *testing.T) {
				d := newFullDisk(t, 400<<10, Options{SegmentBytes: 32 << 10})
				for range 20 {
					d.send(150, 60, stay)
					d.restart(how)
				}
				d.send(150, 60, stay)
				d.check()
				d.m.setRoom(0)
				d.send(150, 60, stay)
				d.check()
			})
		}
	}
}

// TestCutsOnFullDisk ends the process, and cuts the power, at one change of a full disk after the other while segments are given up and
// records move: what stays is there, and what was evicted or acknowledged is not taken for damaged.
func TestCutsOnFullDisk(t *testing.T) {
	const changes = 200
	for _, how := range []string{"kill", "power cut"} {
		t.Run(how, func(t *testing.T) {
			for at := range changes {
				d := newFullDisk(t, 400<<10, Options{SegmentBytes: 32 << 10})
				d.send(700, 2, 20)
				d.m.mu.Lock()
				d.m.dieAt = d.m.changes + 1 + at
				d.m.mu.Unlock()
				d.send(300, 2, 20)
				d.restart(how)
				if state, backlog := d.state.Stats(), d.backlog.Stats(); state.Damaged+backlog.Damaged > 0 {
					t.Errorf("change %d: %d records that stay are damaged, %d others", at, state.Damaged, backlog.Damaged)
				}
				d.check()
				_ = d.l.Close()
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestMovedBringsState: records that move out of the way bring what their queue is done with, which nothing on the disk may say yet, so that
// after a kill those that stayed behind are not taken for damaged.
func TestMovedBringsState(t *testing.T) {
	m := newMemFS()
	m.setFault(func(op, path string) error {
		if strings.Contains(path, spareSuffix) && op == "create" {
			return syscall.EMFILE
		}
		return nil
	})
	o := Options{FS: m, SegmentBytes: 32 << 10, SaveEvery: time.Hour}
	l := openLog(t, "/log", o)
	backlog := queueOf(t, l, "backlog", QueueOptions{Bound: l.NewBound(100<<20, DropOldest)})
	state := queueOf(t, l, "state", QueueOptions{})
	for i := range 100 {
		put(t, l, Record{Queue: backlog, Data: payload(i, 1000)}, Record{Queue: state, Data: payload(i, 200)})
	}
	for seq := Seq(2); seq <= 100; seq += 2 { // so scattered that it is written late
		state.Ack(seq)
	}
	before := l.Stats().RelocatedBytes
	l.mu.Lock()
	l.crammed = true
	l.wakeCommitter()
	l.mu.Unlock()
	await(t, l, "records to move", func() bool { return l.counts.relocated > before && l.emptiable(l.segments[0]) })
	o.FS = m.kill()
	_ = l.Close()
	l = openLog(t, "/log", o)
	state = queueOf(t, l, "state", QueueOptions{})
	got := drain(t, state, 0)
	for seq := Seq(1); seq <= 100; seq += 2 {
		if got[seq] == "" {
			t.Errorf("record %d is lost", seq)
		}
	}
	if s := state.Stats(); s.Damaged != 0 {
		t.Errorf("%d records that were acknowledged are taken for damaged", s.Damaged)
	}
}

// await waits for something that ready finds with Log.mu held.
func await(t *testing.T, l *Log, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		done := ready()
		l.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// TestStateOutgrowsFile: acknowledgements that come while a segment is begun make the state of the queues larger than its file was made for;
// nothing is written over its end.
func TestStateOutgrowsFile(t *testing.T) {
	m := newMemFS()
	m.setFault(func(op, path string) error {
		if strings.Contains(path, spareSuffix) && op == "create" {
			return syscall.EMFILE // files are made as large as they have to be
		}
		return nil
	})
	var acking atomic.Pointer[Queue]
	next, syncs := Seq(2), 0
	o := Options{FS: m, SegmentBytes: 8 << 10, SaveEvery: time.Hour, OnSync: func(time.Duration) {
		if q := acking.Load(); q != nil {
			if syncs++; syncs%3 == 0 {
				for range 2000 {
					q.Ack(next)
					next += 2
				}
			}
		}
	}}
	l := openLog(t, "/log", o)
	queue := queueOf(t, l, "q", QueueOptions{})
	for range 600 {
		recs := make([]Record, 100)
		for i := range recs {
			recs[i] = Record{Queue: queue, Data: []byte("x")}
		}
		put(t, l, recs...)
	}
	acking.Store(queue)
	for i := range 100 {
		put(t, l, Record{Queue: queue, Data: payload(i, 3000)})
	}
	l.mu.Lock()
	for _, s := range l.segments {
		if s.end > s.limit() {
			t.Errorf("the frames of %s end at %d, behind %d", s.name, s.end, s.limit())
		}
	}
	l.mu.Unlock()
	left := queue.Stats().Records
	o.FS, o.OnSync = m.kill(), nil
	_ = l.Close()
	l = openLog(t, "/log", o)
	again := queueOf(t, l, "q", QueueOptions{})
	if s := again.Stats(); s.Damaged != 0 || s.Records < left || len(drain(t, again, 0)) != int(s.Records) {
		t.Errorf("%d damaged, %d of %d there", s.Damaged, s.Records, left)
	}
}

// TestStayingIsNoDeadEnd: where records that stay are in every segment of a full disk and cannot move, they make room where nothing else does,
// and those that nothing may evict leave when they expire, rather than that nothing is taken any more.
func TestStayingIsNoDeadEnd(t *testing.T) {
	for _, life := range []time.Duration{0, time.Second} {
		t.Run(fmt.Sprint("lifetime ", life), func(t *testing.T) {
			m := newMemFS()
			m.setRoom(400 << 10)
			l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 10})
			data := queueOf(t, l, "data", QueueOptions{Bound: l.NewBound(100<<20, Refuse)})
			bound := l.NewBound(160<<10, DropOldest)
			if life > 0 {
				bound = nil
			}
			stays := queueOf(t, l, "stays", QueueOptions{Bound: bound, Stays: bound != nil})
			send := func(q *Queue, size int, life time.Duration) error {
				p, err := l.Append(Record{Queue: q, Data: payload(1, size), Lifetime: life})
				if err == nil {
					err = l.Wait(t.Context(), p)
				}
				return err
			}
			for i := range 2000 {
				_ = send(data, 300, 0)
				if i%2 == 0 {
					_ = send(stays, 200, life)
				}
			}
			for seq := Seq(1); seq <= data.Stats().Last; seq++ {
				data.Ack(seq)
			}
			for deadline := time.Now().Add(20 * time.Second); send(data, 300, 0) != nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					s := stays.Stats()
					t.Fatalf("nothing is taken any more: %d stay, %d expired, %d evicted", s.Records, s.Expired, s.Evicted)
				}
			}
		})
	}
}
