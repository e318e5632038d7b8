package session

import (
	"bytes"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// fullState is a session with everything in it.
func fullState() *state {
	return &state{
		number: 7, client: "press", user: "u", expiry: time.Hour, away: 3 * time.Second,
		will: &Will{
			Msg: message.Message{Topic: "w", Payload: []byte("gone"), QoS: 1}, Delay: time.Second, Expiry: time.Minute, User: "u",
			Pending: true, Forced: true, Due: 5 * time.Second,
		},
		progress: progress{head: 100, next: 9, flight: []flown{
			{id: 65535, seq: 90, qos: 2, retain: true}, {id: 3, qos: 2, released: true}, {id: 8, seq: 99, qos: 1, shared: true},
		}},
		subs: []*Subscription{
			{Filter: "a/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2, ID: 77, ids: []uint32{77}},
			{Filter: "$share/g/b", QoS: 1},
		},
		receives: []uint16{1, 65535},
	}
}

// TestStateReadsBack: a snapshot has everything, older by what has passed since; changes change it.
func TestStateReadsBack(t *testing.T) {
	want := fullState()
	d := decoder{b: appendSnapshot(nil, want)}
	kind, number := d.stateHead()
	got := d.snapshot(number, time.Second)
	want.away += time.Second
	want.will.Due -= time.Second
	want.will.Msg.Payload = got.will.Msg.Payload
	if d.err != nil || kind != kindSnapshot || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v: got\n%+v, want\n%+v", d.err, got, want)
	}
	b := appendSubscription([]byte{changeSubscribe}, &Subscription{Filter: "a/#", QoS: 1})
	b = append(appendString(append(b, changeUnsubscribe), "$share/g/b"), changeRelease, 1, changeReceive, 5, changePubrec, 8)
	b = append(appendDuration(append(b, changeAttach), time.Minute), 0)
	d = decoder{b: b}
	d.changes(got, 0)
	if d.err != nil || len(got.subs) != 1 || got.subs[0].QoS != 1 || got.receives[1] != 5 || !got.progress.flight[2].released || !got.attached || got.will != nil {
		t.Errorf("%v: %+v", d.err, got)
	}
}

func FuzzState(f *testing.F) {
	f.Add(appendSnapshot(nil, fullState()))
	p := fullState().progress
	f.Add(appendProgress(append(appendHead(nil, kindChanges, 3), changeProgress), &p))
	f.Add(appendHead(nil, kindEnd, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{b: b}
		kind, number := d.stateHead()
		st := &state{number: number}
		switch kind {
		case kindSnapshot:
			st = d.snapshot(number, time.Second)
		case kindChanges:
			d.changes(st, time.Second)
		}
		if d.err != nil || kind != kindSnapshot {
			return
		}
		again := decoder{b: appendSnapshot(nil, st)}
		_, n := again.stateHead()
		if got := again.snapshot(n, 0); again.err != nil || got.client != st.client || len(got.subs) != len(st.subs) || !reflect.DeepEqual(got.progress, st.progress) {
			t.Errorf("%v: %+v reads back as %+v", again.err, st, got)
		}
	})
}

func FuzzStored(f *testing.F) {
	s := &Session{j: &journal{number: 9}}
	m := message.Message{ID: message.NewID(), Topic: "a/b", Payload: []byte("x"), QoS: 2, Retain: true, ContentType: "t"}
	full := []taking{{s: s, ids: []uint32{1, 300}, share: &share{filter: "$share/g/a"}, qos: 2, retain: true}, {s: s, qos: 1}}
	b, err := appendStored(nil, full, &m)
	if err != nil {
		f.Fatal(err)
	}
	takers, got, err := decodeStored(b)
	want := []taker{{number: 9, qos: 2, retain: true, ids: []uint32{1, 300}, share: "$share/g/a"}, {number: 9, qos: 1}}
	if err != nil || !reflect.DeepEqual(takers, want) || got.Topic != m.Topic || !bytes.Equal(got.Payload, m.Payload) {
		f.Fatalf("%v: %+v, %+v", err, takers, got)
	}
	m.ID = m.ID.Copy(3)
	if b, err = appendStored(nil, full, &m); err != nil {
		f.Fatal(err)
	}
	if _, again, err := decodeStored(b); err != nil || again.ID != got.ID {
		f.Fatalf("the bytes of a copy give %s, want %s: %v", again.ID, got.ID, err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _, _ = decodeStored(b)
		_, _ = decodeRetained(b)
	})
}

// TestBadRecords: what cannot be decoded costs what is in it and no more, is counted, and is not met again.
func TestBadRecords(t *testing.T) {
	d := newDisk()
	open := func() (*buffer.Log, *Store, *Manager) {
		l, err := buffer.Open("/log", buffer.Options{FS: d})
		if err != nil {
			t.Fatal(err)
		}
		st, err := OpenStore(l, 1<<20, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return l, st, New(Options{Store: st, RetainedLimit: 10})
	}
	l, st, m := open()
	conn := &null{}
	s, _, _ := m.Attach(Connect{Conn: conn, Client: "c", Version: 5, Expiry: time.Hour, Allow: allowAll})
	if err := s.Secure(); err != nil {
		t.Fatal(err)
	}
	s.Subscribe(conn, []*Subscription{{Filter: "a", QoS: 1}}, nil)
	m.Detach(s, conn)
	s.Left(nil)
	m.Publish(&message.Message{ID: message.NewID(), Topic: "a", QoS: 1, Retain: true, Payload: []byte("x")}, "")
	for _, q := range []*buffer.Queue{st.messages, st.state, st.retained} {
		for _, b := range [][]byte{nil, {9}, {recordVersion}, {recordVersion, kindSnapshot, 1, 200}, {recordVersion, kindChanges, 99, changeReceive, 1}} {
			if _, err := l.Append(Record{Queue: q, Data: b}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, st, m = open()
	if st.Lost() != 15 {
		t.Errorf("%d records counted as lost", st.Lost())
	}
	if m.Len() != 1 || len(m.Retained("a")) != 1 || m.sessions["c"].queue.Len() != 1 {
		t.Errorf("%d sessions, %d retained", m.Len(), len(m.Retained("a")))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, st, m = open()
	defer l.Close()
	if st.Lost() != 0 || m.Len() != 1 || m.sessions["c"].queue.Len() != 1 {
		t.Errorf("%d records are lost again, %d sessions", st.Lost(), m.Len())
	}
}
