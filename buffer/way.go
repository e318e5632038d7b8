package buffer

import "time"

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
// active one.
func (l *Log) makeWay(n int64) error {
	l.mu.Lock()
	need := l.crammed && len(l.spares) == 0 && l.active.writable()
	l.mu.Unlock()
	if !need {
		return nil
	}
	_, err := l.moveStaying(func(s *segment) int64 { return s.room() - n })
	return err
}

// squeeze does the same where there was no time for it, in what is kept for the seal of the active segment and not needed by it. It reports
// whether something was moved.
func (l *Log) squeeze() (bool, error) {
	if !l.active.writable() {
		return false, nil
	}
	return l.moveStaying((*segment).tight)
}

// moveStaying moves the records that may not be evicted of one segment into the active one, where they fit into the room, unless there is
// a segment that can be emptied without that. It reports whether anything was moved. It may be called while a frame is being written, so
// an error, after which the active segment is suspect, concerns nobody but the caller.
func (l *Log) moveStaying(room func(*segment) int64) (moved bool, err error) {
	for {
		s := l.inTheWay(room)
		if s == nil {
			return moved, nil
		}
		f := l.gatherFrom(s, (*extent).stays)
		if f.count == 0 || f.bound() > room(l.active) {
			l.mu.Lock()
			s.stuckUntil = time.Now().Add(moveRetry)
			l.mu.Unlock()
			continue
		}
		l.compressor.shrink(f)
		f.closeRecords(l.epoch)
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

// inTheWay gives the segment to be emptied of what may not be evicted: the oldest of which that fits into the room of the active one. It
// gives nil where there is none, or no need for one as there are segments enough that can be emptied.
func (l *Log) inTheWay(room func(*segment) int64) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	enough := l.segmentSize() / 2 // see fileOnFullDisk
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
		staying := int64(0)
		for _, e := range s.extents {
			if e.live > 0 && e.stays() {
				staying += e.liveBytes()
			}
		}
		// Moving what fills a segment gains nothing.
		if float64(staying) <= worthMoving*float64(s.size) && staying+staying/4 <= room(l.active) {
			oldest = s
		}
	}
	return oldest
}
