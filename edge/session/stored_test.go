package session

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// stored is a Manager with a store on a disk in memory.
type stored struct {
	t    testing.TB
	disk *disk
	dir  string
	log  *buffer.Log
	*Manager
	drops map[string]int
}

func newStored(t testing.TB, d *disk, o Options, maxBytes int64) *stored {
	t.Helper()
	dir := "/log"
	if d == nil {
		dir = t.TempDir()
	}
	return newStoredIn(t, d, dir, o, maxBytes)
}

func newStoredIn(t testing.TB, d *disk, dir string, o Options, maxBytes int64) *stored {
	t.Helper()
	var bo buffer.Options
	if d != nil {
		bo.FS = d
	}
	l, err := buffer.Open(dir, bo)
	if err != nil {
		t.Fatal(err)
	}
	st, err := OpenStore(l, maxBytes, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	x := &stored{t: t, disk: d, dir: dir, log: l, drops: map[string]int{}}
	o.Store, o.Drop = st, func(reason string, n int) { x.drops[reason] += n }
	x.Manager = New(o)
	t.Cleanup(func() { _ = l.Close() })
	return x
}

// again is the same after an orderly stop.
func (x *stored) again(o Options) *stored {
	x.t.Helper()
	x.Flush()
	if err := x.log.Close(); err != nil {
		x.t.Fatal(err)
	}
	return newStoredIn(x.t, x.disk, x.dir, o, 1<<30)
}

func (x *stored) attach(client string, conn Conn) *Session {
	x.t.Helper()
	s, _, _ := x.Attach(Connect{Conn: conn, Client: client, Version: 4, Expiry: time.Hour, Allow: allowAll})
	if err := s.Secure(); err != nil {
		x.t.Fatal(err)
	}
	return s
}

// away makes a session with a subscription whose client is not there.
func (x *stored) away(client, filter string) {
	x.t.Helper()
	conn := &wire{}
	s := x.attach(client, conn)
	s.Subscribe(conn, []*Subscription{{Filter: filter, QoS: 1}}, nil)
	x.Detach(s, conn)
	s.Left(nil)
}

// TestManyWaitForMany: what waits for sessions that are away takes a few bytes for each, in one copy on disk, also after a
// restart.
func TestManyWaitForMany(t *testing.T) {
	const sessions, messages, size = 300, 4000, 500
	x := newStored(t, nil, Options{}, 1<<30)
	for i := range sessions {
		x.away(fmt.Sprint("c", i), "a")
	}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var last Result
	for i := range messages {
		m := &message.Message{ID: message.NewID(), Topic: "a", QoS: 1, Payload: append(binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, size)...)}
		r, err := x.Route(Publication{Msg: m})
		if err != nil || r.Matched != sessions {
			t.Fatalf("%v: %d took it", err, r.Matched)
		}
		last = r
	}
	if err := wait(last.Ticket); err != nil {
		t.Fatal(err)
	}
	check := func(x *stored) {
		t.Helper()
		used, _ := x.store.Used()
		if used > messages*(size+200+sessions*4) {
			t.Errorf("%d bytes are stored for %d messages of %d", used, messages, size)
		}
		s := x.sessions["c7"]
		if n, b := s.queue.Len(), s.queue.Bytes(); n != messages || b < messages*size {
			t.Errorf("%d messages of %d bytes wait", n, b)
		}
	}
	check(x)
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	perRef := float64(int64(after.HeapAlloc-before.HeapAlloc)) / (sessions * messages)
	t.Logf("%.1f bytes of memory for each of %d waiting messages", perRef, sessions*messages)
	if perRef > 16 {
		t.Errorf("that is too much")
	}
	y := x.again(Options{})
	check(y)
	conn := &wire{}
	s := y.attach("c7", conn)
	for next := uint32(0); next < messages; {
		s.restock(conn)
		b, _ := s.encode(conn, nil)
		_, _ = conn.Write(b)
		for ; len(conn.buf) > 0; next++ {
			n, used := binary.Uvarint(conn.buf[1:])
			p := conn.buf[1+used:][:n]
			if got := binary.BigEndian.Uint32(p[5:]); got != next {
				t.Fatalf("got %d, want %d", got, next)
			}
			s.Puback(conn, binary.BigEndian.Uint16(p[3:]))
			conn.buf = conn.buf[1+used+int(n):]
		}
	}
	if n := len(s.stock); n > stockLen {
		t.Errorf("%d messages are in memory", n)
	}
}

// TestShareOfTheEnded: what waited for a session of a shared subscription goes to another member when it ends, also where that
// is read from the disk and both are kept, and is there after a restart.
func TestShareOfTheEnded(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<30)
	x.away("one", "$share/g/a")
	for i := range 600 {
		x.Publish(numbered(i), "")
	}
	x.away("two", "$share/g/a")
	x.away("own", "a")
	s := x.attach("one", &wire{})
	x.Attach(Connect{Conn: &wire{}, Client: "one", Version: 4, Clean: true, Allow: allowAll})
	if n := x.sessions["two"].queue.Len(); n != 600 || !s.ended {
		t.Errorf("%d messages went to the other member", n)
	}
	x.Publish(numbered(600), "")
	x.away("one", "b")
	y := x.again(Options{})
	if n, m := y.sessions["two"].queue.Len(), y.sessions["own"].queue.Len(); n != 601 || m != 1 {
		t.Errorf("%d and %d messages wait after a restart", n, m)
	}
	if len(x.drops)+len(y.drops) > 0 {
		t.Errorf("dropped: %v, %v", x.drops, y.drops)
	}
}

// TestBoundOfOne: session_queue holds for what is stored, and after a restart with a smaller one.
func TestBoundOfOne(t *testing.T) {
	x := newStored(t, newDisk(), Options{QueueBytes: 100 * (entryOverhead + 5)}, 1<<30)
	x.away("c", "a")
	for i := range 300 {
		x.Publish(numbered(i), "")
	}
	if n := x.sessions["c"].queue.Len(); n != 100 || x.drops[dropFull] != 200 {
		t.Errorf("%d wait, dropped: %v", n, x.drops)
	}
	if err := wait(x.store.ticket(x.store.pos.Load())); err != nil {
		t.Fatal(err)
	}
	x.Flush()
	if n := x.store.messages.Stats().Records; n != 100 {
		t.Errorf("%d are stored", n)
	}
	y := x.again(Options{QueueBytes: 50 * (entryOverhead + 5)})
	if n := y.sessions["c"].queue.Len(); n != 50 || y.drops[dropFull] != 50 {
		t.Errorf("%d wait after the restart, dropped: %v", n, y.drops)
	}
}

// TestExpiryGoesOn: by the log's clock, for sessions, messages and retained messages.
func TestExpiryGoesOn(t *testing.T) {
	x := newStored(t, newDisk(), Options{RetainedLimit: 10}, 1<<30)
	x.away("c", "a")
	at := time.Now()
	for i, life := range []time.Duration{time.Hour, time.Millisecond} {
		m := numbered(i)
		m.Expires = at.Add(life)
		x.Publish(m, "")
		x.Publish(&message.Message{ID: message.NewID(), Topic: fmt.Sprint("r/", i), Retain: true, Payload: []byte("x"), Expires: at.Add(life)}, "")
	}
	time.Sleep(5 * time.Millisecond)
	y := x.again(Options{RetainedLimit: 10})
	kept := y.Retained("r/#")
	if len(kept) != 1 || kept[0].Topic != "r/0" || kept[0].Expires.Sub(at.Add(time.Hour)).Abs() > time.Minute {
		t.Errorf("retained: %+v", kept)
	}
	conn := &wire{}
	s := y.attach("c", conn)
	s.restock(conn)
	b, _ := s.encode(conn, nil)
	_, _ = conn.Write(b)
	if got := conn.take(); len(got) != 1 || got[0].payload != 0 {
		t.Errorf("got %v", got)
	}
	// The session itself, with an hour less than it asked for.
	if d := time.Until(s.m.sessions["c"].expires); d > 0 {
		t.Errorf("a connected session expires in %v", d)
	}
}

// TestQueueOfTokens: entries come out as they went in, whatever is held, stripped or marked meanwhile.
func TestQueueOfTokens(t *testing.T) {
	q := &storedQueue{hold: true}
	var want []Entry
	seq := buffer.Seq(0)
	for i := range 5000 {
		e := Entry{Msg: numbered(i), QoS: message.QoS(i % 3), Retain: i%5 == 0, shared: i%7 == 0}
		if e.QoS > 0 {
			seq += buffer.Seq(1 + i%300)
			e.seq = seq
		}
		q.Append(e)
		want = append(want, e)
		if i%4 == 3 {
			for range i % 3 {
				w := want[0]
				want = want[1:]
				p := *q.Peek()
				g := q.Pop()
				if g.seq != w.seq || g.QoS != w.QoS || g.Retain != w.Retain || g.shared != w.shared || g.seq == 0 && g.Msg != w.Msg || p.seq != g.seq {
					t.Fatalf("got %+v, want %+v", g, w)
				}
			}
		}
		if i%900 == 899 {
			q.strip()
			q.hold = i%2 == 0
		}
		if q.Len() != len(want) {
			t.Fatalf("%d entries, want %d", q.Len(), len(want))
		}
	}
	for q.Len() > 0 {
		q.Pop()
	}
	if q.bytes != 0 || q.bare != 0 || q.heldBytes != 0 || q.held.len() != 0 {
		t.Errorf("%d bytes, %d bare, %d held of nothing", q.bytes, q.bare, q.heldBytes)
	}
}

// TestOptionsComeBack: of subscriptions, with what they do to a message that waits; one that the rules refuse after the restart
// brings nothing, nor does what waited for it.
func TestOptionsComeBack(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<30)
	conn := &wire{}
	s := x.attach("c", conn)
	subs := []*Subscription{
		{Filter: "a/#", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2, ID: 300},
		{Filter: "a/+", QoS: 2, ID: 7},
		{Filter: "$share/g/b", QoS: 1},
		{Filter: "gone", QoS: 1},
		{Filter: "denied", QoS: 1},
	}
	s.Subscribe(conn, subs, nil)
	s.Unsubscribe(conn, "gone")
	x.Detach(s, conn)
	s.Left(nil)
	x.Publish(&message.Message{ID: message.NewID(), Topic: "a/x", QoS: 2, Retain: true, Payload: []byte("1")}, "other")
	x.Publish(&message.Message{ID: message.NewID(), Topic: "denied", QoS: 2, Payload: []byte("2")}, "other")
	y := x.again(Options{
		Allow:        func(_, _ string) func(string) bool { return func(topic string) bool { return topic != "denied" } },
		MaySubscribe: func(_, _, filter string) bool { return filter != "denied" },
	})
	s = y.sessions["c"]
	for i, want := range []*Subscription{subs[0], subs[1], subs[2], nil, subs[4]} {
		got := s.filters[subs[i].Filter]
		if want == nil {
			if got != nil {
				t.Errorf("%s is there", subs[i].Filter)
			}
			continue
		}
		if got == nil || got.QoS != want.QoS || got.NoLocal != want.NoLocal || got.RetainAsPublished != want.RetainAsPublished ||
			got.RetainHandling != want.RetainHandling || got.ID != want.ID {
			t.Errorf("%+v came back as %+v", want, got)
		}
	}
	if n, _ := y.Publish(&message.Message{ID: message.NewID(), Topic: "denied", QoS: 1}, ""); n != 0 {
		t.Error("a subscription that is refused brings something")
	}
	if n, _ := y.Publish(&message.Message{ID: message.NewID(), Topic: "a/b/c", QoS: 1}, "c"); n != 0 {
		t.Error("no local is forgotten")
	}
	// Version 5, to see the identifiers: what waited comes with both, QoS 2 and its retain flag.
	s, present, _ := y.Attach(Connect{
		Conn: conn, Client: "c", Version: 5, Expiry: time.Hour, Allow: func(topic string) bool { return topic != "denied" },
	})
	s.restock(conn)
	b, _ := s.encode(conn, nil)
	want := []byte{headPublish | 2<<1 | flagRetain, 14, 0, 3, 'a', '/', 'x', 0, 1, 5, propSubscription, 7, propSubscription, 0xac, 2, '1'}
	if !present || string(b) != string(want) {
		t.Errorf("present %v, got % x, want % x", present, b, want)
	}
	if y.drops[dropDenied] != 1 {
		t.Errorf("dropped: %v", y.drops)
	}
}
