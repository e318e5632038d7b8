package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// siteBroker is a Mosquitto that devices speak to: it keeps all that its sessions are owed, and lets a member of a group have so many
// messages in flight.
func siteBroker(t testing.TB, inFlight int) *cloud {
	t.Helper()
	return startCloud(t, fmt.Sprint("max_inflight_messages ", inFlight), "max_inflight_bytes 0")
}

// attachedTo is the configuration that attaches a gateway of some name to a broker; extra are further lines of [broker.external].
func attachedTo(id, url string, extra ...string) string {
	return fmt.Sprintf(`version = 1
[gateway]
  id = %q
  data_dir = "data"
[admin]
  listen = "http://127.0.0.1:0"
[broker]
  mode = "external"
[broker.external]
  servers = [%q]
%s
[route.up]
  from = ["plant/#"]
`, id, url, strings.Join(extra, "\n"))
}

// newMember is a gateway that is attached to a broker.
func newMember(t testing.TB, id string, broker *cloud, sections ...string) *gateway {
	t.Helper()
	g := newGateway(t)
	g.configure(append([]string{attachedTo(id, broker.url())}, sections...)...)
	return g
}

func (g *gateway) requireAttached() {
	g.t.Helper()
	g.requireBridges("broker")
}

// fleetOf is a number of devices that publish to a broker.
func fleetOf(t testing.TB, broker *cloud, n, qos int) []*device {
	t.Helper()
	var fleet []*device
	for i := range n {
		name := fmt.Sprint("dev", i)
		d := &device{name: name, topic: "plant/" + name, version: []string{"3.1.1", "5"}[i%2], qos: byte(qos), window: 20, pause: time.Millisecond, addr: broker.addr}
		fleet = append(fleet, d.start(t))
	}
	return fleet
}

func ackedBy(fleet []*device) (n int) {
	for _, d := range fleet {
		n += d.ackedCount()
	}
	return n
}

func fleetText(fleet []*device) func() string {
	return func() string {
		text := ""
		for _, d := range fleet {
			text += d.String() + "\n"
		}
		return text
	}
}

// requireEveryOne lets a fleet end and wants every message at the far end, in whatever order. It returns how many there were,
// and how many came more than once.
func requireEveryOne(t testing.TB, far *tally, fleet []*device) (sent, twice int) {
	t.Helper()
	halt(fleet)
	for _, d := range fleet {
		n := d.finish(t, 0, 2*soon)
		sent += n
		waitFor(t, 2*soon, "all of "+d.topic, func() bool { return far.distinct(d.topic) >= n }, func() string {
			return far.verdict(d.topic, n).String()
		})
		v := far.verdict(d.topic, n)
		if len(v.lost) > 0 {
			t.Errorf("%s: of %d messages: %v", d.topic, n, v)
		}
		twice += v.duplicates
	}
	return sent, twice
}

// resume undoes halt.
func resume(fleet []*device) {
	for _, d := range fleet {
		d.mu.Lock()
		d.limit = 0
		d.mu.Unlock()
	}
}

// TestGroupOfGateways: two gateways share the work of one broker. One of them is killed in the middle of it, its share waits at
// the broker, over a restart of that as well, and when it is back nothing that a device had an acknowledgement for is missing.
func TestGroupOfGateways(t *testing.T) {
	site, c := siteBroker(t, 1000), startCloud(t)
	far := consume(t, c.addr(), "application", "plant/#")
	members := []*gateway{newMember(t, "one", site, uplinkTo("cloud", c.url(), "5")), newMember(t, "two", site, uplinkTo("cloud", c.url(), "5"))}
	for _, g := range members {
		g.start()
		g.requireAttached()
	}
	fleet := fleetOf(t, site, 4, 1)
	step := func(what string, more int) {
		t.Helper()
		before := ackedBy(fleet)
		waitFor(t, soon, what, func() bool { return ackedBy(fleet) >= before+more }, fleetText(fleet))
	}
	took := func(g *gateway) int {
		return int(g.metrics().sum("tidegate_ingested_messages_total", "protocol=mqtt"))
	}
	step("devices to send to both", 800)
	waitFor(t, soon, "both members to take messages", func() bool { return took(members[0]) > 100 && took(members[1]) > 100 })
	for range 2 {
		members[1].kill()
		step("devices to send with one member killed", 500)
		members[1].start()
		members[1].requireAttached()
		step("devices to send to both again", 500)
	}
	members[1].kill()
	step("devices to send with one member killed", 300)
	halt(fleet)
	for _, d := range fleet {
		d.finish(t, 0, soon)
	}
	site.stop()
	site.start()
	members[0].requireAttached() // Mosquitto forgets shared subscriptions when it restarts, until somebody subscribes again
	resume(fleet)
	step("devices to send after a restart of the broker", 300)
	members[1].start()
	members[1].requireAttached()
	sent, twice := requireEveryOne(t, far.tally, fleet)
	t.Logf("%d messages, 0 lost, %d more than once; %d taken by one member, %d by the last run of the other", sent, twice, took(members[0]), took(members[1]))
	far.requireSound(t)
	for _, g := range members {
		g.requireDrained("cloud", soon)
		g.stop()
	}
}

// TestMemberAlone: a gateway that shares with nobody, over a restart of the broker or a cut of the line to it, a stop and a kill
// of the gateway. Nothing is lost, and each topic keeps its order; what the gateway says of itself can be seen at the broker.
func TestMemberAlone(t *testing.T) {
	t.Run("QoS 1", func(t *testing.T) {
		site := siteBroker(t, 1000)
		memberAlone(t, 1, site, site.url(), site.stop, site.start)
	})
	t.Run("QoS 2", func(t *testing.T) {
		site := siteBroker(t, 1000)
		line := newProxy(t, site.addr())
		memberAlone(t, 2, site, line.url(), line.cut, line.mend)
	})
}

func memberAlone(t *testing.T, qos int, site *cloud, url string, away, back func()) {
	c := startCloud(t)
	far := consume(t, c.addr(), "application", "plant/#")
	g := newGateway(t)
	g.configure(attachedTo("gw", url, "  group = \"off\"", fmt.Sprint("  qos = ", qos)), uplinkTo("cloud", c.url(), "5"))
	g.start()
	g.requireAttached()
	if code, _ := g.get("/readyz"); code != 200 {
		t.Errorf("/readyz is %d while attached", code)
	}
	fleet := fleetOf(t, site, 4, qos)
	step := func(what string) {
		t.Helper()
		before := ackedBy(fleet)
		waitFor(t, soon, what, func() bool { return ackedBy(fleet) >= before+300 }, fleetText(fleet))
	}
	step("devices to send")
	away()
	waitFor(t, soon, "status to tell that the broker is away", func() bool {
		b := g.bridges()["broker"]
		code, _ := g.get("/readyz")
		return !b.Up && b.LastError != "" && code == 503 && g.metrics().sum("tidegate_bridge_up", "bridge=broker") == 0
	})
	back()
	g.requireAttached()
	step("devices to send with the broker back")
	g.stop()
	step("devices to send with the gateway away")
	g.start()
	g.requireAttached()
	step("devices to send to the gateway again")
	g.kill()
	step("devices to send with the gateway killed")
	g.start()
	g.requireAttached()
	step("devices to send at the end")
	sent, twice := requireEveryOne(t, far.tally, fleet)
	t.Logf("%d messages, 0 lost, %d more than once", sent, twice)
	for _, d := range fleet {
		if v := far.verdict(d.topic, 0); len(v.disorder) > 0 {
			t.Errorf("%s: %v", d.topic, v)
		}
	}
	far.requireSound(t)
	g.requireDrained("cloud", soon)
	near := subscribe(t, site.addr(), "%r %t %p", "-t", "tidegate/#")
	waitFor(t, soon, "the gateway's status at the broker", func() bool { return strings.Contains(strings.Join(near.got(), "\n"), `"state":"online"`) })
	g.stop()
	last := func(topic string) (line string) {
		for _, l := range near.got() {
			if strings.Contains(l, " "+topic+" ") {
				line = l
			}
		}
		return line
	}
	for _, topic := range []string{"tidegate/gw/status", "tidegate/gw/bridge/broker/status"} {
		waitFor(t, soon, topic+" to say offline", func() bool { return strings.Contains(last(topic), `"state":"offline"`) }, func() string { return last(topic) })
	}
}

// TestMemberOnFullDisk: what does not fit on the disk gets no acknowledgement, the broker keeps it, and when there is room again all
// of it arrives.
func TestMemberOnFullDisk(t *testing.T) {
	site, far := siteBroker(t, 1000), newSink(t)
	far.down()
	disk := smallDisk(t, 48)
	other := filepath.Join(disk, "other")
	if err := os.WriteFile(other, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g := newGateway(t)
	g.configure(strings.Replace(attachedTo("gw", site.url()), `"data"`, fmt.Sprintf("%q", filepath.Join(disk, "data")), 1),
		uplinkTo("cloud", far.url(), "5", "[uplink.cloud.buffer]\n  max_bytes = \"1GiB\"\n  compress = \"off\"\n  when_full = \"refuse\""))
	g.start()
	g.requireAttached()
	d := (&device{name: "dev", topic: "plant/dev", version: "5", qos: 1, window: 50, pad: 8000, addr: site.addr}).start(t)
	refusals := func() float64 {
		return g.metrics().sum("tidegate_refused_messages_total", "protocol=mqtt", "reason=busy")
	}
	waitFor(t, 2*soon, "the disk to be full", func() bool { return refusals() > 1 }, d.String)
	full := int(g.metrics().sum("tidegate_ingested_messages_total", "protocol=mqtt"))
	waitFor(t, soon, "devices to send on", func() bool { return d.ackedCount() > full+500 }, d.String)
	sent := d.finish(t, 0, soon)
	g.kill() // what was not acknowledged is the broker's, whatever happens here
	g.start()
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	far.up()
	waitFor(t, 2*soon, "everything to arrive", func() bool { return far.arrived() >= sent }, func() string { return fmt.Sprintf("%d of %d", far.arrived(), sent) })
	g.requireAttached()
	// What the disk did not keep is handed over again behind what it took meanwhile.
	t.Logf("full after %d of %d messages; all arrived, %d after later ones", full, sent, far.requireEach(t, "plant/dev", sent))
	g.requireDrained("cloud", soon)
	g.stop()
}

// TestSiteBrokerCarriesTheRest: behind a broker of one's own the other bridges and the commands of the cloud reach its subscribers,
// each message goes up once although every member would take it, and a node is written by the gateway that has it.
func TestSiteBrokerCarriesTheRest(t *testing.T) {
	plc := startOPCUA(t, 1, time.Second)
	site, c := siteBroker(t, 1000), startCloud(t)
	far := consume(t, c.addr(), "application", "plant/#")
	near := subscribe(t, site.addr(), "%t %p", "-V", "mqttv5", "-i", "panel", "-c", "-x", "3600", "-q", "1", "-t", "plant/#", "-t", "cmd/#")
	up := subscribe(t, c.addr(), "%t %p", "-q", "1", "-t", "cmd/#")
	member := func(id string, more ...string) *gateway {
		g := newGateway(t)
		g.configure(append([]string{
			strings.Replace(attachedTo(id, site.url()), `["plant/#"]`, `["#"]`, 1),
			uplinkTo("cloud", c.url(), "5", "[[uplink.cloud.command]]\n  from = \"down/{gateway}/#\"\n  to = \"cmd/{rest}\""),
		}, more...)...)
		g.start()
		g.requireAttached()
		g.requireConnected("cloud")
		return g
	}
	one := member("one", coapSection, opcuaSection("press", plc.url(), 1)+`  [[opcua.press.write]]
    topic = "cmd/press/setpoint"
    id = "nsu=urn:tidegate:test;s=Double"
`)
	two := member("two")
	one.requireBridges("coap", "press", "broker")

	meter := (&coapDevice{name: "meter", topic: "plant/meter", addr: func() string { return one.addr("coap") }}).start(t)
	waitFor(t, soon, "CoAP messages", func() bool { return meter.ackedCount() >= 60 }, meter.String)
	meter.stop()
	n := meter.ackedCount()
	far.requireAll(t, "plant/meter", n, soon)
	near.await(fmt.Sprintf("plant/meter meter %d", n))
	passed := func() int {
		sum := 0.0
		for _, g := range []*gateway{one, two} {
			sum += g.metrics().sum("tidegate_broker_own_messages_total")
		}
		return int(sum)
	}
	waitFor(t, soon, "the messages to come back to the group", func() bool { return passed() >= n }, func() string { return fmt.Sprint(passed(), " of ", n) })

	// From the cloud: to the site's subscribers, waiting at the cloud while the site's broker is away, and never up again.
	publish(t, c.addr(), "-q", "1", "-t", "down/two/valve", "-m", "open")
	near.await("cmd/valve open")
	site.stop()
	waitFor(t, soon, "the broker to be missed", func() bool { return !two.bridges()["broker"].Up })
	publish(t, c.addr(), "-q", "1", "-t", "down/two/valve", "-m", "close")
	site.start()
	near.await("cmd/valve close")

	// Four times, as the broker deals out in turn: each reaches the member with the node, from a device and from the cloud.
	one.requireAttached()
	two.requireAttached()
	for i := range 4 {
		value := fmt.Sprintf("%d.5", i)
		if i < 2 {
			publish(t, site.addr(), "-q", "1", "-t", "cmd/press/setpoint", "-m", value)
		} else {
			publish(t, c.addr(), "-q", "1", "-t", []string{"down/one/press/setpoint", "down/two/press/setpoint"}[i%2], "-m", value)
		}
		waitFor(t, soon, "the value to be written", func() bool { return plc.do("get", "name", "Double").Value == value })
	}
	publish(t, site.addr(), "-q", "1", "-t", "plant/end", "-m", "end 1")
	far.requireAll(t, "plant/end", 1, soon)
	for _, g := range []*gateway{one, two} {
		g.requireDrained("cloud", soon)
	}
	for _, l := range up.got() { // what a device sent goes up once, what the cloud sent does not
		if strings.HasPrefix(l, "cmd/valve") {
			t.Errorf("a command went up again: %q", l)
		}
	}
	if got := up.got(); len(got) != 2 {
		t.Errorf("the cloud got %q of cmd/#", got)
	}
	if v := far.verdict("plant/meter", n); v.duplicates > 0 {
		t.Errorf("plant/meter: %v", v)
	}
	one.stop()
	two.stop()
}
