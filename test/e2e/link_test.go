package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestLinkFaults: the line to the cloud is cut, goes deaf, goes mute, is long, crawls, and with TLS changes bytes. After each fault
// everything arrives in order, and what arrives twice repeats its identity.
func TestLinkFaults(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		for _, tls := range []bool{false, true} {
			name := protocol
			if tls {
				name += " TLS"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				linkFaults(t, protocol, tls)
			})
		}
	}
}

func linkFaults(t *testing.T, protocol string, tls bool) {
	c := newCloud(t)
	target, scheme, extra := c.addr(), "mqtt", []string{`  ack_timeout = "3s"`}
	if tls {
		dir := t.TempDir()
		writeCertificates(t, dir)
		port := freePort(t)
		c = newCloud(t, fmt.Sprintf("listener %d 127.0.0.1", port), "cafile "+dir+"/ca.crt", "certfile "+dir+"/server.crt", "keyfile "+dir+"/server.key")
		target, scheme = fmt.Sprintf("127.0.0.1:%d", port), "mqtts"
		extra = append(extra, fmt.Sprintf("  ca = %q", filepath.Join(dir, "ca.crt")))
	}
	c.start()
	line := newProxy(t, target)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n",
		uplinkTo("cloud", strings.Replace(line.url(), "mqtt", scheme, 1), protocol, extra...))
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	g.requireConnected("cloud")
	var fleet []*device
	for i, version := range []string{"3.1.1", "5"} {
		name := fmt.Sprintf("dev%d", i)
		d := &device{
			name: name, topic: "plant/" + name, version: version, qos: 1, window: 20, pad: 300, addr: g.here,
			pause: 8 * time.Millisecond,
		}
		fleet = append(fleet, d.start(t))
	}
	since := time.Now()
	arrive := func(what string, more int) {
		t.Helper()
		defer func() { t.Logf("%s: after %v", what, time.Since(since).Round(time.Millisecond)) }()
		begin := far.distinct(fleet[0].topic)
		waitFor(t, 90*time.Second, "messages to arrive", func() bool { return far.distinct(fleet[0].topic) >= begin+more })
	}
	arrive("begun", 30)

	for range 3 { // cut in mid-stream
		line.cut()
		waitFor(t, soon, "status to show the cut", func() bool { return !g.uplink("cloud").Connected })
		line.mend()
		arrive("cut", 30)
	}
	silentLine(t, g, line, arrive)

	// With Mosquitto's window of 20 a round trip of 200 ms lets no more than 100 messages a second through, and status says so.
	line.set(func(p *proxy) { p.delay = 100 * time.Millisecond })
	arrive("a round trip of 200 ms", 30)
	if protocol == "5" {
		requireWindowShown(t, g)
	}
	line.mend()
	line.set(func(p *proxy) { p.rate = 64 << 10 })
	arrive("64 KiB/s", 60)
	line.mend()
	if tls { // else nobody could see it
		for _, way := range []bool{toCloud, fromCloud} {
			taken := line.connections()
			line.set(func(p *proxy) { p.flip[way] = true })
			waitFor(t, 90*time.Second, "the connection with a changed byte to be replaced", func() bool { return line.connections() > taken })
			arrive("changed byte", 30)
		}
	}

	copies := 0
	halt(fleet)
	for _, d := range fleet {
		n := d.finish(t, 0, soon)
		copies += n
		v := far.requireAll(t, d.topic, n, 90*time.Second)
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

// ackTimeoutLine is what the gateway logs when it gives a silent connection up, with the time.
var ackTimeoutLine = regexp.MustCompile(`time=(\S+) .*no acknowledgement for the oldest message for 3s`)

// silentLine lets the line swallow what comes from the cloud, what goes to it, and both, while the connection seems to live. After
// ack_timeout the gateway replaces the connection, for that reason, and what was not acknowledged comes again.
func silentLine(t *testing.T, g *gateway, line *proxy, arrive func(string, int)) {
	t.Helper()
	const reason = "reason=ack_timeout"
	for _, ways := range [][]bool{{fromCloud}, {toCloud}, {fromCloud, toCloud}} {
		before := g.metrics().sum("tidegate_uplink_reconnects_total", "uplink=cloud", reason)
		taken, swallowed := line.connections(), line.swallowed()
		begin := time.Now()
		line.set(func(p *proxy) {
			for _, way := range ways {
				p.hole[way] = true
			}
		})
		waitFor(t, soon, "the line to swallow something", func() bool { return line.swallowed() > swallowed })
		line.mend() // for the next connection; this one stays as it is
		waitFor(t, 90*time.Second, "the dead connection to be replaced", func() bool { return line.connections() > taken })
		waitFor(t, soon, "the metric to tell why", func() bool {
			return g.metrics().sum("tidegate_uplink_reconnects_total", "uplink=cloud", reason) > before
		})
		if found := ackTimeoutLine.FindAllStringSubmatch(g.log.tail(1<<20), -1); len(found) > 0 {
			if at, err := time.Parse(time.RFC3339, found[len(found)-1][1]); err == nil {
				t.Logf("silent line: given up by its own log %v after it fell silent (ack_timeout 3 s)", at.Sub(begin).Round(100*time.Millisecond))
			}
		} else {
			t.Error("the log does not say that no acknowledgement came")
		}
		arrive("silence", 30)
	}
}

// requireWindowShown wants status to say that the window of the broker is what bounds the rate.
func requireWindowShown(t *testing.T, g *gateway) {
	t.Helper()
	waitFor(t, 60*time.Second, "status to show a full window", func() bool {
		u := g.uplink("cloud")
		return u.Window == 20 && u.Granted == 20 && u.InFlight >= 19
	}, g.uplinkText)
	var r result
	waitFor(t, 60*time.Second, "status to say so in words", func() bool {
		r = g.run("status")
		return r.code == 0 && strings.Contains(r.out, " of 20 ") && strings.Contains(r.out, "the cloud broker grants 20 messages in flight")
	}, func() string { return r.String() })
}
