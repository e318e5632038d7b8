package opcua

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"tidegate/bridges"
	"tidegate/config"
)

// counters is how many values change at once in the tests of faults, every tickEvery.
const (
	counterNodes = 1000
	tickEvery    = 100 * time.Millisecond
	// blackHole is how long the line is silent.
	blackHole = 20 * time.Second
)

// counterConfig watches n counters, each change of them.
func counterConfig(url string, n int) config.OPCUA {
	c := config.OPCUA{
		Endpoint: url, Security: "None", Format: "json",
		PublishingInterval: config.Duration(200 * time.Millisecond), SamplingInterval: 0,
		OutageBudget: config.Duration(60 * time.Second),
	}
	for i := range n {
		c.Nodes = append(c.Nodes, config.OPCUANode{ID: fmt.Sprintf("nsu=urn:tidegate:test;s=Counter%d", i), Topic: fmt.Sprintf("count/%d", i)})
	}
	return c
}

// running is a bridge at work.
type running struct {
	*Bridge
	stop   func()
	mu     sync.Mutex
	states []bridges.Status
}

// runBridge runs a bridge until stop is called or the test ends.
func runBridge(t testing.TB, c config.OPCUA, bus *fakeBus, dir string, more ...func(*Options)) *running {
	t.Helper()
	r := &running{}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	o := Options{Bus: bus, Dir: dir, GatewayID: "gw", Log: log, OnStatus: func(s bridges.Status) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.states = append(r.states, s)
	}}
	for _, f := range more {
		f(&o)
	}
	b, err := New("press1", c, o)
	if err != nil {
		t.Fatal(err)
	}
	r.Bridge = b
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(r.stop)
	return r
}

// until waits for a condition.
func until(t testing.TB, timeout time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	timeout = max(timeout, time.Minute) // what is wanted of an idle machine; a busy one has longer
	started := time.Now()
	for !ok() {
		if time.Since(started) > timeout {
			t.Fatalf("not within %s: %s", timeout, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(started)
}

// settle waits until every counter has come as far as the server has counted.
func settle(t *testing.T, bus *fakeBus, count, n int) counted {
	t.Helper()
	var c counted
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if c = bus.counters(t, "count/"); c.counters == n && c.least >= count {
			return c
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("the counters do not come to %d: %+v", count, c)
	return c
}

// TestNothingIsLostOverFaults: a thousand counters, each value of which the server still has when the bridge is back.
func TestNothingIsLostOverFaults(t *testing.T) {
	peer := startPeer(t, peerOptions{Counters: counterNodes, Interval: int(tickEvery / time.Millisecond)})
	line := startProxy(t, peer.o.Port)
	bus, dir := newBus(), t.TempDir()
	c := counterConfig(line.url(), counterNodes)
	b := runBridge(t, c, bus, dir)
	up := func() bool { return b.Status().Up }
	until(t, 20*time.Second, "connected", up)
	settle(t, bus, 0, counterNodes)
	peer.do("run")
	flow := func(what string) {
		t.Helper()
		from := bus.count()
		took := until(t, 20*time.Second, "values flow after "+what, func() bool { return bus.count() > from+2*counterNodes })
		t.Logf("%s: values flow again after %s", what, took.Round(time.Millisecond))
	}
	flow("the start")

	line.cut()
	time.Sleep(200 * time.Millisecond)
	flow("a reset")

	started := time.Now()
	line.silence(true)
	noticed := until(t, 6*time.Second, "the black hole is noticed", func() bool { return !up() })
	t.Logf("black hole noticed after %s", noticed.Round(100*time.Millisecond))
	if noticed > 5*time.Second {
		t.Errorf("a dead peer was noticed after %s, more than 5 s", noticed)
	}
	time.Sleep(time.Until(started.Add(blackHole)))
	line.silence(false)
	flow("the black hole")

	line.slow(300 * time.Millisecond)
	time.Sleep(3 * time.Second)
	if !up() {
		t.Error("a slow line was taken for a dead one")
	}
	line.slow(0)
	flow("a slow line")

	b.stop()
	time.Sleep(2 * time.Second)
	b = runBridge(t, c, bus, dir)
	flow("a restart of the bridge")

	bus.setBusy(true)
	time.Sleep(4 * time.Second)
	if !up() {
		t.Error("a full buffer ended the connection")
	}
	bus.setBusy(false)
	flow("a full buffer")

	last := peer.do("stop").Count
	got := settle(t, bus, last, counterNodes)
	s := b.link.Stats()
	t.Logf("%d values of %d counters up to %d: %d lost, %d repeated, %d out of order; link: %+v",
		got.values, got.counters, last, got.lost, got.repeated, got.disordered, s)
	if got.lost != 0 || got.disordered != 0 {
		t.Errorf("%d lost, %d out of order", got.lost, got.disordered)
	}
	if s.Overflows != 0 || s.Missing != 0 || s.Unreadable != 0 || s.Homeless != 0 || s.Abandoned != 0 {
		t.Errorf("the link counts losses: %+v", s)
	}
	// The values since the last acknowledgement may come twice, not more.
	if got.repeated > 20*counterNodes {
		t.Errorf("%d values came more than once", got.repeated)
	}
}

// TestKeysAreRenewed: under encryption, with keys that last for seconds.
func TestKeysAreRenewed(t *testing.T) {
	const n = 20
	peer := startPeer(t, peerOptions{Counters: n, Interval: 100})
	bus, dir := newBus(), t.TempDir()
	c := counterConfig(peer.url(), n)
	c.Security = "Aes128_Sha256_RsaOaep/SignAndEncrypt"
	_, _ = Read(t.Context(), Target{Name: "press1", Config: c, Dir: dir, GatewayID: "gw"}, "i=2258")
	if _, err := Trust(dir, "press1"); err != nil {
		t.Fatal(err)
	}
	b := runBridge(t, c, bus, dir, func(o *Options) { o.TokenLifetime = 2 * time.Second })
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	peer.do("run")
	time.Sleep(8 * time.Second)
	got := settle(t, bus, peer.do("stop").Count, n)
	if s := b.link.Stats(); s.Connects["created"] != 1 || s.Connects["reactivated"] != 0 || got.lost != 0 {
		t.Errorf("%+v; %+v", got, s)
	}
}
