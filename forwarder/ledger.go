package forwarder

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/forwarder/pipeline"
)

// place is where a copy ended up, or is.
type place uint8

// The places of a copy. Every copy is in exactly one of them.
const (
	placeDelivered place = iota // the cloud acknowledged it
	placeFiltered               // a step of the route let it go
	placeMerged                 // it went into another copy
	placeExpired                // it was not worth sending any more
	placeEvicted                // the buffer was full
	placeRefused                // it was not taken, the device still has it
	placeDead                   // it is a dead letter, or was one that was given up; one that is resent is buffered again
	placePurged                 // the operator removed it
	placeDamaged                // the disk lost it
	placeCount

	// bufferedName is the place that is counted up and down: copies on disk, or on the way there.
	bufferedName = "buffered"
	unroutedName = "unrouted"
)

func (p place) String() string {
	return [placeCount]string{"delivered", "filtered", "merged", "expired", "evicted", "refused", "dead", "purged", "damaged"}[p]
}

// cell counts the copies of one route for one uplink and lane. At every quiet moment taken + recovered = buffered + all
// places. The lane is apart so that a lane's buffered copies can be compared with what is in its queue.
type cell struct {
	cellKey

	taken     atomic.Uint64 // copies made of messages since the start
	recovered atomic.Int64  // copies found on disk; falls where they are found to be another route's
	buffered  atomic.Int64
	places    [placeCount]atomic.Uint64
}

func (c *cell) take(p place) {
	c.taken.Add(1)
	c.places[p].Add(1)
}

func (c *cell) takeBuffered() {
	c.taken.Add(1)
	c.buffered.Add(1)
}

// refuse moves a copy that never reached the disk from where it was counted to the refused ones; placeCount stands for
// buffered.
func (c *cell) refuse(from place) {
	c.places[placeRefused].Add(1)
	if from == placeCount {
		c.buffered.Add(-1)
		return
	}
	c.places[from].Add(^uint64(0)) // minus one
}

// ledger accounts for every copy: message × route × uplink.
type ledger struct {
	unrouted atomic.Uint64

	mu      sync.RWMutex
	uplinks []string // never shrinks: cells hold places in it
	cells   map[cellKey]*cell
}

type cellKey struct {
	route  string
	uplink int
	lane   pipeline.Lane
}

func newLedger(uplinks []string) *ledger {
	return &ledger{uplinks: uplinks, cells: make(map[cellKey]*cell)}
}

// names returns the uplinks by their places.
func (l *ledger) names() []string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clone(l.uplinks)
}

// index returns the place of an uplink, making one when it is new.
func (l *ledger) index(uplink string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.uplinks, uplink)
	if i < 0 {
		i = len(l.uplinks)
		l.uplinks = append(l.uplinks, uplink)
	}
	return i
}

// cell returns the cell of a route, making it when it is new: records on disk may belong to routes that are configured no
// more. The name may be bytes of a record; it is copied only then. An empty name stands for records whose route is not
// known: not yet, because they were on disk at the start and the census has not come to them, or never, because the disk
// lost them before that.
func (l *ledger) cell(route []byte, uplink int, lane pipeline.Lane) *cell {
	l.mu.RLock()
	c := l.cells[cellKey{string(route), uplink, lane}]
	l.mu.RUnlock()
	if c != nil {
		return c
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := cellKey{string(route), uplink, lane}
	if c = l.cells[key]; c == nil {
		c = &cell{cellKey: key}
		l.cells[key] = c
	}
	return c
}

// all returns the cells in order of route, uplink and lane.
func (l *ledger) all() []*cell {
	l.mu.RLock()
	cells := make([]*cell, 0, len(l.cells))
	for _, c := range l.cells {
		cells = append(cells, c)
	}
	l.mu.RUnlock()
	slices.SortFunc(cells, func(a, b *cell) int {
		return cmp.Or(cmp.Compare(a.route, b.route), cmp.Compare(a.uplink, b.uplink), cmp.Compare(a.lane, b.lane))
	})
	return cells
}

// total sums one place over all routes of an uplink.
func (l *ledger) total(uplink int, p place) uint64 {
	var n uint64
	l.mu.RLock()
	defer l.mu.RUnlock()
	for k, c := range l.cells {
		if k.uplink == uplink {
			n += c.places[p].Load()
		}
	}
	return n
}

// Entry is one line of the ledger: the copies of one route for one uplink since the start of the process.
type Entry struct {
	Route  string `json:"route"`
	Uplink string `json:"uplink"`
	// Taken copies were made of messages that came in, Recovered ones were on disk at the start. Together they are the
	// sum of the places.
	Taken     uint64            `json:"taken"`
	Recovered uint64            `json:"recovered"`
	Places    map[string]uint64 `json:"places"`
}

// Ledger is all of it at one moment. While messages flow it may be off by those that are just changing their place.
type Ledger struct {
	Entries  []Entry `json:"entries"`
	Unrouted uint64  `json:"unrouted"` // messages that matched no route
}

func (l *ledger) snapshot() Ledger {
	s := Ledger{Unrouted: l.unrouted.Load()}
	cells := l.all()
	names := l.names() // after the cells: each of them has its name by then
	for _, c := range cells {
		if c.route == "" && c.recovered.Load() == 0 {
			continue // every route is known
		}
		n := len(s.Entries)
		if up := names[c.uplink]; n == 0 || s.Entries[n-1].Route != c.route || s.Entries[n-1].Uplink != up {
			s.Entries = append(s.Entries, Entry{Route: c.route, Uplink: up, Places: make(map[string]uint64, placeCount+1)})
			n++
		}
		e := &s.Entries[n-1]
		e.Taken += c.taken.Load()
		e.Recovered += uint64(max(c.recovered.Load(), 0))
		for p := range placeCount {
			e.Places[p.String()] += c.places[p].Load()
		}
		e.Places[bufferedName] += uint64(max(c.buffered.Load(), 0))
	}
	return s
}

// ledgerCollector shows the ledger as metrics.
type ledgerCollector struct {
	ledger    *ledger
	copies    *prometheus.Desc
	delivered *prometheus.Desc
}

func newLedgerCollector(l *ledger) *ledgerCollector {
	return &ledgerCollector{
		ledger: l,
		copies: prometheus.NewDesc("tidegate_ledger_total",
			"Copies (message x route x uplink) by the place they are in; the place buffered also falls.",
			[]string{"route", "uplink", "place"}, nil),
		delivered: prometheus.NewDesc("tidegate_delivered_messages_total",
			"Messages that the cloud broker acknowledged.", []string{"uplink"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.copies
	ch <- c.delivered
}

// Collect implements prometheus.Collector. The type of the ledger is left open, because buffered goes up and down.
func (c *ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	line := func(v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.copies, prometheus.UntypedValue, float64(v), labels...)
	}
	snapshot := c.ledger.snapshot()
	for _, e := range snapshot.Entries {
		for p, n := range e.Places {
			line(n, e.Route, e.Uplink, p)
		}
	}
	line(snapshot.Unrouted, "", "", unroutedName)
	for i, up := range c.ledger.names() {
		ch <- prometheus.MustNewConstMetric(c.delivered, prometheus.CounterValue,
			float64(c.ledger.total(i, placeDelivered)), up)
	}
}
