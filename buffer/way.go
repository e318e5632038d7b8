package buffer

import (
	"slices"
	"time"
)

// On a full disk room is made by evicting all records of a segment, whose file is then used again. A few records that may not be evicted, in
// every segment, would keep that from ever happening. So there always has to be a segment with none: once the disk has no room for another
// segment, those of one other segment are moved into each new one, before anything else is written there. Nothing is evicted by that.

// foresee looks whether the disk has room for another segment, so that there is time to make way where it has not.
func (l *Log) foresee() {
	free, err := l.fs.Free(l.dir)
	if err != nil {
		return // the filler will find out
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.crammed = l.crammed || free < l.segmentSize()
}

// makeWay sees to it that on a full disk there is a segment that can be emptied by evicting. It leaves room for a frame of n bytes in the
// active one. As it may be found too late that the disk is full, it does so on any disk where little has to be moved.
func (l *Log) makeWay(n int64) error {
	if !l.active.writable() {
		return nil
	}
	l.mu.Lock()
	part := littleStays
	if l.crammed {
		part = worthMoving
	}
	ready := l.ready()
	l.mu.Unlock()
	if ready {
		return nil
	}
	_, err := l.moveStaying(part, func(s *segment) int64 { return s.room() - n })
	return err
}

// littleStays is the part of a segment that is little.
const littleStays = 0.125

// squeeze does the same where there was no time for it, in what is kept for the seal of the active segment and not needed by it. It reports
// whether something was moved.
func (l *Log) squeeze() (bool, error) {
	if !l.active.writable() {
		return false, nil
	}
	return l.moveStaying(worthMoving, (*segment).tight)
}

// moveStaying moves the records that may not be evicted of one segment into the active one, where they are no more than a part of it and fit
// into the room, unless there is a segment that can be emptied without that. It reports whether anything was moved. It may be called while
// a frame is being written, so an error, after which the active segment is suspect, concerns nobody but the caller.
func (l *Log) moveStaying(part float64, room func(*segment) int64) (moved bool, err error) {
	for {
		s := l.inTheWay(part, room(l.active))
		if s == nil {
			return moved, nil
		}
		f := l.gatherFrom(s, (*extent).stays)
		states := l.statesOf(f)
		if f.count == 0 || f.bound()+int64(len(states.buf)+len(f.entries)*sealedExtent) > room(l.active) {
			l.mu.Lock()
			s.stuckUntil = time.Now().Add(moveRetry)
			l.mu.Unlock()
			continue
		}
		l.compressor.shrink(f)
		f.closeRecords(l.epoch)
		f.addSections(states)
		to, off := l.active, l.active.end
		if err = l.put(f, to); err == nil {
			err = l.sync(to)
		}
		if err != nil {
			return moved, err
		}
		l.publish(job{frame: f, sync: true}, to, off)
		moved = true
	}
}

// statesOf gives a frame with the states of the queues that have records in f: it says what was left out as the queue is done with it, which no
// other frame may say yet.
func (l *Log) statesOf(f *frameBuilder) *frameBuilder {
	l.mu.Lock()
	defer l.mu.Unlock()
	states := newFrame(frameCommit, nil, 0)
	queues := slices.Compact(slices.Clone(f.queues)) // in the order of their IDs
	states.addStates(sectionCursors, l.nextID, queues, func(*Queue) bool { return true })
	return states
}

// inTheWay gives the segment to be emptied of what may not be evicted: the oldest of which that is no more than a part and fits into the
// room. It gives nil where there is none, or no need for one as there are segments enough that can be emptied.
func (l *Log) inTheWay(part float64, room int64) *segment {
	enough := max(l.worthwhile(), l.lastNeed) // see fileOnFullDisk
	l.mu.Lock()
	defer l.mu.Unlock()
	var oldest *segment
	for _, s := range l.segments {
		if l.emptiable(s) {
			if enough -= s.size; enough <= 0 {
				return nil
			}
			continue
		}
		if oldest != nil || s == l.active || s == l.anchor || s.pins > 0 || s.suspect || s.held || s.stuck() {
			continue
		}
		staying, goes := int64(0), l.crammed
		for _, e := range s.extents {
			if e.live > 0 && e.stays() {
				staying += e.liveBytes()
			}
			goes = goes || e.live > 0 && !e.stays()
		}
		if goes && float64(staying) <= part*float64(s.size) && staying+staying/4 <= room {
			oldest = s
		}
	}
	return oldest
}
