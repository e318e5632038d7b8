package uplink

import (
	"sync"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// TestMoveOnASlowLineRepeatsNothing: acknowledgements come steadily, but a full window takes several times ack_timeout to
// empty, as on a slow line. The move waits for it.
func TestMoveOnASlowLineRepeatsNothing(t *testing.T) {
	t.Parallel()
	first, second := cloud(t, testpeer.Options{}), cloud(t, testpeer.Options{})
	first.Down()
	var mu sync.Mutex
	var due time.Time
	second.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if due.Before(now) {
			due = now
		}
		due = due.Add(50 * time.Millisecond) // twenty acknowledgements a second
		return testpeer.Answer{Delay: due.Sub(now)}
	}})
	h := run(t, variants()[0], func(c *config.Uplink) {
		c.AckTimeout, c.MaxInFlight = config.Duration(2*time.Second), 160
		c.Failback = config.Age(300 * time.Millisecond)
	}, nil, first.URL(), second.URL())
	connected(t, h)
	if err := first.Up(); err != nil {
		t.Fatal(err)
	}
	const n = 600
	l := newLedger(n)
	if err := l.drain(within(t, 2*time.Minute), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
		t.Fatalf("%v\n%s", err, h.log)
	}
	l.once(t, success)
	a, b := len(telemetry(first)), len(telemetry(second))
	if h.reconnects(endAckTimeout) > 0 {
		return // the machine stood still for that long, and a connection that is given up is left in no order
	}
	if a == 0 || b == 0 || a+b != n {
		t.Errorf("%d messages arrived at the first server and %d at the second, of %d", a, b, n)
	}
	if w := second.Wills(); len(w) > 0 {
		t.Error("the will was published over an orderly move")
	}
}
