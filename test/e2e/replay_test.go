package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// listenAt is head with a listener that keeps its port, for devices that connect again by themselves.
func listenAt(port int) string {
	return strings.Replace(head, "127.0.0.1:0\"\n[admin]", fmt.Sprintf("127.0.0.1:%d\"\n[admin]", port), 1)
}

// commandRule takes cmd/gw/# of the cloud to cmd/#; extra are further lines of the rule.
func commandRule(extra ...string) string {
	return "  [[uplink.cloud.command]]\n    from = \"cmd/{gateway}/#\"\n    to = \"cmd/{rest}\"\n" + strings.Join(extra, "\n")
}

// commandsAs returns how many commands the running gateway has counted under a result.
func (g *gateway) commandsAs(result string) int {
	return int(g.metrics().sum("tidegate_commands_total", "uplink=cloud", "result="+result))
}

func (g *gateway) awaitCommands(result string, n int) {
	g.t.Helper()
	waitFor(g.t, soon, fmt.Sprintf("%d commands to be counted as %s", n, result), func() bool { return g.commandsAs(result) >= n },
		func() string { return fmt.Sprint(g.metrics().sum("tidegate_commands_total")) })
	if got := g.commandsAs(result); got != n {
		g.t.Errorf("%d commands are counted as %s, want %d", got, result, n)
	}
}

// subscriptions returns how often mosquitto_sub was granted its subscriptions.
func (s *subscriber) subscriptions() int {
	return strings.Count(strings.Join(s.debugTail(1<<20), "\n"), "Subscribed (mid")
}

// command publishes a command at the cloud, with user properties in pairs.
func (c *cloud) command(topic, payload string, properties ...string) {
	c.t.Helper()
	args := []string{"-V", "mqttv5", "-q", "1", "-t", "cmd/gw/" + topic, "-m", payload}
	for i := 0; i < len(properties); i += 2 {
		args = append(args, "-D", "publish", "user-property", properties[i], properties[i+1])
	}
	publish(c.t, c.addr(), args...)
}

// TestReplayedCommands: a command that is published again under its identity is dropped and counted, in the same process, after a stop
// and after a kill; with and without encryption.
func TestReplayedCommands(t *testing.T) {
	for name, extra := range map[string]string{"plain": "", "encrypted": "  [uplink.cloud.buffer]\n    encryption_key = { file = \"buffer.key\" }\n"} {
		t.Run(name, func(t *testing.T) {
			c := startCloud(t)
			g := newGateway(t)
			g.configure(listenAt(freePort(t)), uplinkTo("cloud", c.url(), "5", extra, commandRule()))
			g.write("buffer.key", keyOne)
			g.start()
			g.requireConnected("cloud")
			near := subscribe(t, g.addr(devices), "", "-c", "-i", "valve", "-q", "1", "-t", "cmd/#")
			c.command("valve", "open 1", "tg-id", "one")
			near.await("cmd/valve open 1")
			c.command("valve", "open 1", "tg-id", "one")
			c.command("valve", "another payload", "tg-id", "one")
			g.awaitCommands("replayed", 2)
			c.command("pump", "another topic", "tg-id", "one")
			near.await("cmd/pump another topic")
			g.awaitCommands("delivered", 2) // so their identities are on disk

			again := func(n int) {
				t.Helper()
				times := near.subscriptions()
				g.start()
				g.requireConnected("cloud")
				waitFor(t, soon, "the device to come back", func() bool { return near.subscriptions() > times })
				c.command("valve", "open 1", "tg-id", "one")
				c.command("pump", "another topic", "tg-id", "one")
				g.awaitCommands("replayed", 2)
				fresh := fmt.Sprint("fresh ", n)
				c.command("valve", fresh, "tg-id", fresh)
				near.await("cmd/valve " + fresh)
				g.awaitCommands("delivered", 1)
			}
			g.stop()
			again(1)
			g.kill()
			again(2)
			c.command("valve", "fresh 1", "tg-id", "fresh 1")
			g.awaitCommands("replayed", 3)
			if n := g.metrics().sum("tidegate_command_identities", "uplink=cloud"); n != 4 {
				t.Errorf("%v identities are remembered, want 4", n)
			}
			want := "cmd/valve open 1|cmd/pump another topic|cmd/valve fresh 1|cmd/valve fresh 2"
			// What the device had not acknowledged for sure at a kill comes again, as QoS 1 has it.
			if got := strings.Join(slices.Compact(near.got()), "|"); got != want {
				t.Errorf("the device got %s", got)
			}
			near.stop()
			g.stop()
		})
	}
}

// commander publishes numbered commands at the cloud, each with its number as identity.
type commander struct {
	name string
	sent int
}

// send publishes the commands up to n, and goes on until stop is closed; nil: no further.
func (d *commander) send(t *testing.T, addr string, n int, stop <-chan struct{}) {
	w, err := dial(addr, "5", login{client: d.name})
	if err != nil {
		t.Error(err)
		return
	}
	defer w.close()
	for i := 1; ; i++ {
		if i > n {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond): // a pace, so that the kills fall into the stream
			}
		}
		if err := w.publishIdentified("cmd/gw/"+d.name, fmt.Sprint(d.name, " ", i), fmt.Sprint(i)); err != nil {
			t.Errorf("%s: command %d: %v", d.name, i, err)
			return
		}
		d.sent = max(d.sent, i)
	}
}

// publishIdentified publishes with QoS 1 and a tg-id and waits for the PUBACK, which must be the next packet.
func (w *wire) publishIdentified(topic, payload, id string) error {
	props := text(text([]byte{38}, "tg-id"), id)
	body := append(text(nil, topic), 0, 1, byte(len(props)))
	if err := w.send(typePublish|2, append(append(body, props...), payload...)); err != nil {
		return err
	}
	p, err := w.readWithin(soon)
	if err == nil && (p.kind != typePuback || p.reason() >= 0x80) {
		err = fmt.Errorf("packet %#x with reason %#x", p.kind, p.reason())
	}
	return err
}

// TestCommandsThroughKills: two publishers send numbered commands with identities while the gateway is killed again and again. Every one is
// handed over to the device's session, in order and once, but for the one in hand at a kill, which is handed over again when its identity
// was not on disk yet. (What a session holds in memory and has not sent is lost with it.) A replay of them all is dropped whole.
func TestCommandsThroughKills(t *testing.T) {
	const least, kills = 500, 6
	c := startCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t)
	g.configure(listenAt(freePort(t)), uplinkTo("cloud", line.url(), "5", commandRule("    require_id = true")))
	g.start()
	g.requireConnected("cloud")
	near := subscribe(t, g.addr(devices), "%p", "-i", "press", "-c", "-q", "1", "-t", "cmd/#")
	// Shows what is handed over twice, as nothing is sent again with QoS 0. It reads to the end what a gateway sent that is dead.
	witness := subscribe(t, g.addr(devices), "%p", "-i", "witness", "-q", "0", "-t", "cmd/#")
	count := func() int { return len(near.got()) }

	commanders := []*commander{{name: "east"}, {name: "west"}}
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	for _, d := range commanders {
		publishers.Go(func() { d.send(t, c.addr(), 1, stop) }) // ends with stop
	}
	end := sync.OnceFunc(func() { close(stop); publishers.Wait() })
	defer end()
	for i := range kills {
		begin, more := count(), 20+rand.IntN(60)
		waitFor(t, soon, "the commands to go on", func() bool { return count() >= begin+more },
			func() string { return fmt.Sprint(count(), " at kill ", i) })
		g.kill()
		line.cut() // until the device is back
		times := near.subscriptions()
		g.start()
		waitFor(t, soon, "the device to come back", func() bool { return near.subscriptions() > times })
		line.mend()
	}
	end()
	sent := 0
	for _, d := range commanders {
		d.send(t, c.addr(), least, stop) // what is missing of the least, and the others once more
		sent += d.sent
	}
	c.command("east", "last", "tg-id", "last") // commands come in order, so all others have been decided on when it is there
	near.await("last")
	seen := map[string]bool{}
	var first []string
	for _, l := range near.got() {
		if !seen[l] {
			first = append(first, l)
		}
		seen[l] = true
	}
	// What the device had not acknowledged for sure at a kill comes again, as QoS 1 has it.
	lost, twice := sent-(len(first)-1), count()-len(first)
	t.Logf("%d commands, %d kills: lost %d, came twice %d", sent, kills, lost, twice)
	if lost != 0 {
		t.Errorf("%d of %d commands were lost over %d kills", lost, sent, kills)
	}
	shown := witness.got()
	slices.Sort(shown)
	if n := len(shown) - len(slices.Compact(slices.Clone(shown))); n > kills {
		t.Errorf("%d commands were handed over twice with %d kills", n, kills)
	}
	witness.stop()
	if n := int(g.metrics().sum("tidegate_command_identities")); n != sent+1 {
		t.Errorf("%d commands were handed over, want %d", n, sent+1)
	}
	requireOrder(t, first)

	before, dropped := count(), g.commandsAs("replayed")
	for _, d := range commanders {
		d.send(t, c.addr(), d.sent, stop)
	}
	waitFor(t, soon, "all of the replay to be dropped", func() bool { return g.commandsAs("replayed") >= dropped+sent })
	c.command("east", "end", "tg-id", "end")
	near.await("end")
	if got := count(); got != before+1 {
		t.Errorf("%d of the replay were delivered", got-before-1)
	}
	near.stop()
	g.stop()
}

// requireOrder wants the first arrivals of each publisher in their order.
func requireOrder(t *testing.T, lines []string) {
	t.Helper()
	last := map[string]int{}
	for _, l := range lines { // NAME NUMBER
		name, number, ok := strings.Cut(l, " ")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("line %q", l)
		}
		if n < last[name]-1 { // the one that a kill repeats comes behind at most itself
			t.Errorf("%s %d came after %s %d", name, n, name, last[name])
		}
		last[name] = max(last[name], n)
	}
}

// TestCommandsThatAreRefused: for what they are or what they lack; each is acknowledged, so that none is left at the cloud.
func TestCommandsThatAreRefused(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, uplinkTo("cloud", c.url(), "5", "  [[uplink.cloud.command]]\n    from = \"raw/#\"\n    to = \"{rest}\"",
		commandRule("    require_id = true\n    max_age = \"10m\"")))
	g.start()
	g.requireConnected("cloud")
	near := subscribe(t, g.addr(devices), "%t|%p|%P", "-V", "mqttv5", "-q", "1", "-t", "cmd/#", "-t", "tidegate/#")
	now := time.Now()
	at := func(ago time.Duration) string { return now.Add(-ago).UTC().Format(time.RFC3339) }
	c.command("valve", "no identity", "tg-time", at(0))
	c.command("valve", "no time", "tg-id", "1")
	g.awaitCommands("unidentified", 2)
	c.command("valve", "too old", "tg-id", "2", "tg-time", at(time.Hour))
	g.awaitCommands("stale", 1)
	for _, topic := range []string{"tidegate/gw/status", "$SYS/broker/version", "tidegate"} {
		publish(t, c.addr(), "-q", "1", "-t", "raw/"+topic, "-m", "forged")
	}
	g.awaitCommands("invalid", 3)
	c.command("valve", "good", "tg-src", "dev7", "tg-id", "3", "a", "b", "tg-up", "gw/cloud", "tg-seq", "1-normal-1", "tg-time", at(time.Minute))
	near.await("cmd/valve|good|tg-id:3 a:b tg-time:" + at(time.Minute))
	if n := len(near.got()); n != 2 { // the gateway's own status as well
		t.Errorf("the device got %q", near.got())
	}
	if l := near.got()[0]; strings.Contains(l, "forged") || !strings.Contains(l, `"state":"online"`) {
		t.Errorf("status %q", l)
	}
	near.stop()
	g.stop()
}

// TestCommandExpiresInASession: a command that waits for a device for longer than it lives is not delivered; what lives longer is. The rule's
// expire counts for what says nothing of it.
func TestCommandExpiresInASession(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, uplinkTo("cloud", c.url(), "5", commandRule("    expire = \"2s\"")))
	g.start()
	g.requireConnected("cloud")
	device := []string{"-c", "-i", "valve", "-q", "1", "-V", "mqttv5", "-x", "3600", "-t", "cmd/#"}
	subscribe(t, g.addr(devices), "", device...).stop()
	publish(t, c.addr(), "-V", "mqttv5", "-q", "1", "-t", "cmd/gw/valve", "-m", "brief", "-D", "publish", "message-expiry-interval", "1")
	publish(t, c.addr(), "-V", "mqttv5", "-q", "1", "-t", "cmd/gw/valve", "-m", "by rule")
	publish(t, c.addr(), "-V", "mqttv5", "-q", "1", "-t", "cmd/gw/valve", "-m", "long", "-D", "publish", "message-expiry-interval", "3600")
	g.awaitCommands("delivered", 3)
	time.Sleep(2100 * time.Millisecond)
	near := subscribe(t, g.addr(devices), "", device...)
	near.await("cmd/valve long")
	if got := near.got(); len(got) != 1 {
		t.Errorf("the device got %q", got)
	}
	if n := g.metrics().sum("tidegate_session_drops_total", "reason=expired"); n != 2 {
		t.Errorf("%v counted as expired, want 2", n)
	}
	near.stop()
	g.stop()
}

// TestIdentitiesWithoutKey: identities whose key is lost keep the gateway from starting until they are given up; ls names their key.
func TestIdentitiesWithoutKey(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, uplinkTo("cloud", c.url(), "5", "  [uplink.cloud.buffer]\n    encryption_key = { file = \"buffer.key\" }", commandRule()))
	g.write("buffer.key", keyOne)
	g.start()
	g.requireConnected("cloud")
	near := subscribe(t, g.addr(devices), "", "-q", "1", "-t", "cmd/#")
	c.command("valve", "open", "tg-id", "one")
	near.await("cmd/valve open")
	g.awaitCommands("delivered", 1)
	near.stop()
	if r := g.run("buffer", "ls"); !strings.Contains(r.out, "cloud: 1 identities of commands are encrypted with key ") {
		t.Errorf("ls: %v", r)
	}
	g.stop()
	if r := g.run("buffer", "purge", "--yes", "--uplink", "cloud"); r.code != 0 || strings.Contains(r.out, "identities") {
		t.Errorf("purge with the key: %v", r)
	}
	g.write("buffer.key", keyTwo)
	if r := g.run("run"); r.code != 78 || !strings.Contains(r.err, "commands/cloud") || !strings.Contains(r.err, "buffer purge") {
		t.Fatalf("started with another key: %v", r)
	}
	if r := g.run("buffer", "purge", "--yes", "--uplink", "cloud"); r.code != 0 || !strings.Contains(r.out, "1 identities of commands purged") {
		t.Fatalf("purge without the key: %v", r)
	}
	g.start()
	g.stop()
}
