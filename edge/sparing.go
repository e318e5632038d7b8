package edge

import (
	"log/slog"
	"sync"
	"time"
)

// sparing logs a repeating event at most once in a while for each reason and client, with how many like it were kept
// silent. A client that is refused a thousand times a second must not fill the log, nor hide that others are refused; the
// metrics count every one.
type sparing struct {
	mu    sync.Mutex
	last  map[event]*spared
	lines bucket // of log, which a flood under ever new names must not fill the disk by
}

// event is what counts as the same. The client is empty for events that are one for all clients, and in the entry that
// takes all for whom there was no room.
type event struct{ msg, reason, client string }

type spared struct {
	at     time.Time
	silent int
}

const (
	sparingEvery = 10 * time.Second
	// sparingMost bounds the events that are told apart.
	sparingMost = 1024
)

func newSparing() sparing { return sparing{lines: newBucket(200, 5)} }

// log writes a warning with args, the reason, and as not_logged how many were kept silent before. What strangers wrote is cut.
func (s *sparing) log(l *slog.Logger, msg, reason, client string, args ...any) {
	silent, ok := s.due(event{msg, reason, brief(client)}, time.Now())
	if !ok {
		return
	}
	if silent, ok = s.lines.take(time.Now(), silent); ok {
		l.Warn(msg, append(cut(args), "reason", reason, "not_logged", silent)...)
	}
}

// due reports whether ev is to be logged at now, and how many like it were not.
func (s *sparing) due(ev event, now time.Time) (silent int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(ev, now)
	if now.Sub(e.at) < sparingEvery {
		e.silent++
		return 0, false
	}
	silent = e.silent
	e.at, e.silent = now, 0
	if all := s.last[event{ev.msg, ev.reason, ""}]; all != nil {
		silent += all.silent
		all.silent = 0
	}
	return silent, true
}

// entry returns the entry of ev, a new one where there is room, otherwise the one for all clients.
func (s *sparing) entry(ev event, now time.Time) *spared {
	if s.last == nil {
		s.last = make(map[event]*spared)
	}
	if e := s.last[ev]; e != nil {
		return e
	}
	if ev.client != "" && len(s.last) >= sparingMost {
		s.forget(now)
		if len(s.last) >= sparingMost {
			return s.entry(event{ev.msg, ev.reason, ""}, now)
		}
	}
	e := &spared{}
	s.last[ev] = e
	return e
}

// forget drops the entries of clients that are due anyway. What they kept silent is reported with the next of its reason.
func (s *sparing) forget(now time.Time) {
	for ev, e := range s.last {
		if ev.client == "" || now.Sub(e.at) < sparingEvery {
			continue
		}
		delete(s.last, ev)
		if e.silent > 0 {
			s.entry(event{ev.msg, ev.reason, ""}, now).silent += e.silent
		}
	}
}
