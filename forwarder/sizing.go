package forwarder

import "time"

// smallest is what is left of a batch at least where a broker cannot say that it was too large: a line that comes and goes looks the
// same, and no broker takes less. leastText is that where the broker said so.
const (
	smallest  = 8 << 10
	leastText = 1 << 10
)

// growEvery is how often the bound of a batch's text grows again by an eighth, after a refusal made it smaller: to the double in an
// hour, about. Each time that it gets too large costs one batch that is sent in halves.
const growEvery = 10 * time.Minute

// sizing is how long the text of a batch may be, in bytes. It belongs to the drain's goroutine and outlives connections.
type sizing struct {
	most, limit int
	before      int       // limit before the batch that is being divided was refused
	changed     time.Time // when limit did
}

func newSizing(most int) sizing { return sizing{most: most, limit: most, before: most} }

// grow lets the bound grow for the time that has gone by.
func (z *sizing) grow(now time.Time) {
	for z.limit < z.most && now.Sub(z.changed) >= growEvery {
		z.limit = min(z.limit+max(z.limit/8, 1), z.most)
		z.changed = z.changed.Add(growEvery)
	}
}

// shrink makes batches half as long as one that was too large, and not shorter than least.
func (z *sizing) shrink(text, least int) {
	z.limit, z.changed = min(z.limit, max(text/2, least)), time.Now()
}

// restore takes back what was learned from a batch that was refused for the size of one of its records.
func (z *sizing) restore() { z.limit = max(z.limit, z.before) }
