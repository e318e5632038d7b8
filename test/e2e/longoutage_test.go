package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// peak watches the resident memory of a gateway until stop, and keeps the most it saw.
type peak struct {
	most, anonymous atomic.Int64 // KiB: all of it, and what is not of files such as the program itself
	stop            context.CancelFunc
	done            chan struct{}
}

func watchMemory(t testing.TB, g *gateway) *peak {
	ctx, cancel := context.WithCancel(context.Background())
	p := &peak{stop: cancel, done: make(chan struct{})}
	pid := g.pid()
	go func() { // ends with ctx
		defer close(p.done)
		for ctx.Err() == nil {
			if n, err := residentOf(pid); err == nil {
				p.most.Store(max(p.most.Load(), int64(n)))
			}
			if n, err := memoryOf(pid, "RssAnon"); err == nil {
				p.anonymous.Store(max(p.anonymous.Load(), int64(n)))
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(p.end)
	return p
}

// end ends watching; most is final then.
func (p *peak) end() {
	p.stop()
	<-p.done
}

// megabytes is the most so far.
func (p *peak) megabytes() float64 { return float64(p.most.Load()) * 1024 / 1e6 }

func (p *peak) String() string {
	return fmt.Sprintf("%.1f MB (%.1f MB without the program's file)", p.megabytes(), float64(p.anonymous.Load())*1024/1e6)
}

// memoryBound is how much memory a gateway may need for an outage of any length, in MB.
const memoryBound = 60

// TestLongOutage: 200,000 messages come while the cloud is away, or as many as TIDEGATE_E2E_OUTAGE says. Memory does not grow with them,
// and when the cloud is back all of them arrive in order. How fast is told beside the rate of the same uplink when nothing is stored; with
// TIDEGATE_E2E_OUTAGE memory is bounded, too.
func TestLongOutage(t *testing.T) {
	n := 200_000
	text := os.Getenv("TIDEGATE_E2E_OUTAGE")
	if text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("TIDEGATE_E2E_OUTAGE=%q: want a number", text)
		}
	}
	longOutage(t, n, text != "", "")
}

// TestLiveFirstOutage is a shorter one, in which fresh messages overtake the backlog: their age is told beside that without live_first.
// scripts/soak sets TIDEGATE_E2E_LIVE for a longer one.
func TestLiveFirstOutage(t *testing.T) {
	n, text := 100_000, os.Getenv("TIDEGATE_E2E_LIVE")
	if text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("TIDEGATE_E2E_LIVE=%q: want a number", text)
		}
	}
	longOutage(t, n, text != "", liveFirst)
}

const liveFirst = "live_first = true"

// longOutage is an outage of n messages that come at 25,000 a second; options are further keys of the uplink, as what changes the order in
// which fresh messages and the backlog leave. It tells the age of fresh ones.
func longOutage(t *testing.T, n int, bounded bool, options string) {
	l := load{names: []string{"dev0", "dev1", "dev2", "dev3"}, size: 200, window: 1000}
	names := l.names
	cloud := newSink(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", cloud.url(), "5", options, fmt.Sprintf("[uplink.cloud.buffer]\n  max_bytes = \"%dMiB\"", max(256, n/2000))))
	g.start()
	g.requireConnected("cloud")
	memory := watchMemory(t, g)
	limit := time.Minute + time.Duration(n/2000)*time.Second

	live := min(n, 400_000) / 4 / len(names) * len(names)
	l.run(t, g.here(), 0, live)
	waitFor(t, limit, "what was sent live to arrive", func() bool { return cloud.arrived() == live }, g.uplinkText)
	liveRate := cloud.rate()

	cloud.down()
	waitFor(t, soon, "status to show the outage", func() bool { return !g.uplink("cloud").Connected })
	cloud.reset()
	n = n / len(names) * len(names)
	l.rate = 25_000
	took := l.run(t, g.here(), live/len(names), n)
	during := memory.String()
	cloud.up()
	waitFor(t, limit, "the first message after the outage", func() bool { return cloud.arrived() > 0 }, g.uplinkText)

	// Fresh messages during the drain, a thousand a second, tell their age on arrival.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fresh := make(chan int, 1)
	go func() { fresh <- freshMessages(ctx, g.here(), "plant/live", 1000) }() // ends with ctx
	waitFor(t, limit, "the backlog to arrive", func() bool { return cloud.backlog() >= n }, g.uplinkText)
	drained := cloud.rate()
	cancel()
	more := <-fresh
	waitFor(t, limit, "every message to arrive", func() bool { return cloud.arrived() >= n+more }, g.uplinkText)
	for _, name := range names {
		cloud.requireAll(t, "plant/"+name, (live+n)/len(names))
	}
	if late := cloud.requireEach(t, "plant/live", more); late > 0 && options != liveFirst { // there, one that is a second old is backlog itself
		t.Errorf("%d fresh messages came after later ones", late)
	}
	g.requireDrained("cloud", soon)
	requireDelivered(t, g, "cloud", live+n+more)
	memory.end()
	t.Logf("%d messages of %d bytes stored at %.0f/s while the cloud was away; drained at %.0f/s, the same uplink with an empty buffer %.0f/s: "+
		"ratio %.2f (wanted: 0.9); %d came twice", n, l.size, float64(n)/took.Seconds(), drained, liveRate, drained/liveRate, cloud.repeated())
	t.Logf("fresh messages during the drain: %d, age p50 %v, p99 %v", more,
		cloud.age("plant/live", 0.5).Round(100*time.Microsecond), cloud.age("plant/live", 0.99).Round(time.Millisecond))
	t.Logf("resident memory of the gateway: at most %v, %v until the end of the outage (wanted: %d MB)", memory, during, memoryBound)
	if bounded && memory.megabytes() > memoryBound {
		t.Errorf("resident memory of the gateway reached %.1f MB, more than %d", memory.megabytes(), memoryBound)
	}
	g.stop()
}

// backlog counts first arrivals on all topics but that of fresh messages.
func (s *sink) backlog() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams["plant/live"]; st != nil {
		return s.total - st.newest
	}
	return s.total
}

// freshMessages publishes so many messages a second with QoS 1 until ctx ends, each with its time, and tells how many were acknowledged.
func freshMessages(ctx context.Context, addr, topic string, each int) int {
	w, err := dial(addr, "3.1.1", login{client: "live"})
	if err != nil {
		return 0
	}
	defer w.close()
	acked := make(chan int, 1)
	sent := 0
	go func() { // ends with the connection
		n := 0
		for {
			p, err := w.readWithin(soon)
			if err != nil || p.kind != typePuback {
				break
			}
			n++
		}
		acked <- n
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ctx.Err() == nil; {
		for want := int(time.Since(begin).Seconds() * float64(each)); sent < want; {
			sent++
			text := fmt.Appendf(nil, "live %d %d ", sent, time.Now().UnixNano())
			if w.publish(topic, 1, uint16(sent%65535+1), text) != nil {
				return sent
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	_ = w.send(typeDisconnect, nil) // what was sent before is taken in; the broker closes
	<-acked
	return sent
}

// uplinkText is the status for a failure.
func (g *gateway) uplinkText() string { return fmt.Sprintf("%+v", g.status()) }
