package forwarder

import (
	"sync"
	"time"

	"tidegate/buffer"
)

// receipts follows what was appended until it is on disk: it observes how long that took for every message, and takes
// copies whose commit failed out of the ledger's buffered ones. It asks for one notification per commit and not one per
// message: while one is outstanding, arrivals only line up. The line is bounded by what the log lets wait for the disk.
type receipts struct {
	log     *buffer.Log
	observe func(seconds float64)

	mu      sync.Mutex
	line    []arrival
	waiting bool
}

// arrival is one message that was appended.
type arrival struct {
	pos    buffer.Pos
	at     time.Time
	first  stored
	others []stored // nil for most messages: they have one copy
}

// stored is one copy of a message and where it was counted when it was appended. A copy that was merged counts here as
// well: what it went into may fail.
type stored struct {
	cell  *cell
	place place // placeCount: buffered
}

// add is called with rising positions, nearly: two goroutines may swap places between their append and this call, which
// makes one of them wait for the commit after its own.
func (r *receipts) add(a arrival) {
	r.mu.Lock()
	r.line = append(r.line, a)
	start := !r.waiting
	r.waiting = true
	r.mu.Unlock()
	if start {
		r.log.Notify(a.pos, r.settled)
	}
}

// settled runs on the committing goroutine, or on that of add when the commit was quicker.
func (r *receipts) settled(err error) {
	var failed []arrival
	r.mu.Lock()
	n := 0
	if err == nil {
		now := time.Now()
		for n < len(r.line) && r.log.Durable(r.line[n].pos) {
			r.observe(max(now.Sub(r.line[n].at), 0).Seconds())
			n++
		}
	} else {
		failed = append(failed, r.line...)
		n = len(r.line)
	}
	rest := copy(r.line, r.line[n:])
	clear(r.line[rest:])
	r.line = r.line[:rest]
	r.waiting = rest > 0
	var next buffer.Pos
	if r.waiting {
		next = r.line[0].pos
	}
	r.mu.Unlock()
	if next != 0 {
		r.log.Notify(next, r.settled)
	}
	for _, a := range failed {
		// A failed disk is rare, so each one may ask for itself; some may have come after the failure.
		r.log.Notify(a.pos, a.settled)
	}
}

// settled counts the copies of one message after a failure of the disk. The device got no acknowledgement: it still has
// the message, so its copies are refused ones.
func (a *arrival) settled(err error) {
	if err == nil {
		return
	}
	for i := -1; i < len(a.others); i++ {
		s := a.first
		if i >= 0 {
			s = a.others[i]
		}
		s.cell.refuse(s.place)
	}
}
