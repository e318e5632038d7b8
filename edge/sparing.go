package edge

import (
	"log/slog"
	"sync"
	"time"
)

// sparing logs a repeating event at most once in a while for each reason, with how often it was kept silent. A client that
// is refused a thousand times a second must not fill the log; the metrics count every one.
type sparing struct {
	mu   sync.Mutex
	last map[string]*spared
}

type spared struct {
	at     time.Time
	silent int
}

const sparingEvery = 10 * time.Second

func (s *sparing) log(l *slog.Logger, msg, reason string, args ...any) {
	s.mu.Lock()
	if s.last == nil {
		s.last = make(map[string]*spared)
	}
	e := s.last[msg+reason]
	if e == nil {
		e = &spared{}
		s.last[msg+reason] = e
	}
	now := time.Now()
	if now.Sub(e.at) < sparingEvery {
		e.silent++
		s.mu.Unlock()
		return
	}
	silent := e.silent
	e.at, e.silent = now, 0
	s.mu.Unlock()
	l.Warn(msg, append(args, "reason", reason, "not_logged", silent)...)
}
