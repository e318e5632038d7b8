package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// cuts is the model on a machine that loses its power at any change of its disk, be it in the middle of a write, of making a segment or of
// opening the log after the cut before. The goroutines of the log change the disk one at a time, in an order that the seed decides, so that
// a seed always tells the same story.
type cuts struct {
	*model
	clock *testClock
	born  time.Time // of this start of the machine
	boots uint64
	room  int64 // size of the disk; 0: no limit
	n     int   // cuts so far
	done  work

	turns    sync.Mutex
	waiting  []turn
	gateless bool // the power is off: nobody waits for a turn
}

// work is what the log did besides storing, which cuts must have met.
type work struct{ opens, evicted, expired, relocated, recycled, accounted int }

func (w *work) add(o work) {
	w.opens += o.opens
	w.evicted += o.evicted
	w.expired += o.expired
	w.relocated += o.relocated
	w.recycled += o.recycled
	w.accounted += o.accounted
}

// turn is a goroutine of the log that waits to change the disk.
type turn struct {
	what string
	pass chan struct{}
}

func newCuts(t *testing.T, seed uint64) *cuts {
	c := &cuts{clock: &testClock{}}
	m := &model{
		t: t, r: rand.New(rand.NewPCG(seed, 11)), fs: newMemFS(), facts: map[int]*fact{}, names: map[nameOf]int{},
		unsure: map[string]bool{}, kept: map[nameOf]bool{}, marks: map[string]uint64{}, blind: map[string]bool{}, lifetimes: seed%2 == 0, shape: seed / 2 % 4, keys: map[string][]Key{},
	}
	c.model = m
	m.wait = c.settleUntil
	m.idle = func() {
		if !c.next() {
			c.pass(time.Millisecond)
		}
	}
	m.skip = func(string) bool { return len(m.qs) > 0 && m.r.IntN(5) == 0 } // one at least is declared
	m.o = Options{SegmentBytes: []int64{8 << 10, 16 << 10, 40 << 10}[m.r.IntN(3)], Clock: c.clock.read}
	if seed%3 == 0 {
		m.small = 3
	}
	if seed%5 == 0 {
		c.room = int64(60+m.r.IntN(140)) << 10 // the bounds and all there is beside need more
	}
	c.boot()
	t.Cleanup(c.end)
	c.start()
	return c
}

// boot starts the machine, whose clock begins anew, and gives its disk a change at which the power goes.
func (c *cuts) boot() {
	c.boots++
	c.born = time.Now()
	c.clock.restart(c.boots, 0)
	c.fs.gate = c.gate
	c.fs.room = c.room
	c.fs.dieAt = 1 + c.r.IntN([]int{8, 40, 200, 600}[c.r.IntN(4)])
	c.turns.Lock()
	c.gateless = false
	c.turns.Unlock()
}

// gate is where the log's goroutines wait for their turn. What is bad is put aside by whoever finds it, which may be the model.
func (c *cuts) gate(op, path string) {
	c.turns.Lock()
	if c.gateless || strings.Contains(path, quarantineDir) {
		c.turns.Unlock()
		return
	}
	w := turn{op + " " + path, make(chan struct{})}
	c.waiting = append(c.waiting, w)
	c.turns.Unlock()
	<-w.pass
}

// next lets one of those who wait have its turn, when nobody does anything else. It reports false when nobody waits.
func (c *cuts) next() bool {
	synctest.Wait()
	c.turns.Lock()
	defer c.turns.Unlock()
	if len(c.waiting) == 0 {
		return false
	}
	i := 0
	for j, w := range c.waiting {
		if w.what < c.waiting[i].what {
			i = j
		}
	}
	if len(c.waiting) > 1 && c.r.IntN(2) == 0 {
		i = (i + 1) % len(c.waiting)
	}
	w := c.waiting[i]
	c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
	c.log("  %s", w.what)
	if strings.HasPrefix(w.what, "rename") && strings.HasSuffix(w.what, segmentSuffix) {
		c.done.recycled++
	}
	close(w.pass)
	return true
}

// release lets everybody go on for good.
func (c *cuts) release() {
	c.turns.Lock()
	defer c.turns.Unlock()
	c.gateless = true
	for _, w := range c.waiting {
		close(w.pass)
	}
	c.waiting = nil
}

// pass lets time go by.
func (c *cuts) pass(d time.Duration) {
	time.Sleep(d)
	c.clock.restart(c.boots, time.Since(c.born))
}

// settleUntil gives turns until p is durable, failed, or the power is off.
func (c *cuts) settleUntil(p Pos) {
	told := false
	c.l.Notify(p, func(error) { c.mu.Lock(); told = true; c.mu.Unlock() })
	for range 100_000 {
		synctest.Wait()
		c.mu.Lock()
		done := told
		c.mu.Unlock()
		if done || c.fs.isDead() {
			return
		}
		if !c.next() {
			c.pass(100 * time.Microsecond)
		}
	}
	c.fail("position %d is neither on disk nor failed", p)
}

// aside runs what changes the disk on the caller's goroutine, and gives turns until it has ended.
func (c *cuts) aside(f func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- f() }() // it ends at the latest when the power is off
	for {
		synctest.Wait()
		select {
		case err := <-ended:
			return err
		default:
		}
		if c.fs.isDead() {
			c.release()
			return <-ended
		}
		if !c.next() {
			c.pass(time.Millisecond)
		}
	}
}

// start opens the log, as often as the power goes meanwhile.
func (c *cuts) start() {
	c.t.Helper()
	for {
		o := c.shaped(c.o)
		o.FS = c.fs
		o.Logger = slog.New(slog.NewTextHandler(traceWriter{c.model}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.OnDamage = func(d Damage) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lost += d.Records
		}
		var l *Log
		err := c.aside(func() (err error) {
			l, err = Open("/log", o)
			return err
		})
		if err == nil {
			c.opened(l)
			return
		}
		if !errors.Is(err, errDead) {
			c.fail("start refused: %v", err)
		}
		c.log("power cut while the log is opened")
		c.cut()
	}
}

// cut turns the power off and on again.
func (c *cuts) cut() {
	c.n++
	c.fs = c.fs.powerCut(cutRandom(c.r))
	c.boot()
}

// crash is what follows a power cut: the log is opened and compared with the model.
func (c *cuts) crash() {
	c.t.Helper()
	c.log("power cut in %d", c.fs.changes)
	c.end()
	c.mu.Lock()
	c.afterCrash()
	c.mu.Unlock()
	c.cut()
	c.start()
	c.check(true)
}

// end ends the goroutines of the log whose disk is dead.
func (c *cuts) end() {
	c.mu.Lock()
	c.dying = true
	c.mu.Unlock()
	c.fs.powerCut(func() bool { return false })
	c.release()
	if c.l != nil {
		_ = c.l.Close()
		c.account()
	}
}

// account adds up what the log did that is closed now.
func (c *cuts) account() {
	st := c.l.Stats()
	c.done.opens++
	c.done.evicted += int(st.Evicted)
	c.done.relocated += int(st.RelocatedBytes)
	c.mu.Lock()
	c.done.expired += c.expired
	c.expired = 0
	c.mu.Unlock()
}

// run does random work until the power went so many times.
func (c *cuts) run(cuts int) {
	for c.n < cuts {
		if c.fs.isDead() {
			c.crash()
			continue
		}
		c.step()
	}
	for range 20 { // the last life has no end of its own
		c.append()
	}
	for c.fs.isDead() {
		c.crash()
	}
	c.check(false)
	for _, name := range modelQueues {
		if c.qs[name] == nil {
			c.declare(name)
		}
	}
	c.check(true)
	if c.lost > 0 && !c.hurried.Load() { // dropped looks at each record
		c.fail("%d records were reported as damaged", c.lost)
	}
}

func (c *cuts) step() {
	synctest.Wait() // the log's goroutines wait: for a turn, for work, or for time to pass
	switch n := c.r.IntN(200); {
	case n < 110:
		c.append()
	case n < 160:
		c.read()
	case n < 163:
		c.purge()
	case n < 175:
		c.pass(time.Duration(c.r.IntN(1500)) * time.Millisecond)
	case n < 185:
		for range c.r.IntN(10) {
			c.next()
		}
	case n < 190:
		if !c.fs.isDead() {
			c.check(false)
		}
	case n < 195:
		for _, name := range modelQueues {
			if c.qs[name] == nil {
				c.log("declare %s", name)
				c.declare(name)
				break
			}
		}
	case n < 198:
		c.reopen()
	}
}

// reopen closes and opens the log in order, if the power stays on.
func (c *cuts) reopen() {
	c.log("reopen")
	err := c.aside(c.l.Close)
	c.account()
	if err != nil && !errors.Is(err, errDead) && !errors.Is(err, syscall.ENOSPC) {
		c.fail("close: %v", err)
	}
	if c.fs.isDead() {
		return
	}
	if err != nil { // the last acknowledgements found no room
		c.mu.Lock()
		c.afterCrash()
		c.mu.Unlock()
	}
	before := c.n
	c.start()
	c.check(err != nil || c.n > before)
}

// number reads an environment variable.
func number(t *testing.T, name string, or uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return or
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// TestPowerCut cuts the power at random changes of the disk. After each cut the log opens, everything that was reported as durable and not
// given up is there, byte for byte and in order, and no name stands for two records. TIDEGATE_POWERCUTS says how many cuts, and
// TIDEGATE_POWERCUT_SEED with which seed to begin; a failure names its own.
func TestPowerCut(t *testing.T) {
	const each = 10
	// On one processor the goroutines of a log run in an order that its seed decides.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	seeds := (number(t, "TIDEGATE_POWERCUTS", 400) + each - 1) / each
	first := number(t, "TIDEGATE_POWERCUT_SEED", 1)
	var mu sync.Mutex
	total, done := 0, work{}
	t.Run("seeds", func(t *testing.T) {
		for i := range seeds {
			seed := first + i
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				defer func() {
					if t.Failed() {
						t.Logf("again: TIDEGATE_POWERCUTS=%d TIDEGATE_POWERCUT_SEED=%d go test -run TestPowerCut ./buffer", each, seed)
					}
				}()
				synctest.Test(t, func(t *testing.T) {
					c := newCuts(t, seed)
					c.run(each)
					mu.Lock()
					total += c.n
					c.done.accounted = c.accounted
					done.add(c.done)
					mu.Unlock()
				})
			})
		}
	})
	t.Logf("%d power cuts; the log was opened %d times, evicted %d records, let %d expire, relocated %d bytes, used %d segments again; %d times a loss was looked for",
		total, done.opens, done.evicted, done.expired, done.relocated, done.recycled, done.accounted)
	if seeds > 10 && min(done.evicted, done.expired, done.relocated, done.recycled, done.accounted) == 0 {
		t.Error("the log did not do all of that: the test proves too little")
	}
}
