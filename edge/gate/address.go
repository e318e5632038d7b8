package gate

import (
	"net"
	"net/netip"
	"time"
)

const (
	defaultBurst = 10
	// maxDelay bounds how long the connect rate can keep a connection waiting, and with it how far the turns given to one
	// address can run ahead.
	maxDelay = 10 * time.Second
	// sweepAbove is the size from which the table is searched for addresses that need not be remembered.
	sweepAbove = 1024
)

// addrKey is the network address a connection counts for; the zero value is one that cannot be told and is not limited.
type addrKey = netip.Addr

// keyOf returns the address of a without port and zone; an IPv4 address mapped into IPv6 counts as IPv4.
func keyOf(a net.Addr) addrKey {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return addrKey{}
}

// addrTable counts connections per address and gives them their turns. Its owner locks it.
type addrTable struct {
	maxOpen  int           // 0: no bound
	interval time.Duration // between two turns of one address; 0: no rate
	burst    time.Duration // how far turns may be in the past: the burst times interval
	entries  map[addrKey]*addrEntry
	sweepAt  int
}

type addrEntry struct {
	open int
	next time.Time // the next turn
}

func newAddrTable(maxOpen int, rate float64, burst int) addrTable {
	t := addrTable{maxOpen: maxOpen, entries: make(map[addrKey]*addrEntry), sweepAt: sweepAbove}
	if rate > 0 {
		if burst <= 0 {
			burst = defaultBurst
		}
		t.interval = max(time.Duration(float64(time.Second)/rate), 1)
		t.burst = t.interval * time.Duration(burst-1)
	}
	return t
}

func (t *addrTable) full(k addrKey) bool {
	e := t.entries[k]
	return t.maxOpen > 0 && e != nil && e.open >= t.maxOpen
}

// enter counts a connection and returns how long it has to wait for its turn.
func (t *addrTable) enter(k addrKey, now time.Time) time.Duration {
	if !k.IsValid() || t.maxOpen <= 0 && t.interval == 0 {
		return 0
	}
	e := t.entries[k]
	if e == nil {
		t.sweep(now)
		e = &addrEntry{}
		t.entries[k] = e
	}
	e.open++
	if t.interval == 0 {
		return 0
	}
	if earliest := now.Add(-t.burst); e.next.Before(earliest) {
		e.next = earliest
	}
	turn := e.next
	if latest := now.Add(maxDelay); turn.After(latest) {
		turn = latest
	}
	e.next = turn.Add(t.interval)
	return max(turn.Sub(now), 0)
}

// leave counts a connection off.
func (t *addrTable) leave(k addrKey, now time.Time) {
	e := t.entries[k]
	if e == nil {
		return
	}
	e.open--
	if e.idle(now, t.burst) {
		delete(t.entries, k)
	}
}

// idle tells whether forgetting e changes nothing.
func (e *addrEntry) idle(now time.Time, burst time.Duration) bool {
	return e.open <= 0 && !e.next.After(now.Add(-burst))
}

// sweep forgets idle addresses now and then, so that a stream of ever new ones does not fill the memory.
func (t *addrTable) sweep(now time.Time) {
	if len(t.entries) < t.sweepAt {
		return
	}
	for k, e := range t.entries {
		if e.idle(now, t.burst) {
			delete(t.entries, k)
		}
	}
	t.sweepAt = max(sweepAbove, 2*len(t.entries))
}
