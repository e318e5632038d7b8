package access

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"tidegate/message"
)

// ErrLocked says that too many logins of this user from this address failed, and that the next one is not looked at yet. It
// comes with message.ErrBusy: the same login may be tried later.
var ErrLocked = errors.New("too many failed logins")

// How long a login has to wait after failures, and what is remembered of them.
const (
	// freeFailures may follow each other without a wait: people mistype, and a device may try two of its passwords.
	freeFailures = 5
	firstWait    = time.Second // doubles with each further failure
	longestWait  = 5 * time.Minute
	forgetAfter  = 30 * time.Minute
	// maxLockouts bounds the table.
	maxLockouts = 8192
	// evictionSample is how many entries are looked at to find one that can go.
	evictionSample = 32
)

// lockouts slow down whoever guesses passwords. A failure counts for the user name together with the source address: guessing
// from one address takes the login away from nobody at another. A name that does not exist is treated like one that does.
type lockouts struct {
	mu      sync.Mutex
	entries map[attempt]*failures
}

// attempt is what counts as the same guesser.
type attempt struct {
	from netip.Addr
	user string
}

type failures struct {
	n     int
	last  time.Time
	until time.Time // no login before
}

// attemptOf returns the key of a login. A name that no user can have is as good as any other.
func attemptOf(from netip.Addr, user string) attempt {
	if len(user) > maxUser {
		user = ""
	}
	return attempt{from.WithZone(""), user}
}

// maxUser is the longest name of a user in bytes.
const maxUser = 128

// wait returns how long the attempt has to wait; 0 when it may go on.
func (l *lockouts) wait(a attempt, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.entries[a]
	if f == nil {
		return 0
	}
	return max(f.until.Sub(now), 0)
}

// failed counts a failure.
func (l *lockouts) failed(a attempt, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries == nil {
		l.entries = map[attempt]*failures{}
	}
	f := l.entries[a]
	if f == nil {
		l.makeRoom(now)
		a.user = strings.Clone(a.user) // it is part of a packet
		f = &failures{}
		l.entries[a] = f
	}
	if now.Sub(f.last) > forgetAfter {
		f.n = 0
	}
	f.n++
	f.last = now
	if over := f.n - freeFailures; over >= 0 {
		f.until = now.Add(min(firstWait<<min(over, 16), longestWait))
	}
}

// makeRoom sees to it that there is room for one entry: what is forgotten goes, or that with the fewest failures of a few.
func (l *lockouts) makeRoom(now time.Time) {
	if len(l.entries) < maxLockouts {
		return
	}
	var least attempt
	var fewest *failures
	seen := 0
	for a, f := range l.entries {
		if now.Sub(f.last) > forgetAfter {
			delete(l.entries, a)
		} else if fewest == nil || f.n < fewest.n || f.n == fewest.n && f.last.Before(fewest.last) {
			least, fewest = a, f
		}
		if seen++; seen == evictionSample {
			break
		}
	}
	if len(l.entries) >= maxLockouts {
		delete(l.entries, least)
	}
}

// passed forgets the failures of an attempt that succeeded.
func (l *lockouts) passed(a attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.entries, a)
}

// clear forgets everything: with another users file there are other passwords.
func (l *lockouts) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.entries)
}

func lockedError(wait time.Duration) error {
	return fmt.Errorf("log in: %w of this user from this address; the next try counts in %s: %w", ErrLocked, wait.Round(time.Second/10), message.ErrBusy)
}
