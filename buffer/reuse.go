package buffer

import (
	"path/filepath"
	"slices"
)

// fileOnFullDisk is segmentFile where the disk has no room. It evicts no more than it has to for a file that is worth it, as small segments,
// which restarts leave, have no room to move anything. Files are removed to make a larger one in their place only where there are enough of
// them, and one that can be used again as it is stays for the case that somebody else was quicker to take the room.
func (l *Log) fileOnFullDisk(path string, need int64) (File, int64, error) {
	l.lastSegmentSize = 0 // there is little room: begin small
	if l.removeSpares(need) {
		if f, size, err := l.createSegment(path, need); err == nil || !isNoSpace(err) {
			return f, size, err
		}
	}
	for good := max(need, l.worthwhile()); ; {
		if sp, ok := l.takeDead(good); ok {
			return l.openSpare(sp, path)
		}
		if l.useless(need, nil) >= good {
			l.removeUseless(need)
			f, size, err := l.createSegment(path, good)
			if err == nil || !isNoSpace(err) {
				return f, size, err
			}
			l.roomless = true
			break
		}
		least := int64(0)
		if l.roomless {
			least = need // to remove it would be in vain
		}
		if !l.evictForSpace(least) {
			break
		}
	}
	if sp, ok := l.takeDead(need); ok {
		return l.openSpare(sp, path)
	}
	l.removeUseless(need)
	for size := l.segmentBytes() / 4; ; size /= 2 {
		size = max(size, need)
		f, made, err := l.createSegment(path, size)
		if err == nil || !isNoSpace(err) || size == need {
			return f, made, err
		}
	}
}

// worthwhile is the size of a file on a full disk that is worth evicting more than one small segment for. It is small in comparison to what
// there is, and nothing where files that were removed gave no room.
func (l *Log) worthwhile() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.roomless {
		return 0
	}
	total := int64(0)
	for _, s := range l.segments {
		total += s.size
	}
	return min(l.segmentSize()/2, total/8)
}

// takeDead gives the file of a segment without live records, although no cursor that says so is synced yet: the state of the
// queues is the first thing written into it. It takes the largest, of at least need bytes.
func (l *Log) takeDead(need int64) (spare, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	best := l.largestDead(need)
	if best == nil {
		return spare{}, false
	}
	l.removeSegment(best)
	l.log.Debug("segment used again at once", "segment", best.name)
	return spare{name: best.name, size: best.size}, true
}

// largestDead gives the largest segment without live records whose file can be used again, of at least need bytes; nil: none. Log.mu is held.
func (l *Log) largestDead(need int64) (best *segment) {
	for _, s := range l.dead {
		if l.emptiable(s) && s.size >= need && (best == nil || s.size > best.size) {
			best = s
		}
	}
	return best
}

// useless calls f for the segments without live records, apart from the largest that can be used again, and gives the size of all their
// files. f may be nil; Log.mu is held while it runs.
func (l *Log) useless(need int64, f func(*segment)) (size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	best := l.largestDead(need)
	for _, s := range slices.Clone(l.dead) {
		if s == best || s.pins > 0 || s == l.anchor {
			continue
		}
		size += s.size
		if f != nil {
			f(s)
		}
	}
	return size
}

// removeUseless removes what useless finds, although no cursor that says so is synced yet: without the room there is nowhere to write one.
func (l *Log) removeUseless(need int64) {
	var names []string
	l.useless(need, func(s *segment) {
		l.removeSegment(s)
		l.log.Debug("segment removed at once", "segment", s.name)
		names = append(names, s.name)
	})
	for _, name := range names {
		l.removeFile(name)
	}
}

// removeSpares removes spares of less than need bytes, and reports whether there were any.
func (l *Log) removeSpares(need int64) bool {
	l.mu.Lock()
	var small []spare
	l.spares = slices.DeleteFunc(l.spares, func(s spare) bool {
		if s.size < need {
			small = append(small, s)
		}
		return s.size < need
	})
	l.mu.Unlock()
	for _, s := range small {
		l.removeFile(s.name)
	}
	return len(small) > 0
}

func (l *Log) removeFile(name string) {
	if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil {
		l.log.Warn("freeing a segment failed", "segment", name, "err", err)
	}
}
