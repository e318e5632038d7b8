package link

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what a link has seen since it was made.
type Stats struct {
	// Values came in; Overflows of them say that the server threw older ones away before them.
	Values, Overflows uint64
	// Missing notifications the server did not have any more, Unreadable ones could not be decoded, and Republished ones
	// came at the second asking.
	Missing, Unreadable, Republished uint64
	// Homeless values came for items that the sink could not take, as their nodes could not be described: they are lost, but
	// for the last one of each item.
	Homeless uint64
	// Abandoned subscriptions ended before the server had sent all that it may have held for them.
	Abandoned uint64
	// Connects by the rung of the ladder that they ended on.
	Connects map[string]uint64
	// Watched and Failed items.
	Watched, Failed int
	// Budget is for how long the server keeps values of the item with the shortest queue; 0: not known.
	Budget time.Duration
	// Heard is when the last value came.
	Heard time.Time
}

type counters struct {
	values, overflows, holes, broken, republished, homeless, abandoned atomic.Uint64
	good, failed, budget, heard                                        atomic.Int64

	mu       sync.Mutex
	connects map[string]uint64
}

func (c *counters) connected(rung string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connects == nil {
		c.connects = map[string]uint64{}
	}
	c.connects[rung]++
}

// Stats returns the figures of this moment.
func (l *Link) Stats() Stats {
	c := &l.stats
	c.mu.Lock()
	connects := maps.Clone(c.connects)
	c.mu.Unlock()
	s := Stats{
		Values: c.values.Load(), Overflows: c.overflows.Load(), Missing: c.holes.Load(), Unreadable: c.broken.Load(),
		Republished: c.republished.Load(), Homeless: c.homeless.Load(), Abandoned: c.abandoned.Load(), Connects: connects, Watched: int(c.good.Load()), Failed: int(c.failed.Load()),
		Budget: time.Duration(c.budget.Load()),
	}
	if n := c.heard.Load(); n != 0 {
		s.Heard = time.Unix(0, n)
	}
	return s
}
