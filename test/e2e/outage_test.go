package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOutage is the main job with Mosquitto on both sides: devices send while the cloud is there, while it is gone and when
// it is back; everything arrives, in order of each device, and what comes twice can be told. One case for each protocol
// version of the uplink; in each, devices of both versions send with QoS 0, 1 and 2.
func TestOutage(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) { outage(t, protocol) })
	}
}

func outage(t *testing.T, protocol string) {
	const each = 40 // messages of a device in each of the three phases
	c := startCloud(t)
	g := newGateway(t, `[route.up]
  from = ["plant/#"]
  topic = "sites/{gateway}/{topic}"
`, uplinkTo("cloud", c.url(), protocol))

	// Mosquitto keeps this consumer's session, and what was acknowledged for it, over its restart.
	far := subscribe(t, c.addr(), "%t|%P|%p", "-V", "mqttv5", "-i", "application", "-c", "-x", "3600", "-q", "1", "-t", "sites/#")

	g.start()
	g.requireConnected("cloud")
	var names []string
	phase := func(from int) {
		var wg sync.WaitGroup
		for _, version := range []string{"3.1.1", "5"} {
			for qos := range 3 {
				name := fmt.Sprintf("d%s-q%d", version, qos)
				if from == 1 {
					names = append(names, name)
				}
				wg.Go(func() { publishLines(t, g.addr(devices), version, name, "plant/"+name+"/t", qos, from, each) })
			}
		}
		wg.Wait()
	}

	phase(1)
	c.stop()
	waitFor(t, soon, "status to show the outage", func() bool { return !g.uplink("cloud").Connected })
	phase(1 + each)
	copies := len(names) * 2 * each
	g.requireLedger("cloud", copies)
	if n := g.uplink("cloud").Records; n < int64(len(names)*each) {
		t.Errorf("status shows %d records while the cloud is gone, want at least %d", n, len(names)*each)
	}
	c.start()
	phase(1 + 2*each)
	copies += len(names) * each

	counts := newTally()
	done := 0
	waitFor(t, 60*time.Second, "every message to arrive", func() bool {
		lines := far.got()
		for _, line := range lines[done:] {
			counts.add(parseArrival(t, line))
		}
		done = len(lines)
		for _, name := range names {
			if counts.distinct("sites/gw/plant/"+name+"/t") < 3*each {
				return false
			}
		}
		return true
	}, func() string {
		text := ""
		for _, name := range names {
			text += name + ": " + counts.verdict("sites/gw/plant/"+name+"/t", 3*each).String() + "\n"
		}
		return text
	})
	for _, name := range names {
		v := counts.requireAll(t, "sites/gw/plant/"+name+"/t", 3*each, 0)
		// Nothing was sent twice by a device, so that every duplicate is the gateway's and repeats its identity.
		if protocol == "5" && v.duplicates != v.resent {
			t.Errorf("%s: %d duplicates, but only %d repeat a tg-id", name, v.duplicates, v.resent)
		}
	}
	if protocol == "5" {
		if len(counts.ids) != copies {
			t.Errorf("%d different tg-id for %d messages", len(counts.ids), copies)
		}
		counts.requireSound(t)
	}
	g.requireDrained("cloud", soon)
	g.requireLedger("cloud", copies)
	requireDelivered(t, g, "cloud", copies)
	g.stop()
}

// requireDelivered wants all copies of an uplink in the place "delivered", in every way the gateway tells it.
func requireDelivered(t *testing.T, g *gateway, uplink string, copies int) {
	t.Helper()
	m := g.metrics()
	if places := m.places(uplink); int(places["delivered"]) != copies || len(places) != 1 {
		t.Errorf("ledger: %s, want delivered=%d alone", ledgerText(places), copies)
	}
	if n := m.sum("tidegate_delivered_messages_total", "uplink="+uplink); int(n) != copies {
		t.Errorf("tidegate_delivered_messages_total is %v, want %d", n, copies)
	}
	if n := m.sum("tidegate_buffer_records", "uplink="+uplink); n != 0 {
		t.Errorf("tidegate_buffer_records is %v, want 0", n)
	}
	if u := g.uplink(uplink); u.Records != 0 || u.Delivered != int64(copies) {
		t.Errorf("status: %d records left and %d delivered, want 0 and %d", u.Records, u.Delivered, copies)
	}
}

var userProperty = regexp.MustCompile(`(tg-[a-z]+):(\S+)`)

// parseArrival reads a line of mosquitto_sub's format "%t|%P|%p".
func parseArrival(t *testing.T, line string) arrival {
	t.Helper()
	parts := strings.SplitN(line, "|", 3)
	if len(parts) != 3 {
		t.Fatalf("line %q", line)
	}
	a := arrival{topic: parts[0], payload: parts[2], properties: map[string]string{}}
	for _, m := range userProperty.FindAllStringSubmatch(parts[1], -1) {
		a.properties[m[1]] = m[2]
	}
	a.id, a.seq, a.src = a.properties["tg-id"], a.properties["tg-seq"], a.properties["tg-src"]
	return a
}

// TestOutageAndRestart: the gateway is stopped and started while the cloud is gone; the backlog survives it, under the same
// identities.
func TestOutageAndRestart(t *testing.T) {
	const n = 200
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"#\"]\n", uplinkTo("five", c.url(), "5"), uplinkTo("three", c.url(), "3.1.1"))
	far := consume(t, c.addr(), "application", "a/#")
	c.stop()
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "a/dev", 1, 1, n)
	before := g.run("buffer", "export")
	g.stop()
	g.start()
	if u := g.uplink("five"); u.Records != n {
		t.Errorf("after the restart status shows %d records, want %d", u.Records, n)
	}
	after := g.run("buffer", "export")
	if before.code != 0 || before.out != after.out || strings.Count(before.out, "\n") != 2*n {
		t.Errorf("buffer export: before the restart %d lines, after it %d lines, equal: %t; want %d equal ones\n%s",
			strings.Count(before.out, "\n"), strings.Count(after.out, "\n"), before.out == after.out, 2*n, before.err+after.err)
	}
	c.start()
	v := far.requireAll(t, "a/dev", n, 60*time.Second)
	g.requireDrained("five", soon)
	g.requireDrained("three", soon)
	waitFor(t, soon, "both uplinks to have delivered", func() bool {
		v = far.verdict("a/dev", n)
		return v.duplicates >= n
	})
	if len(far.ids) != n {
		t.Errorf("%d different tg-id, want %d from the uplink over MQTT 5", len(far.ids), n)
	}
	g.requireLedger("five", n)
	g.requireLedger("three", n)
	g.stop()
}

// TestMessageProperties: what a message carries beside its payload arrives at the cloud over MQTT 5, with the identity.
func TestMessageProperties(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, `[route.up]
  from = ["plant/#"]
  topic = "up/{user}/{client}/{protocol}/{1}/{rest}"
[auth]
  anonymous = true
`, uplinkTo("cloud", c.url(), "5"))
	far := subscribe(t, c.addr(), "%t|%C|%R|%D|%E|%r|%P|%p", "-V", "mqttv5", "-i", "app", "-q", "1", "-t", "up/#")
	keeper := func(format string) string {
		s := subscribe(t, c.addr(), format, "-V", "mqttv5", "-t", "up/#")
		defer s.stop()
		waitFor(t, soon, "a retained message", func() bool { return len(s.got()) > 0 })
		return s.got()[0]
	}
	g.start()
	publish(t, g.addr(devices), "-V", "mqttv5", "-i", "press7", "-t", "plant/a/b", "-q", "1", "-r", "-m", "21.5",
		"-D", "publish", "content-type", "text/plain", "-D", "publish", "response-topic", "reply/here",
		"-D", "publish", "correlation-data", "c0rr", "-D", "publish", "message-expiry-interval", "3600",
		"-D", "publish", "user-property", "unit", "celsius")
	waitFor(t, soon, "the message", func() bool { return len(far.got()) > 0 })
	parts := strings.Split(far.got()[0], "|")
	if len(parts) != 8 {
		t.Fatalf("line %q", far.got()[0])
	}
	for i, want := range []string{"", "text/plain", "reply/here", "c0rr"} {
		if want != "" && parts[i] != want {
			t.Errorf("field %d is %q, want %q", i, parts[i], want)
		}
	}
	if want := "up//press7/mqtt/plant/a/b"; parts[0] != want && parts[0] != strings.Replace(want, "up//", "up/anonymous/", 1) {
		t.Errorf("topic %q, want %q", parts[0], want)
	}
	if n, err := strconv.Atoi(parts[4]); err != nil || n > 3600 || n < 3500 {
		t.Errorf("expiry %q, want what is left of 3600 s", parts[4])
	}
	if !strings.Contains(parts[6], "unit:celsius") || !strings.Contains(parts[6], "tg-id:") ||
		!strings.Contains(parts[6], "tg-seq:") || !strings.Contains(parts[6], "tg-src:press7") {
		t.Errorf("user properties %q", parts[6])
	}
	if parts[7] != "21.5" {
		t.Errorf("payload %q", parts[7])
	}
	if got := keeper("%r %p"); got != "1 21.5" {
		t.Errorf("a later subscriber at the cloud gets %q, want the retained message", got)
	}
	g.stop()
}
