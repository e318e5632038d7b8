package edge

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// audit writes who came in and who did not, each with audit=true. A flood must not fill the disk: each kind of line has a
// bound of its own, so that refusals hide no logins. What is kept silent is counted and said with the next line; the metrics
// count every one.
type audit struct {
	log      *slog.Logger
	admitted bucket
	turned   bucket
}

func newAudit(log *slog.Logger) audit {
	return audit{log: log, admitted: newBucket(2000, 20), turned: newBucket(200, 5)}
}

// event writes what nobody outside can cause.
func (a *audit) event(msg string, args ...any) { a.log.Info(msg, args...) }

// login writes that a client was let in.
func (a *audit) login(args ...any) {
	if silent, ok := a.admitted.take(time.Now(), 0); ok {
		a.log.Info("client admitted", withSilent(cut(args), silent)...)
	}
}

// refused writes that somebody was not let in: at most once in a while for each reason and client (s), and so many altogether.
func (a *audit) refused(s *sparing, msg, reason, client string, args ...any) {
	silent, ok := s.due(event{msg, reason, brief(client)}, time.Now())
	if !ok {
		return
	}
	if silent, ok = a.turned.take(time.Now(), silent); !ok {
		return
	}
	a.log.Warn(msg, append(cut(args), "reason", reason, "not_logged", silent)...)
}

// maxBrief is how much of what a stranger wrote is kept or logged, in bytes: a client identifier may have 65,535.
const maxBrief = 200

// brief cuts what a stranger wrote.
func brief(s string) string {
	if len(s) <= maxBrief {
		return s
	}
	return strings.ToValidUTF8(s[:maxBrief], "") + "…"
}

// cut cuts the values of a line.
func cut(args []any) []any {
	for i, v := range args {
		switch v := v.(type) {
		case string:
			args[i] = brief(v)
		case error:
			args[i] = brief(v.Error())
		}
	}
	return args
}

func withSilent(args []any, silent int) []any {
	if silent == 0 {
		return args
	}
	return append(args, "not_logged", silent)
}

// bucket bounds lines: so many at once, and so many a second in the long run.
type bucket struct {
	mu     *sync.Mutex
	size   float64
	rate   float64
	level  float64 // lines that may be written now
	at     time.Time
	silent int
}

func newBucket(size, perSecond float64) bucket {
	return bucket{mu: &sync.Mutex{}, size: size, rate: perSecond, level: size}
}

// take reports whether a line may be written, and how many were not since the last one, of which the caller knows some.
func (b *bucket) take(now time.Time, known int) (silent int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() {
		b.level = min(b.size, b.level+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	b.silent += known
	if b.level < 1 {
		b.silent++
		return 0, false
	}
	b.level--
	silent, b.silent = b.silent, 0
	return silent, true
}
