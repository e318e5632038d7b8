package session

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"tidegate/message"
)

// waiting empties the queue of a session and gives the numbers of what waited, in order.
func (x *stored) waiting(client string) (numbers []int) {
	x.t.Helper()
	s := x.sessions[client]
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := s.queue.Len(), s.queue.Bytes()
	for s.queue.Len() > 0 {
		e := s.queue.Pop()
		bytes -= e.Size()
		if e.seq == 0 || e.QoS != 1 {
			x.t.Fatalf("%s: %+v", client, e)
		}
		numbers = append(numbers, int(e.seq))
	}
	if len(numbers) != n || bytes != 0 {
		x.t.Errorf("%s: %d waited, %d counted, %d bytes are left of them", client, len(numbers), n, bytes)
	}
	return numbers
}

// requireRun wants rising sequences, n of them.
func requireRun(t *testing.T, what string, seqs []int, n int) {
	t.Helper()
	for i := 1; i < len(seqs); i++ {
		if seqs[i] <= seqs[i-1] {
			t.Fatalf("%s: %d behind %d", what, seqs[i], seqs[i-1])
		}
	}
	if len(seqs) != n {
		t.Errorf("%s: %d waited, want %d", what, len(seqs), n)
	}
}

// TestCrowd: sessions that are away and take the same have it noted once, for all topics; each has everything in order, also where some of them
// take something else meanwhile, come back, or are looked at.
func TestCrowd(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<30)
	want := map[string]int{}
	for i := range 5 {
		name := fmt.Sprint("c", i)
		want[name] = 0
		x.away(name, "a/#")
	}
	x.away("other", "b")
	s := x.attach("c1", &wire{}) // this one has another subscription, too
	s.Subscribe(s.link.conn, []*Subscription{{Filter: "b", QoS: 1}}, nil)
	x.Detach(s, s.link.conn)
	rnd := rand.New(rand.NewPCG(1, 1))
	crowds := map[*crowd]bool{}
	for i := range 20_000 {
		topic := fmt.Sprint("a/", i%7)
		if i%2500 > 2480 {
			topic = "b"
		}
		matched, _ := x.Publish(&message.Message{ID: message.NewID(), Topic: topic, QoS: 1, Payload: []byte("x")}, "")
		switch {
		case topic == "b" && matched == 2:
			want["other"]++
			want["c1"]++
		case topic != "b" && matched == 5:
			for n := range 5 {
				want[fmt.Sprint("c", n)]++
			}
		default:
			t.Fatalf("%d took %s", matched, topic)
		}
		if c := x.crowds.now; c != nil {
			crowds[c] = true
		}
		switch name := fmt.Sprint("c", rnd.IntN(5)); rnd.IntN(2000) {
		case 0:
			s, conn := x.sessions[name], &wire{}
			x.attach(name, conn)
			x.Detach(s, conn)
			s.Left(nil)
		case 1:
			requireRun(t, name, x.waiting(name), want[name])
			want[name] = 0
		case 2, 3, 4:
			s := x.sessions[name]
			s.mu.Lock()
			if n := s.queue.Len(); n != want[name] {
				t.Errorf("%s: %d wait, want %d", name, n, want[name])
			}
			s.mu.Unlock()
		}
	}
	if len(crowds) < 5 || len(crowds) > 100 {
		t.Errorf("there were %d crowds", len(crowds))
	}
	for name, n := range want {
		requireRun(t, name, x.waiting(name), n)
	}
}

// TestCrowdIsBounded: session_queue holds for each of a crowd to the message, and the oldest go.
func TestCrowdIsBounded(t *testing.T) {
	const fit = 300
	x := newStored(t, newDisk(), Options{QueueBytes: fit * (entryOverhead + 5)}, 1<<30)
	for i := range 3 {
		x.away(fmt.Sprint("c", i), "a")
	}
	seen := false
	for i := range 1000 {
		x.Publish(numbered(i), "")
		seen = seen || x.crowds.now != nil
	}
	if !seen || x.drops[dropFull] != 3*(1000-fit) {
		t.Errorf("a crowd: %v; dropped: %v", seen, x.drops)
	}
	for i := range 3 {
		requireRun(t, fmt.Sprint("c", i), x.waiting(fmt.Sprint("c", i)), fit)
	}
}

// TestCrowdLosesOne: a session that ends is done with what it had with the others, and takes no more; what nobody waits for leaves the store.
func TestCrowdLosesOne(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<30)
	for i := range 3 {
		x.away(fmt.Sprint("c", i), "a")
	}
	for i := range 300 {
		if i%100 == 99 {
			s := x.sessions[fmt.Sprint("c", i/100)]
			s.mu.Lock()
			s.expires = time.Now().Add(-time.Second)
			s.mu.Unlock()
			x.Sweep(time.Now())
		}
		x.Publish(numbered(i), "")
	}
	if err := wait(x.store.ticket(x.store.pos.Load())); err != nil {
		t.Fatal(err)
	}
	x.Flush()
	if n := x.store.messages.Stats().Records; n != 0 {
		t.Errorf("%d messages stay in the store for nobody", n)
	}
}

// TestCrowdInTurmoil: publishers, sessions that come and go and looks at all of them at once: every session has every message of the topics that
// it never left, in order.
func TestCrowdInTurmoil(t *testing.T) {
	x := newStored(t, newDisk(), Options{}, 1<<30)
	const sessions, publishers, each = 4, 3, 1500
	for i := range sessions {
		x.away(fmt.Sprint("c", i), "a")
	}
	var work, looks sync.WaitGroup
	done := make(chan struct{})
	for range publishers {
		work.Go(func() {
			for i := range each {
				x.Publish(numbered(i), "")
			}
		})
	}
	looks.Go(func() {
		rnd := rand.New(rand.NewPCG(3, 3))
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(rnd.IntN(2000)) * time.Microsecond):
			}
			switch rnd.IntN(4) {
			case 0:
				x.Flush()
			case 1:
				x.Sweep(time.Now())
			default:
				conn := &wire{}
				s := x.attach(fmt.Sprint("c", rnd.IntN(sessions)), conn)
				x.Detach(s, conn)
				s.Left(nil)
			}
		}
	})
	work.Wait()
	close(done)
	looks.Wait()
	for i := range sessions {
		requireRun(t, fmt.Sprint("c", i), x.waiting(fmt.Sprint("c", i)), publishers*each)
	}
}

// TestCrowdMemory: what crowds note takes little for each message, however short they live: some 40 bytes as a rule, where a block of memory for
// each crowd that nobody needs would take 700 and more.
func TestCrowdMemory(t *testing.T) {
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	require := func(what string, x *stored, before, n, most int64) {
		t.Helper()
		x.Flush()
		if each := (inUse() - before) / n; each > most {
			t.Errorf("%s: %d bytes for each message", what, each)
		}
		runtime.KeepAlive(x)
	}
	x := newStored(t, nil, Options{}, 1<<30)
	for i := range 400 {
		x.away(fmt.Sprint("a", i), fmt.Sprint("t", i))
		x.away(fmt.Sprint("b", i), fmt.Sprint("t", i))
	}
	before := inUse()
	for i := range 400 {
		for k := range 20 {
			m := numbered(k)
			m.Topic = fmt.Sprint("t", i)
			x.Publish(m, "")
		}
	}
	require("many that are short", x, before, 8000, 300)

	y := newStored(t, nil, Options{}, 1<<30)
	y.away("c0", "a")
	y.away("c1", "a")
	s := y.attach("c0", &wire{})
	s.Subscribe(s.link.conn, []*Subscription{{Filter: "b", QoS: 1}}, nil)
	y.Detach(s, s.link.conn)
	s.Left(nil)
	before = inUse()
	for i := range 24_000 {
		m := numbered(i)
		if i%24 == 23 {
			m.Topic = "b" // which only one of them takes
		}
		y.Publish(m, "")
	}
	require("broken again and again", y, before, 24_000, 150)
}
