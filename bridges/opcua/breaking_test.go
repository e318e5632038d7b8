package opcua

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestALineThatKeepsBreaking: cuts at every stage, also while a new process fetches what the one before left behind
// unacknowledged. Nothing that the server still has is lost.
func TestALineThatKeepsBreaking(t *testing.T) {
	const n, rounds, cuts = 200, 4, 8
	peer := startPeer(t, peerOptions{Counters: n, Interval: 50})
	line := startProxy(t, peer.o.Port)
	bus, dir := newBus(), t.TempDir()
	bus.commit = 700 * time.Millisecond // much is on its way when the line breaks
	c := counterConfig(line.url(), n)
	dice := rand.New(rand.NewPCG(1, 2)) // the seed fixes the pauses, not what they hit
	b := runBridge(t, c, bus, dir)
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	peer.do("run")
	abandoned, missing := uint64(0), uint64(0)
	tallied := func() {
		s := b.link.Stats()
		abandoned, missing = abandoned+s.Abandoned, missing+s.Missing
	}
	for round := range rounds {
		for range cuts {
			time.Sleep(time.Duration(20+dice.IntN(250)) * time.Millisecond)
			line.cut()
		}
		if round+1 < rounds {
			b.stop()
			tallied()
			time.Sleep(200 * time.Millisecond)
			b = runBridge(t, c, bus, dir)
		}
	}
	last := peer.do("stop").Count
	got := settle(t, bus, last, n)
	tallied()
	t.Logf("up to %d: %+v; link: %+v", last, got, b.link.Stats())
	if got.lost != 0 || abandoned != 0 || missing != 0 {
		t.Errorf("%d lost; counted %d subscriptions and %d notifications", got.lost, abandoned, missing)
	}
}
