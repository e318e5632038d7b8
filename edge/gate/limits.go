package gate

import (
	"sync"
	"time"
)

// Limits bound the connections of one listener, or of several together: a device that finds one of them closed to it should
// not get in by the next.
type Limits struct {
	mu    sync.Mutex // never held while calling out
	max   int        // 0: no bound
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
