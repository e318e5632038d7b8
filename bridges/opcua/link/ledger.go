package link

import (
	"sync"
)

// delivery is a notification on its way to the disk.
type delivery struct {
	term     uint64 // of the ledger
	sequence uint32 // 0: the server does not wait for it
	values   []Value
}

// ledger is what the server is to be told: which notifications are on disk. Callbacks of the disk write to it.
type ledger struct {
	mu sync.Mutex
	// term is that of the subscription, which counts those that were before it: a server that was started anew may use their
	// numbers again.
	term     uint64
	underway int      // handed over and not on disk yet
	acks     []uint32 // on disk, and the server does not know
	failed   []uint32 // never will be on disk
	changed  chan struct{}
}

// begin counts a delivery in, and returns its term.
func (g *ledger) begin() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.underway++
	return g.term
}

// cancel takes back what begin counted.
func (g *ledger) cancel() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.underway--
}

// end is told what became of a delivery. It never blocks.
func (g *ledger) end(d delivery, err error) {
	g.mu.Lock()
	g.underway--
	switch {
	case d.term != g.term || d.sequence == 0: // of a subscription that is no more, or of none: nobody to tell
	case err != nil:
		g.failed = append(g.failed, d.sequence)
	default:
		g.acks = append(g.acks, d.sequence)
	}
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default: // somebody looks already
	}
}

// forget drops what belongs to a subscription that is no more.
func (g *ledger) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term++
	g.acks, g.failed = nil, nil
}

// takeAcks hands out what can be acknowledged; giveBack returns what did not reach the server.
func (g *ledger) takeAcks() (acks []uint32, term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	acks, g.acks = g.acks, nil
	return acks, g.term
}

func (g *ledger) giveBack(term uint64, acks []uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if term == g.term {
		g.acks = append(g.acks, acks...)
	}
}

func (g *ledger) state() (underway int, failed []uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.underway, g.failed
}

// takeFailed hands out the notifications that have to be asked for again.
func (g *ledger) takeFailed() []uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	failed := g.failed
	g.failed = nil
	return failed
}
