package buffer

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// commitLoop is the one goroutine that writes segments. It ends after Close, when everything is written.
func (l *Log) commitLoop() {
	l.pace.timer = time.NewTimer(idle)
	defer l.pace.timer.Stop()
	for {
		wait, more := l.step()
		if !more {
			return
		}
		if wait > 0 {
			l.rest(wait)
		}
	}
}

// idle is how long the committer sleeps when nothing is due; something new wakes it.
const idle = time.Hour

// calmAfter is how long there is nothing to do before the memory that only work needs is let go.
const calmAfter = 3 * time.Second

// rest sleeps for d, or until there is something to do.
func (l *Log) rest(d time.Duration) {
	if l.compressor.enc != nil && d > calmAfter {
		if !l.sleep(calmAfter) {
			return
		}
		l.compressor.enc, l.compressor.out = nil, nil
		d -= calmAfter
	}
	l.sleep(d)
}

// step does one piece of work. It returns how long to wait for the next (0: none), and false when the log is closed.
func (l *Log) step() (time.Duration, bool) {
	l.mu.Lock()
	closing := l.closing
	failed, crammed := l.failed != nil, l.crammed
	l.mu.Unlock()
	if failed {
		if !closing && l.expireSome() { // which may be what makes room
			return 0, true
		}
		return l.heal(closing)
	}
	l.evictOverBound()
	if !closing && crammed {
		if err := l.makeWay(0); err != nil {
			l.alarm(err) // the next frame goes to another segment
		}
	}
	if !closing && l.expireSome() {
		return 0, true
	}
	if !closing && !l.moved {
		// In turns with commits: neither waits for long.
		if moved, _ := l.relocate(); moved {
			l.moved = true
			return 0, true
		}
	}

	l.letGather()
	l.mu.Lock()
	j := l.nextJob(time.Now(), closing)
	l.mu.Unlock()
	l.pace.took(j.frame)
	if !j.work() && l.moved {
		l.moved = false
		return 0, true
	}
	l.moved = false
	if !j.work() {
		if closing {
			l.finalSeal()
			return 0, false
		}
		return j.wait, true
	}
	if err := l.commit(j); err != nil && closing {
		l.closeErr = errors.Join(l.closeErr, err)
	}
	return 0, true
}

// job is what one commit does.
type job struct {
	frame *frameBuilder
	// cursors says that every changed cursor goes in.
	cursors bool
	// sync says that the fsync must not be left for later, free what is freed after it.
	sync bool
	free []*segment
	wait time.Duration
}

func (j job) work() bool { return j.frame != nil || j.cursors || j.sync }

// nextJob decides what is to be done now. Log.mu is held.
func (l *Log) nextJob(now time.Time, closing bool) job {
	j := job{wait: idle}
	if len(l.gathering) > 0 {
		j.frame = l.gathering[0]
		l.gathering[0] = nil
		l.gathering = l.gathering[1:]
		j.sync = l.o.Sync == 0
	}
	for _, s := range l.dead {
		if s.pins == 0 && s != l.anchor {
			j.free = append(j.free, s)
		}
	}
	if l.active == nil {
		j.free = nil // the newest segment knows the queues; a new one must know them first
	}
	if len(j.free) > 0 {
		j.cursors, j.sync = true, true
		return j
	}
	due := func(at time.Time) bool {
		if !at.After(now) || closing {
			return true
		}
		j.wait = min(j.wait, at.Sub(now))
		return false
	}
	if l.expiring {
		j.wait = min(j.wait, expireEvery)
	}
	for _, q := range l.dirty {
		if q.urgent || due(q.dirtySince.Add(l.o.SaveEvery)) {
			j.cursors = true
		}
	}
	for _, s := range l.segments {
		if s.live > 0 && s.stuck() {
			j.wait = min(j.wait, s.stuckUntil.Sub(now))
		}
	}
	if !l.unsynced.IsZero() && due(l.unsynced.Add(l.syncEvery())) {
		j.sync = true
	}
	return j
}

// syncEvery is how long a frame without records may wait for its fsync; with records Options.Sync says it.
func (l *Log) syncEvery() time.Duration {
	if l.o.Sync > 0 {
		return l.o.Sync
	}
	return idle
}

// commit writes one frame, syncs it, publishes its records, and frees segments.
func (l *Log) commit(j job) error {
	f := j.frame
	if f != nil {
		l.compressor.shrink(f)
	}
	l.mu.Lock()
	if f == nil && (j.cursors || len(j.free) > 0) {
		f = newFrame(frameCommit, nil, l.time.now())
		f.first = l.durableNext()
		j.frame = f
	}
	var saved []*Queue
	if f != nil {
		f.closeRecords(l.epoch)
		saved = l.addCursors(f, j.cursors)
		if s := l.active; s != nil && !s.named && s.end >= firstPage {
			l.addQueues(f)
			s.named = true
		}
		if f.sections == 0 {
			f, j.frame = nil, nil // every change is written already
		}
	}
	l.mu.Unlock()

	var seg *segment
	var off int64
	err := l.secureState(j)
	if err == nil {
		seg, off, err = l.writeFrame(f, j.sync)
	}
	if err != nil {
		// The file may have lost what was written: it is never tried again. The frame still is in memory.
		l.alarm(err)
		if seg, off, err = l.rewrite(f); err != nil {
			l.giveUp(j, saved, err)
			return err
		}
		j.sync = true
	} else if j.sync {
		l.healed()
	}
	l.publish(j, seg, off)
	if j.sync {
		l.free(j.free)
	}
	return nil
}

// secureState writes the state of all queues once more before segments are freed: if the only frame that says that their records are
// done with went bad, they would seem lost.
func (l *Log) secureState(j job) error {
	if len(j.free) == 0 {
		return nil
	}
	l.mu.Lock()
	f := l.checkpoint()
	l.mu.Unlock()
	seg, off, err := l.writeFrame(f, false)
	if err == nil {
		l.publish(job{frame: f}, seg, off)
	}
	return err
}

// durableNext is the position behind the last one written. Log.mu is held.
func (l *Log) durableNext() Pos { return l.durable + 1 }

// addCursors adds what changed of the queues: all of it, or what is small or was not written for long. Log.mu is held.
func (l *Log) addCursors(f *frameBuilder, all bool) []*Queue {
	now := time.Now()
	var qs []*Queue
	left := l.dirty[:0]
	for _, q := range l.dirty {
		if all || q.urgent || len(q.done.spans) <= 16 || now.Sub(q.dirtySince) >= l.o.SaveEvery {
			qs = append(qs, q)
			q.dirty, q.urgent = false, false
		} else {
			left = append(left, q)
		}
	}
	clear(l.dirty[len(left):])
	l.dirty = left
	for _, q := range f.queues {
		if q.announce > 0 && !slices.Contains(qs, q) {
			qs = append(qs, q)
		}
	}
	if len(qs) == 0 {
		return nil
	}
	f.addStates(sectionCursors, l.nextID, qs, func(q *Queue) bool {
		named := q.announce > 0
		q.announce = max(q.announce-1, 0)
		return named
	})
	l.forgetDropped(qs)
	return qs
}

// state is what a cursor keeps of q. Log.mu is held.
func (q *Queue) state() queueState {
	return queueState{
		id: q.id, name: q.name, dropped: q.dropped, done: q.done, next: q.stored + 1, evicted: q.evicted, damaged: q.damaged, losses: q.allLosses(),
	}
}

// forgetDropped removes dropped queues whose removal is being written. Log.mu is held.
func (l *Log) forgetDropped(written []*Queue) {
	if !slices.ContainsFunc(written, func(q *Queue) bool { return q.dropped }) {
		return
	}
	l.order = slices.DeleteFunc(l.order, func(q *Queue) bool {
		if !q.dropped || q.dirty || q.pending > 0 {
			return false
		}
		delete(l.byID, q.id)
		if q.bound != nil {
			q.bound.queues = without(q.bound.queues, q)
		}
		return true
	})
}

// writeFrame writes f, or nothing, to the active segment and syncs it if asked to.
func (l *Log) writeFrame(f *frameBuilder, sync bool) (*segment, int64, error) {
	seg := l.active
	var off int64
	if f != nil {
		var err error
		if seg, err = l.segmentFor(len(f.buf)); err != nil {
			return nil, 0, err
		}
		off = seg.end
		if err := l.put(f, seg); err != nil {
			return nil, 0, err
		}
	}
	if sync && seg != nil {
		if err := l.sync(seg); err != nil {
			return nil, 0, err
		}
	}
	return seg, off, nil
}

// put writes f to the end of a segment, which publish moves.
func (l *Log) put(f *frameBuilder, seg *segment) error {
	b, err := f.finish(&l.vault, seg, seg.end)
	if err == nil {
		err = writeAt(seg.file, b, seg.end)
	}
	if err != nil {
		l.suspect(seg)
		return fmt.Errorf("write %s: %w", seg.name, err)
	}
	l.vault.trim()
	l.counted(func(c *counters) { c.frames++ })
	return nil
}

// writeAt reports a short write as an error.
func writeAt(f File, b []byte, off int64) error {
	n, err := f.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = errors.New("short write")
	}
	return err
}

func (l *Log) sync(seg *segment) error {
	start := time.Now()
	err := seg.file.Sync()
	if l.o.OnSync != nil {
		l.o.OnSync(time.Since(start))
	}
	if err != nil {
		l.suspect(seg)
		return fmt.Errorf("sync %s: %w", seg.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.syncs++
	l.lastSync = time.Now()
	if l.anchor == nil || seg.index > l.anchor.index {
		l.anchor = seg
		l.wakeCommitter() // the old one may be freed now
	}
	return nil
}

func (l *Log) counted(f func(c *counters)) {
	l.mu.Lock()
	f(&l.counts)
	l.mu.Unlock()
}

// publish makes a written frame known: its records can be read, and who waits for them is told.
func (l *Log) publish(j job, seg *segment, off int64) {
	f := j.frame
	l.mu.Lock()
	if j.sync {
		l.unsynced = time.Time{}
	} else if l.unsynced.IsZero() {
		l.unsynced = time.Now()
	}
	if f == nil {
		l.mu.Unlock()
		return
	}
	end := off + int64(len(f.buf))
	seg.end = end
	for i := range f.entries {
		l.publishEntry(f, i, seg, off, end)
	}
	var waiters []waiter
	if f.kind == frameCommit && f.count > 0 {
		l.counts.records += uint64(f.count)
		l.counts.payload += uint64(f.charge - int64(f.count)*recordOverhead)
		l.credit = min(l.credit, maxCredit) + moveShare*int64(len(f.buf))
		l.settle(f.last())
		l.gathered -= f.waiting
		waiters = l.takeWaiters(l.durable)
		if len(l.buffers) < 2 && cap(f.buf) <= 2*frameBytes {
			l.buffers = append(l.buffers, f.buf)
		}
	}
	l.mu.Unlock()
	for _, w := range waiters {
		w.f(nil)
	}
}

// publishEntry makes the records of one queue in a frame readable. Log.mu is held.
func (l *Log) publishEntry(f *frameBuilder, i int, seg *segment, off, end int64) {
	q, e := f.queues[i], f.entries[i]
	raw := int64(e.bytes) + int64(e.count)*recordOverhead
	e.charge = max(share(end-off, raw, f.charge), raw)
	if f.kind == frameRelocated {
		l.displace(q, e.first, e.last)
	} else {
		q.stored = e.last
		q.times.last, q.times.newest = e.last, f.base
		q.pending -= raw
		if q.bound != nil {
			q.bound.pending -= raw
		}
		if q.gather == f {
			q.gather = nil
		}
	}
	l.addExtent(q, seg, off, off, end, e, e.expires, e.newest)
	q.wakeReader()
}
