package uplink

import (
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// deaf is a broker that accepts every CONNECT and acknowledges nothing.
func deaf(testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: true} }

// cutting is a broker that accepts every CONNECT and closes over the first PUBLISH.
func cutting(testpeer.Received) testpeer.Answer {
	return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
}

// TestZombieFirstServer: a first server that lets clients in and takes nothing is not "the first server that works"; the
// standby is.
func TestZombieFirstServer(t *testing.T) {
	for name, publish := range map[string]func(testpeer.Received) testpeer.Answer{"deaf": deaf, "cutting": cutting} {
		t.Run(name, func(t *testing.T) {
			first, second := cloud(t, testpeer.Options{}), cloud(t, testpeer.Options{})
			first.SetScript(testpeer.Script{Publish: publish})
			h := run(t, variants()[0], quick, nil, first.URL(), second.URL())
			eventually(t, "the second server to be used", func() bool { return h.Status().Connected && h.Status().Server == second.URL() })
		})
	}
}

// TestConnectionWorthHaving: one that held for long with nothing to take is, one that took nothing and was given up is not.
func TestConnectionWorthHaving(t *testing.T) {
	h := open(t, variants()[0], nil, "mqtt://s0")
	for _, c := range []struct {
		label  string
		lived  time.Duration
		useful bool
		want   bool
	}{
		{endNetwork, time.Second, true, true},
		{endNetwork, 2 * time.Hour, false, true},
		{endNetwork, time.Second, false, false},
		{endAckTimeout, 2 * time.Hour, false, false},
		{endClosed, 2 * time.Hour, false, false}, // by the user of the link, over what it refused
		{endClosed, time.Second, true, true},
	} {
		h.useful = c.useful
		if got := h.worked(ended(c.label, "x"), c.lived); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// TestReturnToZombie: the uplink works on its second server. The first one comes back, lets clients in and acknowledges
// nothing. The uplink may try it, and has to go on with the second one.
func TestReturnToZombie(t *testing.T) {
	for name, publish := range map[string]func(testpeer.Received) testpeer.Answer{"deaf": deaf, "cutting": cutting} {
		t.Run(name, func(t *testing.T) {
			first, second := cloud(t, testpeer.Options{}), cloud(t, testpeer.Options{})
			first.Down()
			h := run(t, variants()[0], func(c *config.Uplink) {
				quick(c)
				c.Failback = config.Age(300 * time.Millisecond)
			}, nil, first.URL(), second.URL())
			l := newLedger(10)
			if err := l.drain(within(t, time.Minute), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
				t.Fatalf("on the second server: %v\n%s", err, h.log)
			}
			first.SetScript(testpeer.Script{Publish: publish})
			if err := first.Up(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it moved", func() bool { return h.reconnects(endFailback) >= 1 })
			l = newLedger(10)
			if err := l.drain(within(t, time.Minute), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
				t.Fatalf("after the move to a server that takes nothing not one message arrives, though the second server works: %v; connections %d and %d; %+v",
					err, len(first.Connects()), len(second.Connects()), h.Status())
			}
		})
	}
}
