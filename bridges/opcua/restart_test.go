package opcua

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidegate/config"
)

// TestServerRestartsWithHalfOfItsNodes: the server is killed and comes back with half of the nodes, under another
// namespace index; those flow at once, the others when they are there again. It takes 30 items per call.
func TestServerRestartsWithHalfOfItsNodes(t *testing.T) {
	const n = 100
	peer := startPeer(t, peerOptions{Counters: n, Interval: 100, ItemsPerCall: 30})
	bus := newBus()
	b := runBridge(t, counterConfig(peer.url(), n), bus, t.TempDir())
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	peer.do("run")
	settle(t, bus, 10, n)

	peer.kill()
	until(t, 6*time.Second, "the end of the server is noticed", func() bool { return !b.Status().Up })
	half := n / 2
	peer.o.Present, peer.o.Pad, peer.o.Start = &half, 3, 1000
	peer.start()
	peer.do("run")
	took := until(t, 15*time.Second, "the nodes that are there flow", func() bool {
		return bus.highest("count/0") > 1000 && bus.highest(fmt.Sprintf("count/%d", half-1)) > 1000
	})
	t.Logf("the nodes that are there flow %s after the server listens", took.Round(10*time.Millisecond))
	if s := b.link.Stats(); s.Watched != half || s.Failed != n-half {
		t.Errorf("%d nodes watched and %d failed, want %d and %d", s.Watched, s.Failed, half, n-half)
	}
	if v := bus.highest(fmt.Sprintf("count/%d", half)); v >= 1000 {
		t.Errorf("a node that is not there has the value %d", v)
	}
	peer.do("add", "to", n)
	took = until(t, 12*time.Second, "the others return", func() bool {
		return bus.highest(fmt.Sprintf("count/%d", n-1)) > 1000 && bus.highest(fmt.Sprintf("count/%d", half)) > 1000
	})
	t.Logf("the others return %s after they are there again (wanted: 10 s)", took.Round(100*time.Millisecond))
}

// TestNodesAndTopics: templates, paths with characters that no topic may hold, collisions, and nodes that never come.
func TestNodesAndTopics(t *testing.T) {
	peer := startPeer(t, peerOptions{Announce: "plc-17.invalid"})
	bus := newBus()
	c := config.OPCUA{
		Endpoint: peer.url(), Security: "None", Format: "json", Topic: "plant/{path}",
		PublishingInterval: config.Duration(100 * time.Millisecond), SamplingInterval: config.Duration(100 * time.Millisecond),
		OutageBudget: config.Duration(10 * time.Second),
		Nodes: []config.OPCUANode{
			{ID: "nsu=urn:tidegate:test;s=Temperature"},
			{ID: "ns=2;s=Double", Topic: "x/{name}/{id}/{ns}"},
			{ID: "nsu=urn:tidegate:test;s=Float", Topic: "plant/Plant/String"}, // free as long as nobody else has it
			{ID: "nsu=urn:tidegate:test;s=String"},                             // plant/Plant/String
			{ID: "nsu=urn:tidegate:test;s=Nope"},
			{ID: "nsu=urn:nowhere;s=Nope"},
			{ID: "nsu=urn:tidegate:test;s=Int16", Topic: "tidegate/{name}"},
			{ID: "i=2258", Topic: "time"}, // the server's clock changes all the time
		},
	}
	b := runBridge(t, c, bus, t.TempDir())
	for _, topic := range []string{"plant/Plant/Line 1___/Temperature", "x/Double/Double/2", "plant/Plant/String", "time"} {
		bus.last(t, topic, 20*time.Second, anyPayload)
	}
	until(t, 5*time.Second, "4 nodes watched", func() bool { s := b.link.Stats(); return s.Watched == 4 && s.Failed == 4 })
	if got := bus.last(t, "plant/Plant/String", time.Second, anyPayload); !strings.Contains(got, `"v":1.5`) {
		t.Errorf("the topic of the first node has the value of another: %s", got)
	}
	if err := b.Resolve(3, describedAs("String", "Plant", "String")); err == nil || !strings.Contains(err.Error(), "is the topic of nsu=urn:tidegate:test;s=Float already") {
		t.Errorf("a collision is explained as %v", err)
	}
}

// TestSessionOfAnotherConfiguration: what an earlier process saved is used as far as it fits.
func TestSessionOfAnotherConfiguration(t *testing.T) {
	peer := startPeer(t, peerOptions{Counters: 10, Interval: 100})
	bus, dir := newBus(), t.TempDir()
	b := runBridge(t, counterConfig(peer.url(), 6), bus, dir)
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	peer.do("run")
	settle(t, bus, 3, 6)
	b.stop()
	if n := peer.do("sessions").Sessions; n != 1 {
		t.Errorf("the server has %d sessions after an orderly stop, want the one that the next process takes over", n)
	}

	c := counterConfig(peer.url(), 10)
	c.Nodes = c.Nodes[3:] // three are gone, four are new
	b = runBridge(t, c, bus, dir)
	until(t, 20*time.Second, "the new nodes flow", func() bool { return bus.highest("count/9") > 3 })
	if s := b.link.Stats(); s.Connects["reactivated"] != 1 || s.Watched != 7 {
		t.Errorf("the session was not taken over: %+v", s)
	}
	at := bus.highest("count/0")
	time.Sleep(500 * time.Millisecond)
	if now := bus.highest("count/0"); now != at {
		t.Errorf("a node that is not in the configuration any more still counts: %d, then %d", at, now)
	}
	got := bus.counters(t, "count/")
	if got.lost != 0 {
		t.Errorf("%d values lost over a change of the configuration", got.lost)
	}
	b.stop()

	c.OutageBudget = 0 // nothing is to be kept
	b = runBridge(t, c, bus, dir)
	until(t, 20*time.Second, "connected", func() bool { return b.Status().Up })
	b.stop()
	until(t, 5*time.Second, "the session is closed", func() bool { return peer.do("sessions").Sessions <= 1 })
}
