package buffer

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells which start of the machine this is, and how long ago that was, sleep included. boot is 0 if it is not known.
type Clock func() (boot uint64, since time.Duration)

// machineClock is the Clock of the operating system.
func machineClock() Clock {
	boot := bootID()
	return func() (uint64, time.Duration) {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
			return 0, time.Since(processStart)
		}
		return boot, time.Duration(t.Nano())
	}
}

var processStart = time.Now()

// bootID is the first half of the random number that the kernel draws at each start.
func bootID() uint64 {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// logTime is the clock by which records age: milliseconds that begin near the wall clock's, in the life of the first segment, and then
// only ever go on. The wall clock of a small machine starts in 1970 and jumps when the network comes, so nothing is measured by it.
//
// Within one start of the machine log time is exact, also across restarts of the gateway: each segment notes the machine's start and
// the log time of that. After another start it goes on from the last time that is on disk, plus the time since the machine started. How
// long the machine was off nobody knows, so it is left out: a record is never taken for older than it is.
type logTime struct {
	read Clock
	boot uint64
	// origin is the log time of the machine's start.
	origin int64
}

func (t *logTime) now() int64 {
	_, since := t.read()
	return t.origin + since.Milliseconds()
}

// begin sets the time for a log that has none yet.
func (t *logTime) begin() {
	boot, since := t.read()
	t.boot, t.origin = boot, max(time.Now().UnixMilli()-since.Milliseconds(), 1)
}

// resume goes on from what a log says: the machine's start and its log time, as in its newest segment, and the last time in it.
func (t *logTime) resume(boot uint64, origin, last int64) {
	current, since := t.read()
	t.boot = current
	switch {
	case boot == 0 || current == 0:
		t.origin = last - since.Milliseconds() // it may have been this start or another: no time is added
	case boot == current:
		t.origin = max(origin, last-since.Milliseconds())
	default:
		t.origin = last
	}
}

// Age tells how old a record is at least: the time since it was appended, apart from times in which the machine was off. It does
// not depend on the wall clock.
func (l *Log) Age(r *Rec) time.Duration {
	return time.Duration(max(l.time.now()-r.received, 0)) * time.Millisecond
}

// wall gives the time of the wall clock for a time of the log, as the wall clock is now.
func (l *Log) wall(at int64) time.Time {
	return time.Now().Add(time.Duration(at-l.time.now()) * time.Millisecond)
}

// wallOrZero is wall, and zero for a time that is not known.
func (l *Log) wallOrZero(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return l.wall(at)
}
