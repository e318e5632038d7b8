package e2e

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const coapSection = "[coap]\n  listen = [\"coap://127.0.0.1:0\"]\n"

// coapAddress follows the gateway over its restarts: the port is another one each time.
func coapAddress(g *gateway) (addr func() string, note func()) {
	var at atomic.Pointer[string]
	note = func() {
		a := g.addr("coap")
		at.Store(&a)
	}
	return func() string { return *at.Load() }, note
}

// TestCoAPKill ends the gateway with SIGKILL in mid-stream, with the cloud coming and going: what was answered with 2.04
// arrives, in order of each device.
func TestCoAPKill(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, coapSection, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	far := consume(t, c.addr(), "application", "plant/#")
	addr, note := coapAddress(g)
	g.start()
	note()
	var fleet []*coapDevice
	for i := range 4 {
		name := fmt.Sprintf("meter%d", i)
		fleet = append(fleet, (&coapDevice{name: name, topic: "plant/" + name, addr: addr}).start(t))
	}
	total := func() int {
		n := 0
		for _, d := range fleet {
			n += d.ackedCount()
		}
		return n
	}
	const kills = 12
	for i := range kills {
		switch i % 4 {
		case 1:
			c.stop()
		case 3:
			c.start()
		}
		begin, more := total(), 20+rand.IntN(100)
		waitFor(t, 60*time.Second, "the stream to go on", func() bool { return total() >= begin+more },
			func() string { return fmt.Sprint(fleet) })
		g.kill()
		g.start()
		note()
	}
	if !c.running() {
		c.start()
	}
	for _, d := range fleet {
		d.stop()
	}
	lost, duplicates, disorder := 0, 0, 0
	for _, d := range fleet {
		v := far.requireAll(t, d.topic, d.ackedCount(), 60*time.Second)
		lost, duplicates, disorder = lost+len(v.lost), duplicates+v.duplicates, disorder+len(v.disorder)
	}
	far.requireSound(t)
	t.Logf("%d kills: %d requests answered with 2.04: lost %d, duplicates %d, reordered %d", kills, total(), lost, duplicates, disorder)
	g.requireDrained("cloud", soon)
	g.stop()
}

// coapClient runs libcoap's client once and returns what it printed.
func coapClient(t *testing.T, g *gateway, method, path, payload string, flags ...string) string {
	t.Helper()
	args := append([]string{"-B", "10", "-v", "6", "-m", method}, flags...)
	if payload != "" {
		args = append(args, "-e", payload)
	}
	r := runLimited(t, exec.Command("coap-client-notls", append(args, "coap://"+g.addr("coap")+path)...))
	return r.out + r.err
}

// TestCoAPAndMQTTMeet: what a CoAP device publishes reaches MQTT devices and the cloud, what an MQTT device retains can be
// read over CoAP, and the refusals are those that are agreed.
func TestCoAPAndMQTTMeet(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, coapSection, `[[auth.rule]]
  user = "*"
  publish = ["plant/#", "full/#"]
  subscribe = ["#"]
  deny_publish = ["secret/#"]
[route.up]
  from = ["plant/#"]
  to = ["cloud"]
[route.full]
  from = ["full/#"]
  to = ["narrow"]
[broker]
  max_packet = "1KiB"
`, uplinkTo("cloud", c.url(), "5"), uplinkTo("narrow", "mqtt://127.0.0.1:9", "5", "[uplink.narrow.buffer]\n  max_bytes = \"2KiB\"\n  when_full = \"refuse\""))
	far := subscribe(t, c.addr(), "%q %t %p", "-V", "mqttv5", "-i", "application", "-q", "1", "-t", "plant/#")
	g.start()
	near := subscribe(t, g.addr(devices), "%q %t %p", "-V", "mqttv5", "-i", "panel", "-q", "1", "-t", "plant/#")

	for _, step := range []struct{ method, path, payload, want string }{
		{"post", "/ps/plant/a", "21.5", "2.04"},
		{"get", "/ps/plant/a", "", "4.04"}, // an event is not kept
		{"put", "/ps/plant/a", "22", "2.01"},
		{"put", "/ps/plant/a", "23", "2.04"},
		{"get", "/ps/plant/a", "", "23"},
		{"delete", "/ps/plant/a", "", "2.02"},
		{"get", "/ps/plant/a", "", "4.04"},
		{"post", "/ps/secret/a", "1", "4.03"},
		{"post", "/ps/tidegate/x", "1", "4.03"},
		{"post", "/ps/plant/a%2Bb", "1", "4.00"},
		{"post", "/ps/plant/a", strings.Repeat("x", 1100), "4.13"},
		{"get", "/elsewhere", "", "4.04"},
	} {
		if out := coapClient(t, g, step.method, step.path, step.payload); !strings.Contains(out, step.want) {
			t.Errorf("%s %s: want %s in\n%s", step.method, step.path, step.want, out)
		}
	}
	full := ""
	waitFor(t, soon, "the buffer to be full", func() bool {
		full = coapClient(t, g, "post", "/ps/full/a", strings.Repeat("x", 300))
		return !strings.Contains(full, "2.04")
	})
	if !strings.Contains(full, "5.03") || !strings.Contains(full, "Max-Age") {
		t.Errorf("a full buffer: want 5.03 with Max-Age in\n%s", full)
	}
	host, port := hostPort(g.addr(devices))
	runLimited(t, exec.Command("mosquitto_pub", "-h", host, "-p", port, "-r", "-t", "plant/m", "-m", "from mqtt"))
	if out := coapClient(t, g, "get", "/ps/plant/m", ""); !strings.Contains(out, "from mqtt") {
		t.Errorf("a retained message of MQTT:\n%s", out)
	}
	want := []string{"1 plant/a 21.5", "1 plant/a 22", "1 plant/a 23", "1 plant/a "}
	for name, who := range map[string]struct {
		*subscriber
		last string // the device's own QoS here, the route's at the cloud
	}{"the cloud": {far, "1 plant/m from mqtt"}, "the panel": {near, "0 plant/m from mqtt"}} {
		waitFor(t, soon, name+" to have everything", func() bool { return len(who.got()) > len(want) })
		if got := who.got(); !slices.Equal(got, append(slices.Clone(want), who.last)) {
			t.Errorf("%s has %q, want %q and %q", name, got, want, who.last)
		}
	}
	requireDelivered(t, g, "cloud", len(want)+1)
	g.stop()
}
