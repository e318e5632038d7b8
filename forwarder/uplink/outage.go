package uplink

import (
	"strings"
	"time"
)

const (
	// logAgain is after how long a failure that goes on is logged once more.
	logAgain = time.Hour
	// maxFailures bounds the failures of one outage that are told apart; of further ones status tells.
	maxFailures = 64
)

// outage remembers which failures were logged since there was a connection, so that one that goes on for days, at several
// servers in turn, is not logged at every attempt. The zero value is ready.
type outage struct {
	logged map[string]time.Time // by server and failure
}

// news reports whether a failure at a server is to be logged now. Numbers in it make no difference: ports change with every
// attempt.
func (o *outage) news(server, failure string, now time.Time) bool {
	key := server + " " + strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, failure)
	last, known := o.logged[key]
	if known && now.Sub(last) < logAgain || !known && len(o.logged) >= maxFailures {
		return false
	}
	if o.logged == nil {
		o.logged = map[string]time.Time{}
	}
	o.logged[key] = now
	return true
}
