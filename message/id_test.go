package message

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

func TestIDsRiseWhateverTheClockDoes(t *testing.T) {
	s := newIDSource()
	last := s.next(1000)
	for _, now := range []uint64{1000, 999, 0, 1001, 5, 1 << 40, 3} {
		id := s.next(now)
		if bytes.Compare(id[:], last[:]) <= 0 {
			t.Fatalf("at %d ms: %s is not above %s", now, id, last)
		}
		if id.String() <= last.String() {
			t.Fatalf("text %s does not sort above %s", id, last)
		}
		last = id
	}
}

func TestIDsStayUniqueInOneMillisecond(t *testing.T) {
	s := newIDSource()
	last := s.next(7)
	for range 70_000 { // more than the counter of one millisecond holds
		id := s.next(7)
		if bytes.Compare(id[:], last[:]) <= 0 {
			t.Fatalf("%s is not above %s", id, last)
		}
		last = id
	}
}

func TestCopiesDiffer(t *testing.T) {
	id := NewID()
	if id.Copy(0) != id || id.Copy(1) == id || id.Copy(1) == id.Copy(2) || id.Copy(2).Time() != id.Time() {
		t.Error("copies must differ in their number only")
	}
}

func TestParseID(t *testing.T) {
	id := NewID().Copy(513)
	got, err := ParseID(id.String())
	if err != nil || got != id {
		t.Fatalf("ParseID(%s) = %s, %v", id, got, err)
	}
	for _, bad := range []string{"", "x", id.String() + "0", "zzzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000v"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) accepted it", bad)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(NewID().String())
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && id.String() != s {
			t.Errorf("ParseID(%q) reads %s", s, id)
		}
	})
}

func TestZeroTicketIsDurable(t *testing.T) {
	var ticket Ticket
	called := 0
	ticket.Done(func(err error) {
		if err == nil {
			called++
		}
	})
	if !ticket.Durable() || ticket.Wait(context.Background()) != nil || called != 1 {
		t.Error("a ticket that waits for nothing must be durable at once")
	}
}

type fakeWaiter struct{ pos uint64 }

func (w fakeWaiter) Durable(pos uint64) bool { return pos <= w.pos }
func (w fakeWaiter) Notify(pos uint64, f func(error)) {
	if !w.Durable(pos) {
		f(errors.New("never"))
		return
	}
	f(nil)
}

func (w fakeWaiter) Wait(_ context.Context, pos uint64) error {
	var got error
	w.Notify(pos, func(err error) { got = err })
	return got
}

func TestTicketAsksItsWaiter(t *testing.T) {
	for pos, want := range map[uint64]bool{4: true, 5: true, 6: false} {
		ticket := NewTicket(fakeWaiter{5}, pos)
		var done error
		ticket.Done(func(err error) { done = err })
		if ticket.Durable() != want || (ticket.Wait(context.Background()) == nil) != want || (done == nil) != want {
			t.Errorf("position %d: want durable %v", pos, want)
		}
	}
}
