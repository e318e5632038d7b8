package forwarder

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
)

// Bounds of the gap reports. Reports beyond maxGaps push out the oldest one, which is counted; each holds up to maxRanges
// ranges. A report goes out at most every gapInterval, so that what is being lost at length arrives as few long ranges.
const (
	maxGaps     = 64
	maxRanges   = 512
	gapInterval = time.Second
	// gapRetry is how long reports rest when the cloud does not want them.
	gapRetry = 10 * time.Minute
)

// gaps keeps the reports of one uplink until the cloud acknowledged them, in memory and on disk (gapstore.go).
type gaps struct {
	dropped prometheus.Counter // reports beyond the bound
	store   gapStore
	wake    chan struct{} // capacity 1
	some    atomic.Bool   // there are reports; lets a drain at full speed pass by without the lock

	mu      sync.Mutex
	list    []*gapReport
	sending *gapReport   // taken by due; nil: none
	gone    []buffer.Seq // on disk and needed no more
	next    time.Time    // no report goes out before
	closes  int          // how often in a row the peer closed the connection on one
}

func newGaps(dropped prometheus.Counter) *gaps {
	return &gaps{dropped: dropped, store: gapStore{wake: make(chan struct{}, 1)}, wake: make(chan struct{}, 1)}
}

// add notes that a sequence will not come, unless g is nil. It joins the newest report of its kind that has room. It may run
// within a call of the log, and does not call it.
func (g *gaps) add(k gapKey, seq buffer.Seq) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	defer signal(g.store.wake)
	for i := len(g.list) - 1; i >= 0; i-- {
		o := g.list[i]
		if o.gapKey != k {
			continue
		}
		if o.lost.continues(seq) || len(o.lost.list) < maxRanges {
			o.lost.add(seq)
			o.unsaved = true
			return
		}
		break
	}
	r := &gapReport{gapKey: k, unsaved: true}
	r.lost.add(seq)
	g.list = append(g.list, r)
	g.trim()
	g.some.Store(true)
	signal(g.wake)
}

// trim lets go of the oldest reports beyond the bound; mu is held.
func (g *gaps) trim() {
	for len(g.list) > maxGaps {
		g.end(g.list[0])
		g.list[0] = nil
		g.list = g.list[1:]
		g.dropped.Inc()
	}
}

// signal wakes up whoever waits on c, which has a capacity of 1, now or later.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// end notes that a report is needed no more; mu is held.
func (g *gaps) end(r *gapReport) {
	r.over = true
	g.gone = append(g.gone, r.stored...)
	r.stored = nil
	signal(g.store.wake)
}

// due takes the report that is to be sent now, if there is one. It ends by arrived or comes back by failed.
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
	g.sending = g.list[0]
	g.list = g.list[1:]
	g.some.Store(len(g.list) > 0)
	g.next = now.Add(gapInterval)
	return g.sending
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
func (g *gaps) arrived(r *gapReport) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closes, g.sending = 0, nil
	g.end(r)
}

// failed takes back a report that the cloud does not have, to be sent after rest.
func (g *gaps) failed(r *gapReport, rest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sending = nil
	g.list = append([]*gapReport{r}, g.list...)
	g.trim()
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
