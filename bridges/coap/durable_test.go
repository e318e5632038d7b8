package coap

import (
	"errors"
	"fmt"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/message"
)

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// TestAnswerWaitsForTheDisk: no code of success leaves before the record is durable.
func TestAnswerWaitsForTheDisk(t *testing.T) {
	for _, k := range []struct {
		method codes.Code
		want   codes.Code
	}{{codes.POST, codes.Changed}, {codes.PUT, codes.Created}, {codes.DELETE, codes.Deleted}} {
		for _, typ := range []option.Type{option.Confirmable, option.NonConfirmable} {
			g := start(t, nil)
			g.bus.disk.setSlow(nil)
			c := dial(t, g.Addrs()[0])
			m := c.request(k.method, "/ps/a", "x")
			m.Type = typ
			c.send(m)
			if got, ok := c.receive(300 * time.Millisecond); ok {
				t.Fatalf("%v %v: answered %v before the record was on disk", typ, k.method, got)
			}
			g.bus.disk.settleAll(nil)
			got, ok := c.receive(patience)
			want := option.Acknowledgement
			if typ == option.NonConfirmable {
				want = typ
			}
			if !ok || got.Type != want || got.Code != k.want {
				t.Errorf("%v %v: answered %v", typ, k.method, got)
			}
		}
	}
}

func TestLateDiskMeansASeparateResponse(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(nil)
	c := dial(t, g.Addrs()[0])
	m := c.request(codes.POST, "/ps/a", "x")
	began := time.Now()
	got := c.exchange(m)
	if got.Type != option.Acknowledgement || got.Code != codes.Empty || got.MessageID != m.MessageID {
		t.Fatalf("got %v, want the empty acknowledgement", got)
	}
	if d := time.Since(began); d < 900*time.Millisecond || d > 1900*time.Millisecond {
		t.Errorf("acknowledged after %v: the peer would have sent it again after 2 s", d)
	}
	g.bus.disk.settleAll(nil)
	sep, ok := c.receive(patience)
	if !ok || sep.Type != option.Confirmable || sep.Code != codes.Changed || string(sep.Token) != string(m.Token) {
		t.Fatalf("the separate response is %v", sep)
	}
	again, ok := c.receive(patience) // it was not acknowledged
	if !ok || again.MessageID != sep.MessageID || again.Code != codes.Changed {
		t.Fatalf("sent again: %v", again)
	}
	c.send(option.Message{Type: option.Acknowledgement, Code: codes.Empty, MessageID: sep.MessageID})
	waitFor(t, "nothing parked", func() bool { return g.server.Stats().Parked == 0 })
}

func TestFailedDiskIsAnInternalError(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(nil)
	c := dial(t, g.Addrs()[0])
	for _, typ := range []option.Type{option.Confirmable, option.NonConfirmable} {
		m := c.request(codes.POST, "/ps/a", "x")
		m.Type = typ
		c.send(m)
		waitFor(t, "a record waits", func() bool { return g.bus.disk.pending() == 1 })
		g.bus.disk.settleAll(errors.New("commit: input/output error"))
		got, ok := c.receive(patience)
		if !ok || got.Code != codes.InternalServerError || len(got.Payload) != 0 {
			t.Errorf("%v: answered %v, want 5.00", typ, got)
		}
	}
}

func TestFullBufferIsUnavailable(t *testing.T) {
	g := start(t, nil)
	g.bus.setRefuse(func(message.Message) error { return fmt.Errorf("append: %w", message.ErrBusy) })
	c := dial(t, g.Addrs()[0])
	got := c.want(codes.ServiceUnavailable, codes.POST, "/ps/a", "x")
	if optionOf(got, option.MaxAge) != (number{retryAfter, true}) {
		t.Errorf("Max-Age %v", optionOf(got, option.MaxAge))
	}
	// A duplicate gets the same answer even when there is room again: it was refused, and its client was told so.
	m := c.request(codes.POST, "/ps/a", "y")
	first := c.exchange(m)
	g.bus.setRefuse(nil)
	second := c.exchange(m)
	if first.Code != codes.ServiceUnavailable || second.Code != first.Code || len(g.bus.list()) != 0 {
		t.Errorf("answered %v, then %v", first, second)
	}
	c.want(codes.Changed, codes.POST, "/ps/a", "y")
}

// TestRetransmissionDuringASlowCommit is what a device does while a card is busy erasing: it sends again, and its message must
// not be there twice.
func TestRetransmissionDuringASlowCommit(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(nil)
	c := dial(t, g.Addrs()[0])
	m := c.request(codes.POST, "/ps/a", "x")
	for range 5 {
		c.send(m)
	}
	waitFor(t, "duplicates", func() bool { return g.server.Stats().Duplicates == 4 })
	g.bus.disk.settleAll(nil)
	if got, ok := c.receive(patience); !ok || got.Code != codes.Changed {
		t.Fatalf("answered %v", got)
	}
	if got, ok := c.receive(200 * time.Millisecond); ok {
		t.Errorf("answered twice: %v", got)
	}
	c.send(m)
	if got, ok := c.receive(patience); !ok || got.Code != codes.Changed {
		t.Errorf("the duplicate is answered %v", got)
	}
	if n := g.bus.count([]byte("x")); n != 1 {
		t.Errorf("published %d times", n)
	}
}

// TestBlockedPeerDelaysNobody: one peer has thousands of requests waiting for a disk that does not answer to them; another
// one's are taken, stored and answered meanwhile, each before any of the first.
func TestBlockedPeerDelaysNobody(t *testing.T) {
	const flood, others = 3000, 50
	g := start(t, nil)
	g.bus.disk.setSlow(nil)
	blocked := dial(t, g.Addrs()[0])
	for i := range flood {
		blocked.send(blocked.request(codes.POST, "/ps/blocked", fmt.Sprint(i)))
		if i%100 == 99 { // what the socket's buffer cannot hold is no matter here
			waitFor(t, "the flood is taken", func() bool { return g.bus.disk.pending() == i+1 })
		}
	}
	c := dial(t, g.Addrs()[0])
	for i := range others {
		m := c.request(codes.POST, "/ps/other", fmt.Sprint("other ", i))
		c.send(m)
		waitFor(t, "the other's record", func() bool { return g.bus.disk.pending() == flood+1 })
		g.bus.disk.settle(uint64(flood+i+1), nil)
		got, ok := c.receive(patience)
		if !ok || got.Code != codes.Changed || got.Type != option.Acknowledgement || got.MessageID != m.MessageID {
			t.Fatalf("request %d of the other peer is answered %v", i, got)
		}
		if n := g.bus.disk.pending(); n != flood {
			t.Fatalf("%d of the flood wait, want all %d", n, flood)
		}
	}
	if n := g.server.Stats().Parked; n != flood {
		t.Errorf("%d parked, want %d", n, flood)
	}
	g.bus.disk.settleAll(nil)
}

// TestOrderOfArrival: what one peer sends without waiting is published in the order in which it came.
func TestOrderOfArrival(t *testing.T) {
	g := start(t, nil)
	g.bus.disk.setSlow(func() time.Duration { return time.Millisecond })
	c := dial(t, g.Addrs()[0])
	const n = 500
	for i := range n {
		m := c.request(codes.POST, "/ps/a", fmt.Sprint(i))
		if i%2 == 1 {
			m.Type = option.NonConfirmable
		}
		c.send(m)
		if i%50 == 49 {
			waitFor(t, "published", func() bool { return len(g.bus.list()) == i+1 })
		}
	}
	for i, m := range g.bus.list() {
		if string(m.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, m.Payload)
		}
	}
}
