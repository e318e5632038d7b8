package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestLinkFaults: the line to the cloud is cut, goes deaf, goes mute, crawls. After each fault everything arrives in order,
// and what arrives twice repeats its identity.
func TestLinkFaults(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) { linkFaults(t, protocol) })
	}
}

func linkFaults(t *testing.T, protocol string) {
	c := startCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", line.url(), protocol, `  ack_timeout = "3s"`))
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	g.requireConnected("cloud")
	var fleet []*device
	for i, version := range []string{"3.1.1", "5"} {
		name := fmt.Sprintf("dev%d", i)
		d := &device{name: name, topic: "plant/" + name, version: version, qos: 1, window: 20, addr: g.here, pause: 10 * time.Millisecond}
		fleet = append(fleet, d.start(t))
	}
	since := time.Now()
	arrive := func(more int) {
		t.Helper()
		defer func() { t.Logf("after %v", time.Since(since).Round(time.Millisecond)) }()
		begin := far.distinct(fleet[0].topic)
		waitFor(t, 90*time.Second, "messages to arrive", func() bool { return far.distinct(fleet[0].topic) >= begin+more })
	}
	arrive(30)

	for range 3 { // cut in mid-stream
		line.cut()
		waitFor(t, soon, "status to show the cut", func() bool { return !g.uplink("cloud").Connected })
		line.mend()
		arrive(30)
	}

	// Acknowledgements are lost, and the connection seems to live: after ack_timeout it is replaced, and what was not
	// acknowledged comes again.
	for _, way := range []bool{fromCloud, toCloud} {
		taken, swallowed := line.connections(), line.swallowed()
		line.set(func(p *proxy) { p.hole[way] = true })
		waitFor(t, soon, "the line to swallow something", func() bool { return line.swallowed() > swallowed })
		line.mend() // for the next connection; this one stays as it is
		waitFor(t, 90*time.Second, "the dead connection to be replaced", func() bool { return line.connections() > taken })
		arrive(30)
	}

	line.set(func(p *proxy) { p.rate = 4 << 10 })
	arrive(20)
	line.mend()

	copies := 0
	halt(fleet)
	for _, d := range fleet {
		n := d.finish(t, 0, soon)
		copies += n
		v := far.requireAll(t, d.topic, n, 60*time.Second)
		if protocol == "5" && v.duplicates != v.resent {
			t.Errorf("%s: %d duplicates, but only %d repeat a tg-id", d.topic, v.duplicates, v.resent)
		}
		if v.duplicates == 0 {
			t.Logf("%s: no duplicates: did the line lose no acknowledgement?", d.topic)
		}
	}
	if protocol == "5" {
		far.requireSound(t)
	}
	g.requireDrained("cloud", soon)
	requireDelivered(t, g, "cloud", copies)
	if n := g.metrics().sum("tidegate_uplink_reconnects_total", "uplink=cloud"); n < 5 {
		t.Errorf("tidegate_uplink_reconnects_total is %v after five faults", n)
	}
	g.stop()
}
