package gate

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// smallConnect is what any CONNECT may take.
	smallConnect = 2 << 10
	// maxEarly bounds what larger ones take together while they are not whole, and nobody knows who sends them.
	maxEarly = 32 << 20
)

// reserveEarly sets n more bytes aside and reports whether they are there.
func (l *Limits) reserveEarly(n int) bool {
	if l.early.Add(int64(n)) <= maxEarly {
		return true
	}
	l.early.Add(int64(-n))
	return false
}

// Limits bound the connections of one listener, or of several together: a device that finds one of them closed to it should
// not get in by the next.
type Limits struct {
	mu    sync.Mutex   // never held while calling out
	early atomic.Int64 // bytes of CONNECT packets that are not whole
	max   int          // 0: no bound
	open  int
	addrs addrTable
}

// NewLimits returns bounds with the meaning that ListenerOptions gives to MaxConns, MaxPerAddr, RatePerAddr and Burst.
func NewLimits(maxConns, maxPerAddr int, ratePerAddr float64, burst int) *Limits {
	return &Limits{max: maxConns, addrs: newAddrTable(maxPerAddr, ratePerAddr, burst)}
}

// enter counts a connection in and returns how long it has to wait for its turn, or why it is not let in.
func (l *Limits) enter(k addrKey, now time.Time) (time.Duration, Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.max > 0 && l.open >= l.max:
		return 0, ReasonTooMany
	case l.addrs.full(k):
		return 0, ReasonTooManyPerAddr
	}
	l.open++
	return l.addrs.enter(k, now), ""
}

// leave counts a connection off.
func (l *Limits) leave(k addrKey, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.addrs.leave(k, now)
}
