package forwarder

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the gap reports. Reports beyond maxGaps push out the oldest one, which is counted; a report goes out at most
// every gapInterval, so that what is being lost at length arrives as few long ranges.
const (
	maxGaps     = 1024
	gapInterval = time.Second
	// gapRetry is how long reports rest when the cloud does not want them.
	gapRetry = 10 * time.Minute
)

// gaps keeps the reports of one uplink until the cloud acknowledged them. They are kept in memory only: after a restart
// the sequence numbers themselves still show that something is missing.
type gaps struct {
	lost prometheus.Counter
	wake chan struct{} // capacity 1
	some atomic.Bool   // there are reports; lets a drain at full speed pass by without the lock

	mu     sync.Mutex
	list   []gapReport
	next   time.Time // no report goes out before
	closes int       // how often in a row the peer closed the connection on one
}

func newGaps(lost prometheus.Counter) *gaps {
	return &gaps{lost: lost, wake: make(chan struct{}, 1)}
}

// add notes a range. It joins a range it continues.
func (g *gaps) add(r gapReport) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.list) - 1; i >= 0 && i >= len(g.list)-4; i-- {
		o := &g.list[i]
		if o.epoch == r.epoch && o.lane == r.lane && o.reason == r.reason && o.to+1 == r.from {
			o.to = r.to
			return
		}
	}
	if len(g.list) >= maxGaps {
		copy(g.list, g.list[1:])
		g.list = g.list[:maxGaps-1]
		g.lost.Inc()
	}
	g.list = append(g.list, r)
	g.some.Store(true)
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// due takes the report that is to be sent now, if there is one. It comes back by failed.
func (g *gaps) due() *gapReport {
	if !g.some.Load() {
		return nil
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.list) == 0 || now.Before(g.next) {
		return nil
	}
	r := g.list[0]
	g.list = g.list[1:]
	g.some.Store(len(g.list) > 0)
	g.next = now.Add(gapInterval)
	return &r
}

// delay returns how long until a report is due, and whether there is one at all.
func (g *gaps) delay() (time.Duration, bool) {
	if !g.some.Load() {
		return 0, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(time.Until(g.next), 0), len(g.list) > 0
}

// arrived notes that the cloud has a report.
func (g *gaps) arrived() {
	g.mu.Lock()
	g.closes = 0
	g.mu.Unlock()
}

// failed takes back a report that the cloud does not have, to be sent after rest.
func (g *gaps) failed(r *gapReport, rest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append([]gapReport{*r}, g.list...)
	g.some.Store(true)
	g.next = time.Now().Add(max(rest, gapInterval))
}

// closed notes that the peer closed the connection while a report was unanswered. Some brokers close on a topic they do
// not allow: after three times in a row reports rest, so that they cannot keep the records from flowing.
func (g *gaps) closed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closes++; g.closes >= 3 {
		g.closes = 0
		g.next = time.Now().Add(gapRetry)
	}
}
