package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestOutageOverWebSocket is the main job with the line to the cloud over WebSocket: what is sent before, while and after the
// cloud is gone arrives, in order, and every duplicate can be told.
func TestOutageOverWebSocket(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) {
			const each = 200
			ws := freePort(t)
			c := startCloud(t, fmt.Sprintf("listener %d 127.0.0.1", ws), "protocol websockets")
			server := fmt.Sprintf("ws://127.0.0.1:%d/mqtt", ws)
			g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", server, protocol))
			far := subscribe(t, c.addr(), "%t|%P|%p", "-V", "mqttv5", "-i", "application", "-c", "-x", "3600", "-q", "1", "-t", "plant/#")
			g.start()
			g.requireConnected("cloud")
			if s := g.uplink("cloud").Server; s != server {
				t.Errorf("connected to %s, want %s", s, server)
			}
			publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, each)
			c.stop()
			waitFor(t, soon, "status to show the outage", func() bool { return !g.uplink("cloud").Connected })
			publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1+each, each)
			g.requireLedger("cloud", 2*each)
			c.start()
			publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1+2*each, each)
			counts, done := newTally(), 0
			waitFor(t, 60*time.Second, "every message to arrive", func() bool {
				lines := far.got()
				for _, line := range lines[done:] {
					counts.add(parseArrival(t, line))
				}
				done = len(lines)
				return counts.distinct("plant/dev") == 3*each
			})
			v := counts.requireAll(t, "plant/dev", 3*each, 0)
			if protocol == "5" {
				if v.duplicates != v.resent {
					t.Errorf("%d duplicates, but only %d repeat a tg-id", v.duplicates, v.resent)
				}
				counts.requireSound(t)
			}
			g.requireDrained("cloud", soon)
			requireDelivered(t, g, "cloud", 3*each)
			g.stop()
		})
	}
}

// TestReturnToTheFirstServer: the uplink works over the second server while the first one is away, and goes back to it once
// that has answered for a while; devices send all the time, and nothing is lost, repeated or out of order.
func TestReturnToTheFirstServer(t *testing.T) {
	const each = 200
	judge := []string{"-V", "mqttv5", "-i", "application", "-c", "-x", "3600", "-q", "1", "-t", "plant/#"}
	first, second := startCloud(t), startCloud(t)
	atFirst := subscribe(t, first.addr(), "%t|%P|%p", judge...)
	first.stop() // it keeps the session of its judge
	atSecond := subscribe(t, second.addr(), "%t|%P|%p", judge...)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", fmt.Sprintf(
		"[uplink.cloud]\n  servers = [%q, %q]\n  failback = \"2s\"\n", first.url(), second.url()))
	g.start()
	g.requireConnected("cloud")
	waitFor(t, soon, "the note about the first server", func() bool {
		return strings.Contains(g.run("status").out, first.url()+" does not answer")
	})
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, each)
	first.start()
	sent := each
	waitFor(t, 60*time.Second, "the uplink to return", func() bool {
		publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1+sent, each)
		sent += each
		u := g.uplink("cloud")
		return u.Connected && u.Server == first.url()
	})
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1+sent, each)
	sent += each
	g.requireDrained("cloud", soon)

	counts := newTally()
	waitFor(t, soon, "every message to arrive", func() bool { return len(atFirst.got())+len(atSecond.got()) >= sent })
	for _, line := range append(atSecond.got(), atFirst.got()...) {
		counts.add(parseArrival(t, line))
	}
	v := counts.requireAll(t, "plant/dev", sent, 0)
	if v.duplicates != 0 || len(atFirst.got()) == 0 {
		t.Errorf("%d duplicates; %d messages at the first server, %d at the second", v.duplicates, len(atFirst.got()), len(atSecond.got()))
	}
	counts.requireSound(t)
	if n := g.metrics().sum("tidegate_uplink_reconnects_total", "uplink=cloud", "reason=failback"); n != 1 {
		t.Errorf("the uplink returned %v times", n)
	}
	requireDelivered(t, g, "cloud", sent)
	g.stop()
}
