package buffer

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// spare is a file that can become a segment by renaming: zero-filled, or an old segment. Writing into it changes neither its size nor its
// extents, so an fsync need not write the journal of the file system.
type spare struct {
	name string
	size int64
}

const (
	maxSpares = 1
	tmpSuffix = ".tmp"
	// spareRetry is how long the filler waits after the disk refused.
	spareRetry = 10 * time.Second
)

func (l *Log) wakeFiller() {
	select {
	case l.fill <- struct{}{}:
	default:
	}
}

// fillLoop makes one spare ahead, so that commits never wait for zeros. It ends after Close.
func (l *Log) fillLoop() {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.fill:
		case <-timer.C:
		}
		l.dropOddSpares()
		size := l.segmentBytes()
		l.mu.Lock()
		wanted := len(l.spares) == 0 && l.active != nil && l.failed == nil
		wait := idle
		if l.noSpace {
			wait = spareRetry
		}
		l.mu.Unlock()
		timer.Reset(wait)
		if !wanted {
			continue
		}
		err := l.makeSpare(size)
		for err != nil && isNoSpace(err) && size > minSegmentBytes {
			size = max(size/4, minSegmentBytes)
			err = l.makeSpare(size)
		}
		if err == nil || errors.Is(err, ErrClosed) {
			continue
		}
		l.log.Warn("no spare segment could be made", "err", err)
		if isNoSpace(err) {
			l.lowerBounds()
		}
		timer.Reset(spareRetry)
	}
}

// lowerBounds makes the bounds act as full until room is found again, apart from what the active segment can still hold. A spare is room,
// which the filler may have found while the committer found none: nobody would look for another.
func (l *Log) lowerBounds() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.crammed = true
	if l.ready() {
		return
	}
	l.noSpace = true
	room := int64(0)
	if s := l.active; s.writable() {
		room = max(s.room()-l.gathered, 0)
	}
	for _, b := range l.bounds {
		b.ceiling = max(b.used+b.pending+room, 1)
	}
	l.wakeCommitter() // see makeWay
}

// ready reports whether there is a spare that can take what a segment begins with. Log.mu is held.
func (l *Log) ready() bool {
	return slices.ContainsFunc(l.spares, func(s spare) bool { return s.size >= l.lastNeed })
}

// makeSpare makes a zero-filled file of size bytes.
func (l *Log) makeSpare(size int64) error {
	l.mu.Lock()
	n := l.nextSpare
	l.nextSpare++
	l.mu.Unlock()
	sp := spare{name: spareName(n), size: size}
	path := filepath.Join(l.dir, sp.name)
	f, err := l.fs.Create(path + tmpSuffix)
	if err != nil {
		return fmt.Errorf("create spare: %w", err)
	}
	err = zeroFill(f, size, l.stop)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = l.fs.Rename(path+tmpSuffix, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("fill spare: %w", err), l.fs.Remove(path+tmpSuffix))
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return errors.Join(fmt.Errorf("fill spare: %w", err), l.fs.Remove(path))
	}
	l.mu.Lock()
	l.spares = append(l.spares, sp)
	l.crammed = false
	if l.noSpace {
		l.roomAgain()
	}
	l.mu.Unlock()
	return nil
}

// zeroFill writes size zeros, unless stop is closed.
func zeroFill(f File, size int64, stop <-chan struct{}) error {
	zeros := make([]byte, min(size, 256<<10))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		select {
		case <-stop:
			return ErrClosed
		default:
		}
		if err := writeAt(f, zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// segmentFile gives a file of at least need bytes under the name: a spare, or a new one, or where the disk is full an old segment
// that is not needed.
func (l *Log) segmentFile(name string, need int64) (File, int64, error) {
	path := filepath.Join(l.dir, name)
	l.mu.Lock()
	l.lastNeed = need
	l.mu.Unlock()
	if sp, ok := l.takeSpare(need); ok {
		return l.openSpare(sp, path)
	}
	// Small at first, then doubling, until the filler has caught up.
	size := max(min(max(2*l.lastSegmentSize, minSegmentBytes), l.segmentBytes()), need)
	f, size, err := l.createSegment(path, size)
	if err != nil && isNoSpace(err) {
		if sp, ok := l.takeSpare(need); ok { // made meanwhile
			return l.openSpare(sp, path)
		}
		l.lowerBounds()
		return l.fileOnFullDisk(path, need)
	}
	l.lastSegmentSize = size
	return f, size, err
}

// takeSpare gives a spare of at least need bytes.
func (l *Log) takeSpare(need int64) (spare, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.spares, func(s spare) bool { return s.size >= need })
	if i < 0 {
		return spare{}, false
	}
	sp := l.spares[i]
	l.spares = slices.Delete(l.spares, i, i+1)
	return sp, true
}

// dropOddSpares removes spares that are smaller than segments are now, as after the bounds grew, or of no use at all.
func (l *Log) dropOddSpares() {
	l.mu.Lock()
	var odd []spare
	size := l.segmentSize()
	l.spares = slices.DeleteFunc(l.spares, func(s spare) bool {
		if s.size >= l.lastNeed && (s.size >= size || l.noSpace) {
			return false
		}
		odd = append(odd, s)
		return true
	})
	l.mu.Unlock()
	for _, s := range odd {
		if err := l.fs.Remove(filepath.Join(l.dir, s.name)); err != nil {
			l.log.Warn("removing a spare segment failed", "spare", s.name, "err", err)
		}
	}
}

// openSpare gives a spare, or a segment that is not needed, the name of the new segment. Where that fails the file is removed: nothing in
// it is needed, and nobody would know of it.
func (l *Log) openSpare(sp spare, path string) (File, int64, error) {
	old := filepath.Join(l.dir, sp.name)
	if err := l.fs.Rename(old, path); err != nil {
		return nil, 0, errors.Join(err, l.fs.Remove(old))
	}
	err := l.fs.SyncDir(l.dir)
	var f File
	if err == nil {
		f, err = l.fs.Open(path, false)
	}
	if err != nil {
		return nil, 0, errors.Join(err, l.fs.Remove(path))
	}
	return f, sp.size, nil
}

// createSegment makes a zero-filled file while a commit waits.
func (l *Log) createSegment(path string, size int64) (File, int64, error) {
	size = (size + 4095) &^ 4095
	f, err := l.fs.Create(path)
	if err != nil {
		return nil, 0, err
	}
	err = zeroFill(f, size, nil)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close(), l.fs.Remove(path))
	}
	l.roomless = false
	l.mu.Lock()
	l.crammed = false
	l.mu.Unlock()
	return f, size, nil
}
