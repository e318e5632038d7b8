package forwarder

import (
	"context"
	"fmt"
	"maps"
	"time"

	"tidegate/buffer"
)

// census counts, once after the start, the records of a lane that were on disk already, each under its route. It runs
// beside the drain and evictions, so records may leave before it comes to them, or be skipped by it because they are just
// leaving: such a record is counted as found when it has left. The lane's mu guards it.
type census struct {
	at      buffer.Seq // everything up to here was looked at
	top     buffer.Seq // the last record that was there at the start
	left    runs       // what left ahead of the census
	skipped runs       // what was not there any more when the census came by
}

// found moves a record that was on disk at the start from those of unknown route to its own. The caller says where it is.
func (l *lane) found(c *cell) {
	l.unnamed.recovered.Add(-1)
	l.unnamed.buffered.Add(-1)
	c.recovered.Add(1)
}

// uncounted reports whether the census has not counted seq.
func (c *census) uncounted(seq buffer.Seq) bool {
	return seq <= c.top && (seq > c.at || c.skipped.has(seq))
}

// pass notes that the census comes to seq, having found nothing since the last one.
func (c *census) pass(seq buffer.Seq) {
	if seq > c.at+1 {
		c.skipped.list = append(c.skipped.list, run{c.at + 1, seq - 1})
	}
	c.at = seq
}

// countRecovered makes the census of a lane.
func (l *lane) countRecovered(ctx context.Context) error {
	err := l.queue.Scan(l.queue.Floor(), func(rec buffer.Rec) bool {
		route, _, _ := splitRecord(rec.Data)
		c := l.ledger.cell(route, l.uplink, l.kind)
		l.mu.Lock()
		defer l.mu.Unlock()
		if ctx.Err() != nil || rec.Seq > l.census.top {
			return false
		}
		if !l.census.left.has(rec.Seq) {
			l.found(c)
			c.buffered.Add(1)
		}
		l.census.pass(rec.Seq)
		return true
	})
	if ctx.Err() != nil {
		return nil // stopping: nobody will read the ledger of this process any more
	}
	if err != nil {
		return fmt.Errorf("count the records of %s: %w", l.queue.Name(), err)
	}
	l.mu.Lock()
	l.census.pass(l.census.top + 1)
	l.census.left = runs{}
	l.mu.Unlock()
	return nil
}

const (
	// attributeEvery is how long to wait for a quiet moment before attribute looks again.
	attributeEvery = 5 * time.Second
	// quietFor is how long a moment must stay quiet: longer than a record is on its way between the buffer and the ledger.
	quietFor = 100 * time.Millisecond
)

// attribute finds out whose the records were that the disk lost after they had been counted as buffered: it counts what is
// left in the queue, and what is missing was lost. That works at a quiet moment only, so it looks twice; it returns false
// when there was none, and is then to be called again.
func (l *lane) attribute(ctx context.Context) bool {
	l.mu.Lock()
	unknown, counting := l.unknown, l.census.at < l.census.top
	l.mu.Unlock()
	if unknown == 0 || counting {
		return unknown == 0
	}
	first, next := l.missing()
	if first == nil || !pause(ctx, quietFor) {
		return false
	}
	second, nextAgain := l.missing()
	if second == nil || next != nextAgain || !maps.Equal(first, second) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, n := range second {
		c.buffered.Add(-n)
		c.places[placeDamaged].Add(uint64(n))
		l.unknown -= n
	}
	return l.unknown == 0
}

// missing compares the ledger with the queue and returns what each route has too few in the queue, and the sequence that
// the next record will get. It returns nil when something was on its way between the two.
func (l *lane) missing() (map[*cell]int64, buffer.Seq) {
	before := l.queue.Stats()
	left := make(map[*cell]int64)
	var total int64
	err := l.queue.Scan(before.Floor, func(rec buffer.Rec) bool {
		route, _, _ := splitRecord(rec.Data)
		left[l.ledger.cell(route, l.uplink, l.kind)]++
		total++
		return true
	})
	after := l.queue.Stats()
	if err != nil || before.Next != after.Next || after.WaitingBytes > 0 || uint64(total) != after.Records {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := make(map[*cell]int64)
	var sum int64
	for _, c := range l.ledger.all() {
		if c.uplink != l.uplink || c.lane != l.kind {
			continue
		}
		n := c.buffered.Load() - left[c]
		if n < 0 {
			return nil, 0
		}
		missing[c] = n
		sum += n
	}
	if sum != l.unknown {
		return nil, 0
	}
	return missing, after.Next
}
