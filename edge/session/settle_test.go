package session

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// put publishes a retained message, an empty one to clear it.
func (x *stored) put(topic, payload string) (message.Ticket, error) {
	r, err := x.Route(Publication{Msg: &message.Message{ID: message.NewID(), Topic: topic, QoS: 1, Retain: true, Payload: []byte(payload)}})
	return r.Ticket, err
}

// kept is put when it is on disk.
func (x *stored) kept(topic, payload string) {
	x.t.Helper()
	if t, err := x.put(topic, payload); err != nil || wait(t) != nil {
		x.t.Fatal(err)
	}
}

// nothingIn checks that a queue of the store has nothing when the disk is up to date.
func (x *stored) nothingIn(q *buffer.Queue) {
	x.t.Helper()
	for range 2 {
		if err := x.log.WaitAll(x.t.Context()); err != nil {
			x.t.Fatal(err)
		}
		x.Flush()
	}
	if n := q.Stats().Records; n > 0 {
		x.t.Errorf("%s: %d records stay", q.Name(), n)
	}
}

// TestSettleBesideCommits: what belongs together is given up together, also where the disk takes it in the moment in which somebody looks.
// Otherwise a retained message that was cleared is there again after a restart.
func TestSettleBesideCommits(t *testing.T) {
	x := newStored(t, newDisk(), Options{RetainedLimit: 100}, 1<<20)
	stop := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				x.store.Settle()
			}
		}
	})
	for i := range 5_000 {
		topic := fmt.Sprint("r/", i%8)
		x.kept(topic, "there")
		x.kept(topic, "")
	}
	close(stop)
	looking.Wait()
	x.nothingIn(x.store.retained)
}

// TestSettleInAnyOrder: what waits for a later position may wait in front of what waits for an earlier one.
func TestSettleInAnyOrder(t *testing.T) {
	x := newStored(t, newDisk(), Options{RetainedLimit: 100}, 1<<20)
	x.kept("r", "there")
	early := x.store.pos.Load()
	x.disk.mu.Lock() // no commit
	_, err := x.put("r", "")
	x.store.later(nil, x.store.messages, early, 1)
	x.disk.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	x.nothingIn(x.store.retained)

	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 500 {
				client := fmt.Sprint("c", g, "-", i)
				x.attach(client, &clientConn{})
				x.endClean(client)
			}
		})
	}
	all.Wait()
	x.nothingIn(x.store.state)
	if y := x.again(Options{}); len(y.sessions) > 0 {
		t.Errorf("%d ended sessions are back after a restart", len(y.sessions))
	}
}

// endClean ends the session of a client, as one does who connects with a clean session.
func (x *stored) endClean(client string) {
	conn := &clientConn{}
	s, _, _ := x.Attach(Connect{Conn: conn, Client: client, Version: 4, Clean: true, Allow: allowAll})
	x.Detach(s, conn)
}

// heal makes the disk take everything again and waits until the log has noticed. It leaves a retained message.
func (x *stored) heal() {
	x.t.Helper()
	x.disk.broken.Store(false)
	well, err := appendRetained(nil, &message.Message{Topic: "well", Payload: []byte("again")})
	if err != nil {
		x.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		_, pos, err := x.store.append(Record{Queue: x.store.retained, Data: well})
		if err == nil && wait(x.store.ticket(pos)) == nil {
			return
		} else if time.Now().After(deadline) {
			x.t.Fatal(err)
		}
	}
}

// TestFailedReplacements: where the disk fails to take what was to replace a record, that is replaced later. Otherwise a retained message that
// was cleared, or a session that has ended, is there again after a restart.
func TestFailedReplacements(t *testing.T) {
	for _, name := range []string{"topics first", "sessions first", "after a flush"} {
		t.Run(name, func(t *testing.T) {
			x := newStored(t, newDisk(), Options{RetainedLimit: 100}, 1<<20)
			x.kept("cleared", "there")
			x.kept("changed", "old")
			x.kept("cleared later", "old")
			kept := x.attach("kept", &clientConn{})
			ended := x.attach("ended", &clientConn{})
			x.attach("ends while it fails", &clientConn{})

			x.disk.mu.Lock() // no commit before everything is appended
			x.disk.broken.Store(true)
			x.order.Lock()
			for _, s := range []*Session{kept, ended} {
				s.mu.Lock()
				if err := s.rewrite(); err != nil {
					t.Error(err)
				}
				s.mu.Unlock()
			}
			x.order.Unlock()
			x.endClean("ends while it fails")
			for _, topic := range []string{"changed", "cleared later"} {
				if _, err := x.put(topic, "new"); err != nil {
					t.Error(err)
				}
			}
			ticket, err := x.put("cleared", "")
			x.disk.mu.Unlock()
			if err != nil || wait(ticket) == nil {
				t.Fatal("the disk took it", err)
			}
			x.heal()
			if name == "after a flush" {
				x.kept("changed", "newest")
				x.Flush()
			}
			if name != "topics first" {
				x.endClean("ended")
			}
			for _, topic := range []string{"cleared later", "cleared"} {
				x.kept(topic, "") // it is told that this is done
				x.store.Settle()
				x.kept("another", topic)
			}
			if name == "topics first" {
				x.endClean("ended")
			}
			if err := x.log.WaitAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if name != "after a flush" { // kill -9, without another one
				left := x.disk.cut(false)
				_ = x.log.Close()
				x = newStored(t, left, Options{RetainedLimit: 100}, 1<<20)
			} else {
				x.Flush()
				if err := x.log.WaitAll(t.Context()); err != nil {
					t.Fatal(err)
				}
				x.Flush()
				if n := x.store.retained.Stats().Records; n != 3 {
					t.Errorf("%d records of 3 retained messages", n)
				}
				x = x.again(Options{RetainedLimit: 100})
				if got := x.Retained("changed"); len(got) != 1 || string(got[0].Payload) != "newest" {
					t.Errorf("changed: %v", got)
				}
			}
			for _, topic := range []string{"cleared", "cleared later"} {
				if got := x.Retained(topic); len(got) > 0 {
					t.Errorf("%s: acknowledged, and there again after a restart: %q", topic, got[0].Payload)
				}
			}
			if x.sessions["ended"] != nil || x.sessions["ends while it fails"] != nil || x.sessions["kept"] == nil {
				t.Errorf("the sessions after a restart: %v", x.sessions)
			}
		})
	}
}

// TestFailedAnswer: an answer that waits for what the disk has failed to take is not given, and holds up none behind it, also where somebody
// looks only when something later is on disk.
func TestFailedAnswer(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<20)
	conn := &clientConn{}
	s := x.attach("c", conn)
	change := func(suback bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.write(append(s.changes(), changeSubscribe)); err != nil {
			t.Fatal(err)
		}
		s.queueAnswer(answer{pos: s.j.pos, conn: conn, packet: []byte("answer"), suback: suback})
	}
	x.disk.broken.Store(true)
	change(true)
	if wait(s.Ticket()) == nil {
		t.Fatal("the disk took it")
	}
	x.heal()
	change(false)
	if err := wait(s.Ticket()); err != nil {
		t.Fatal(err)
	}
	s.answered(nil)
	if len(s.j.answers) > 0 || s.j.silent > 0 || !s.j.stale || !conn.closed {
		t.Errorf("%d answers wait, %d of them SUBACKs; stale %v, ended %v", len(s.j.answers), s.j.silent, s.j.stale, conn.closed)
	}
}

// TestEndingsOnDeadDisk: of sessions that were never on disk nothing has to be noted when they end.
func TestEndingsOnDeadDisk(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<20)
	x.attach("known", &clientConn{})
	x.disk.broken.Store(true)
	for range 100 {
		for _, client := range []string{"known", "new"} {
			conn := &clientConn{}
			x.Attach(Connect{Conn: conn, Client: client, Version: 5, Expiry: time.Hour, Allow: allowAll})
			x.endClean(client)
		}
	}
	if n := len(x.endings); n > 1 {
		t.Errorf("%d endings wait for the disk", n)
	}
}

// TestJoined: the records of a session that has ended go in one step, whoever gave them back.
func TestJoined(t *testing.T) {
	got := joined([]ending{{number: 1, recs: []buffer.Seq{3}, reason: "ended"}, {number: 0}, {number: 2}, {number: 0}, {number: 1, recs: []buffer.Seq{1, 2}}})
	if len(got) != 4 || !slices.Equal(got[0].recs, []buffer.Seq{3, 1, 2}) || got[0].reason != "ended" || got[2].number != 2 {
		t.Errorf("%+v", got)
	}
}
