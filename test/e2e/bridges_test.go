package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// bridgeStatus is what `status --json` says of a bridge.
type bridgeStatus struct {
	Name      string
	Up        bool
	LastError string `json:"last_error"`
}

// bridges asks the running gateway.
func (g *gateway) bridges() map[string]bridgeStatus {
	g.t.Helper()
	var s struct{ Bridges []bridgeStatus }
	r := g.run("status", "--json")
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		g.t.Fatalf("status: %v: %v", err, r)
	}
	m := map[string]bridgeStatus{}
	for _, b := range s.Bridges {
		m[b.Name] = b
	}
	return m
}

func (g *gateway) requireBridges(names ...string) {
	g.t.Helper()
	waitFor(g.t, 60*time.Second, "the bridges to be up", func() bool {
		all := g.bridges()
		for _, name := range names {
			if !all[name].Up {
				return false
			}
		}
		return true
	}, func() string { return fmt.Sprintf("%+v", g.bridges()) })
}

// opcuaSection lists counters of a server.
func opcuaSection(name, url string, counters int) string {
	text := fmt.Sprintf("[opcua.%s]\n  endpoint = %q\n  publishing_interval = \"200ms\"\n  sampling_interval = \"0ms\"\n", name, url)
	for i := range counters {
		text += fmt.Sprintf("  [[opcua.%s.node]]\n    id = \"nsu=urn:tidegate:test;s=Counter%d\"\n    topic = \"plant/%s/counter%d\"\n", name, i, name, i)
	}
	return text
}

// TestThreeProtocolsThroughAnOutage: MQTT, CoAP and OPC UA devices at once, while the cloud goes away and comes back, and the
// gateway is stopped and started in between: all of it arrives, in order of each source, and the ledger adds up.
func TestThreeProtocolsThroughAnOutage(t *testing.T) {
	const counters = 20
	plc := startOPCUA(t, counters, 100*time.Millisecond)
	c := startCloud(t)
	g := newGateway(t, coapSection, opcuaSection("press", plc.url(), counters), `[route.up]
  from = ["plant/#"]
`, uplinkTo("cloud", c.url(), "5"))
	far := consume(t, c.addr(), "application", "plant/#")
	addr, note := coapAddress(g)
	g.start()
	note()
	g.requireBridges("coap", "press")
	plc.do("run")
	mqtt := (&device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 20, addr: g.here, pause: 2 * time.Millisecond}).start(t)
	coap := (&coapDevice{name: "meter", topic: "plant/meter", addr: addr}).start(t)
	step := func(what string) {
		t.Helper()
		counted, m, n := plc.do("count").Count, mqtt.ackedCount(), coap.ackedCount()
		waitFor(t, 60*time.Second, what, func() bool {
			return mqtt.ackedCount() >= m+100 && coap.ackedCount() >= n+50 && plc.do("count").Count >= counted+20
		}, mqtt.String, coap.String)
	}
	step("devices to send with the cloud there")
	c.stop()
	step("devices to send with the cloud gone")
	waitFor(t, soon, "the line to be down", func() bool { return !g.uplink("cloud").Connected })
	before := int(g.metrics().places("cloud")["delivered"]) // all that this process delivers: the cloud comes back to the next one
	g.stop()
	g.start()
	note()
	g.requireBridges("coap", "press")
	step("devices to send after a restart with the cloud gone")
	c.start()
	step("devices to send with the cloud back")
	coap.stop()
	halt([]*device{mqtt})
	sent := mqtt.finish(t, 0, soon)
	last := plc.do("stop").Count

	far.requireAll(t, "plant/dev", sent, 60*time.Second)
	far.requireAll(t, "plant/meter", coap.ackedCount(), 60*time.Second)
	for i := range counters {
		far.requireAll(t, fmt.Sprintf("plant/press/counter%d", i), last+1, 60*time.Second)
	}
	far.requireSound(t)
	g.requireDrained("cloud", soon)
	m := g.metrics()
	places := m.places("cloud")
	after := int(places["delivered"])
	t.Logf("ledgers: %d delivered by the first process, %s by the second; %d different records arrived", before, ledgerText(places), len(far.ids))
	if len(places) != 1 || before+after != len(far.ids) {
		t.Errorf("the ledgers of both processes add up to %d delivered and hold %s, want the %d records that arrived", before+after, ledgerText(places), len(far.ids))
	}
	for _, bridge := range []string{"coap", "press"} {
		if n := m.sum("tidegate_bridge_up", "bridge="+bridge); n != 1 {
			t.Errorf("tidegate_bridge_up of %s is %v", bridge, n)
		}
	}
	g.stop()
}

// TestBridgeStatusTopics: whether a bridge is up can be seen locally and at the cloud, retained, and changes with its peer.
func TestBridgeStatusTopics(t *testing.T) {
	plc := startOPCUA(t, 1, time.Second)
	c := startCloud(t)
	g := newGateway(t, coapSection, opcuaSection("press", plc.url(), 1), "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	g.requireBridges("coap", "press")
	g.requireConnected("cloud")
	state := func(addr, name string) string {
		host, port := hostPort(addr)
		r := runLimited(t, exec.Command("mosquitto_sub", "-h", host, "-p", port, "-C", "1", "-W", "2", "-F", "%r %p", "-t", "tidegate/gw/bridge/"+name+"/status"))
		retained, payload, _ := strings.Cut(strings.TrimSpace(r.out), " ")
		var s struct{ State, Since, Version string }
		if err := json.Unmarshal([]byte(payload), &s); err != nil || retained != "1" || s.Since == "" || s.Version == "" {
			return "nothing: " + r.out
		}
		return s.State
	}
	want := func(name, state_ string) {
		t.Helper()
		for where, addr := range map[string]string{"here": g.addr(devices), "at the cloud": c.addr()} {
			waitFor(t, 60*time.Second, name+" to be "+state_+" "+where, func() bool { return state(addr, name) == state_ },
				func() string { return state(addr, name) })
		}
	}
	want("coap", "online")
	want("press", "online")
	plc.do("exit")
	want("press", "offline")
	if b := g.bridges()["press"]; b.Up || b.LastError == "" {
		t.Errorf("status: %+v", b)
	}
	g.stop()
	if s := state(c.addr(), "coap"); s != "offline" {
		t.Errorf("after an orderly stop the cloud still sees %s", s)
	}
}

// TestOPCUACommands looks around in a real server by name and by URL, and writes through a topic.
func TestOPCUACommands(t *testing.T) {
	plc := startOPCUA(t, 2, time.Second)
	g := newGateway(t, opcuaSection("press", plc.url(), 1)+`  [[opcua.press.write]]
    topic = "cmd/press/setpoint"
    id = "nsu=urn:tidegate:test;s=Double"
[[auth.rule]]
  user = "*"
  publish = ["cmd/#", "mine/#"]
  subscribe = ["#"]
`)
	for _, server := range []string{"press", plc.url()} {
		if r := g.run("opcua", "endpoints", server); r.code != 0 || !strings.Contains(r.out, "None") || !strings.Contains(r.out, "anonymous") {
			t.Errorf("endpoints %s: %v", server, r)
		}
		if r := g.run("opcua", "browse", server, "--depth", "2"); r.code != 0 || !strings.Contains(r.out, "nsu=urn:tidegate:test;s=Counter1") {
			t.Errorf("browse %s: %v", server, r)
		}
		if r := g.run("opcua", "read", server, "nsu=urn:tidegate:test;s=Int64", "--json"); r.code != 0 || !strings.Contains(r.out, `"v":-9223372036854775808,`) {
			t.Errorf("read %s: %v", server, r)
		}
	}
	for _, bad := range []struct {
		args []string
		code int
	}{
		{[]string{"opcua", "read", "press"}, 2},
		{[]string{"opcua", "read", "presss", "i=85"}, 2},
		{[]string{"opcua", "read", "press", "bogus"}, 2},
		{[]string{"opcua", "endpoints", "http://127.0.0.1"}, 2},
		{[]string{"opcua", "endpoints", fmt.Sprintf("opc.tcp://127.0.0.1:%d", freePort(t))}, 69},
		{[]string{"opcua", "trust", "press"}, 1},
	} {
		if r := g.run(bad.args...); r.code != bad.code || r.err == "" {
			t.Errorf("%v: %v, want exit code %d", bad.args, r, bad.code)
		}
	}
	g.start()
	g.requireBridges("press")
	host, port := hostPort(g.addr(devices))
	waitFor(t, soon, "the value to be written", func() bool {
		runLimited(t, exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", "cmd/press/setpoint", "-m", "42.5"))
		return plc.do("get", "name", "Double").Value == "42.5"
	})
	// The outcome goes where its sender may publish, and nowhere else.
	replies := subscribe(t, g.addr(devices), "", "-V", "mqttv5", "-i", "panel", "-q", "1", "-t", "mine/#", "-t", "plant/forged")
	for _, topic := range []string{"plant/forged", "mine/outcome"} {
		runLimited(t, exec.Command("mosquitto_pub", "-V", "mqttv5", "-h", host, "-p", port, "-q", "1", "-t", "cmd/press/setpoint", "-m", "43",
			"-D", "publish", "response-topic", topic))
	}
	waitFor(t, soon, "the outcome", func() bool { return len(replies.got()) > 0 })
	if got := replies.got(); len(got) != 1 || got[0] != `mine/outcome {"ok":true}` {
		t.Errorf("outcomes %q", got)
	}
	g.stop()
}
