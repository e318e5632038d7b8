package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestCommands: what is published at the cloud while the gateway is offline reaches a local subscriber when it is back, in
// order and once; it never goes up again, although a route takes everything.
func TestCommands(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) { commands(t, protocol) })
	}
}

func commands(t *testing.T, protocol string) {
	const n = 30
	c := startCloud(t)
	line := newProxy(t, c.addr())
	g := newGateway(t, "[route.all]\n  from = [\"#\"]\n", uplinkTo("cloud", line.url(), protocol, `[[uplink.cloud.command]]
  from = "cmd/{gateway}/#"
  to = "cmd/{rest}"`))
	g.start()
	g.requireConnected("cloud")
	near := subscribe(t, g.addr(devices), "", "-V", mosquittoVersion[protocol], "-i", "valve", "-q", "1", "-t", "cmd/#")
	up := subscribe(t, c.addr(), "", "-i", "watch", "-q", "1", "-t", "#")

	publish(t, c.addr(), "-q", "1", "-t", "cmd/gw/valve", "-m", "command 0")
	near.await("cmd/valve command 0")

	line.cut()
	waitFor(t, soon, "status to show the cut", func() bool { return !g.uplink("cloud").Connected })
	for i := range n {
		publish(t, c.addr(), "-V", mosquittoVersion[protocol], "-q", "1", "-t", "cmd/gw/valve", "-m", fmt.Sprint("command ", i+1))
	}
	line.mend()
	near.await(fmt.Sprint("cmd/valve command ", n))
	for i, got := range near.got() {
		if want := fmt.Sprint("cmd/valve command ", i); got != want {
			t.Fatalf("command %d is %q, want %q; all: %q", i, got, want, near.got())
		}
	}

	// A message that follows the commands up shows that none of them is still on its way.
	publish(t, g.addr(devices), "-q", "1", "-t", "plant/after", "-m", "after")
	up.await("plant/after after")
	g.requireDrained("cloud", soon)
	for _, l := range up.got() {
		if strings.HasPrefix(l, "cmd/valve") {
			t.Errorf("a command went up again: %q", l)
		}
	}
	g.requireLedger("cloud", 1)

	// Nobody listens: acknowledged, so that it does not come for ever.
	near.stop()
	publish(t, c.addr(), "-q", "1", "-t", "cmd/gw/nobody", "-m", "x")
	publish(t, g.addr(devices), "-q", "1", "-t", "plant/after", "-m", "later")
	up.await("plant/after later")
	g.stop()
}

// TestCommandProperties: request and response over MQTT 5 through the gateway.
func TestCommandProperties(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, "[route.all]\n  from = [\"plant/#\", \"reply/#\"]\n", uplinkTo("cloud", c.url(), "5", `[[uplink.cloud.command]]
  from = "cmd/{gateway}/#"
  to = "cmd/{rest}"`))
	g.start()
	g.requireConnected("cloud")
	near := subscribe(t, g.addr(devices), "%t|%R|%D|%p", "-V", "mqttv5", "-q", "1", "-t", "cmd/#")
	publish(t, c.addr(), "-V", "mqttv5", "-q", "1", "-t", "cmd/gw/valve", "-m", "open",
		"-D", "publish", "response-topic", "reply/valve", "-D", "publish", "correlation-data", "c0rr")
	near.await("cmd/valve|reply/valve|c0rr|open")
	far := subscribe(t, c.addr(), "%t|%D|%p", "-V", "mqttv5", "-q", "1", "-t", "reply/#")
	publish(t, g.addr(devices), "-V", "mqttv5", "-q", "1", "-t", "reply/valve", "-m", "opened", "-D", "publish", "correlation-data", "c0rr")
	far.await("reply/valve|c0rr|opened")
	g.stop()
}

// TestStatusTopic: the cloud sees whether the gateway is there, also when it dies.
func TestStatusTopic(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) {
			c := startCloud(t)
			g := newGateway(t, "[route.up]\n  from = [\"#\"]\n", uplinkTo("cloud", c.url(), protocol, `  keep_alive = "5s"`))
			far := subscribe(t, c.addr(), "%t %p", "-q", "1", "-t", "tidegate/#")
			last := func() string {
				if lines := far.got(); len(lines) > 0 {
					return lines[len(lines)-1]
				}
				return ""
			}
			state := func(want string) {
				t.Helper()
				waitFor(t, 60*time.Second, "the status topic to say "+want, func() bool {
					return strings.HasPrefix(last(), "tidegate/gw/status ") && strings.Contains(last(), `"state":"`+want+`"`)
				}, last)
			}
			g.start()
			state("online")
			g.kill()
			state("offline")
			g.start()
			state("online")
			near := subscribe(t, g.addr(devices), "%r %t %p", "-t", "tidegate/gw/status")
			waitFor(t, soon, "the local status", func() bool { return len(near.got()) > 0 })
			if got := near.got()[0]; !strings.HasPrefix(got, "1 ") || !strings.Contains(got, `"state":"online"`) {
				t.Errorf("local status %q, want online, retained", got)
			}
			g.stop()
			state("offline")
		})
	}
}
