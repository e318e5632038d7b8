package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestKill ends the gateway with SIGKILL again and again in mid-stream, with the cloud coming and going, and wants every
// acknowledged message at the far end, in order of first arrival. Devices send again what was not acknowledged: that is a
// new message to the gateway, so their own numbers are what is counted. Two uplinks carry the same stream, one over each
// protocol version. scripts/soak sets TIDEGATE_E2E_KILLS for a longer run.
func TestKill(t *testing.T) {
	kills := 32
	if text := os.Getenv("TIDEGATE_E2E_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		kills = n
	}
	c := startCloud(t)
	g := newGateway(t, `[route.five]
  from = ["plant/#"]
  to = ["five"]
  topic = "five/{topic}"
[route.three]
  from = ["plant/#"]
  to = ["three"]
  topic = "three/{topic}"
`, uplinkTo("five", c.url(), "5"), uplinkTo("three", c.url(), "3.1.1"))
	far := consume(t, c.addr(), "application", "five/#", "three/#")

	var fleet []*device
	for i, version := range []string{"3.1.1", "5", "3.1.1", "5"} {
		qos := byte(1 + i/2)
		name := fmt.Sprintf("dev%d", i)
		fleet = append(fleet, &device{
			name: name, topic: "plant/" + name, version: version, qos: qos, window: 40, addr: g.here, pause: time.Millisecond,
		})
	}
	g.start()
	for _, d := range fleet {
		d.start(t)
	}
	total := func() int {
		n := 0
		for _, d := range fleet {
			n += d.ackedCount()
		}
		return n
	}
	for i := range kills {
		switch i % 4 {
		case 1:
			c.stop()
		case 3:
			c.start()
		}
		// Kill somewhere in the stream, not at a moment the clock prefers.
		begin, more := total(), 20+rand.IntN(150)
		waitFor(t, 60*time.Second, "the stream to go on", func() bool { return total() >= begin+more },
			func() string { return fmt.Sprint(fleet) })
		g.kill()
		if i%3 == 0 {
			g.startInVain(time.Duration(rand.IntN(40)) * time.Millisecond)
		}
		g.start()
	}
	if !c.running() {
		c.start()
	}
	sent := 0
	lost, duplicates, disorder := 0, 0, 0
	halt(fleet)
	for _, d := range fleet {
		n := d.finish(t, 0, 60*time.Second)
		sent += n
		for _, way := range []string{"five/", "three/"} {
			v := far.requireAll(t, way+d.topic, n, 90*time.Second)
			lost += len(v.lost)
			duplicates += v.duplicates
			disorder += len(v.disorder)
		}
	}
	far.requireSound(t)
	t.Logf("%d kills: %d messages acknowledged, two copies each: lost %d, duplicates %d, reordered %d",
		kills, sent, lost, duplicates, disorder)
	g.requireDrained("five", soon)
	g.requireDrained("three", soon)
	g.stop()
}

// TestStopInMidStream: SIGTERM while devices send ends the gateway soon, with exit code 0; nothing acknowledged is lost.
func TestStopInMidStream(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	var fleet []*device
	for i, version := range []string{"3.1.1", "5"} {
		name := fmt.Sprintf("dev%d", i)
		d := &device{name: name, topic: "plant/" + name, version: version, qos: 1, window: 100, addr: g.here}
		fleet = append(fleet, d.start(t))
	}
	for range 3 {
		begin := fleet[0].ackedCount()
		waitFor(t, soon, "the stream to go on", func() bool { return fleet[0].ackedCount() > begin+500 })
		took := g.stop()
		t.Logf("orderly stop took %v", took.Round(time.Millisecond))
		if took > 12*time.Second {
			t.Errorf("orderly stop took %v", took)
		}
		g.start()
	}
	halt(fleet)
	for _, d := range fleet {
		far.requireAll(t, d.topic, d.finish(t, 0, soon), 60*time.Second)
	}
	far.requireSound(t)
	g.requireDrained("cloud", soon)
	g.stop()
}
