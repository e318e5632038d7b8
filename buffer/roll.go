package buffer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// segmentFor gives the active segment if n more bytes fit, else a new one.
func (l *Log) segmentFor(n int) (*segment, error) {
	if s := l.active; s.writable() && int64(n) <= s.room() {
		return s, nil
	}
	return l.roll(n)
}

// roll begins a new segment with room for a frame of n bytes, and makes it the active one. The one before is sealed when there is a file
// for the new one: until then it can take what has to move to make room for that.
func (l *Log) roll(n int) (*segment, error) {
	s, err := l.newSegment(n)
	if err != nil && isNoSpace(err) {
		if moved, e := l.squeeze(); e != nil {
			err = errors.Join(err, e)
		} else if moved {
			s, err = l.newSegment(n)
		}
	}
	if err != nil && isNoSpace(err) {
		l.setDesperate(true)
		s, err = l.newSegment(n)
		l.setDesperate(false)
	}
	if err != nil {
		return nil, err
	}
	if old := l.active; old.writable() {
		l.chargeWhole(old)
		if err := l.seal(old, l.time.now()); err != nil {
			return nil, errors.Join(err, l.abandon(s))
		}
	}
	if err := l.begin(s, n); err != nil {
		err = errors.Join(fmt.Errorf("write %s: %w", s.name, err), l.abandon(s))
		if errors.Is(err, errOutgrown) {
			return l.roll(n)
		}
		return nil, err
	}
	l.foresee()
	if err := l.makeWay(int64(n)); err != nil {
		return nil, err
	}
	return s, nil
}

// setDesperate says that records of queues with QueueOptions.Stays may make room too, as there is none otherwise.
func (l *Log) setDesperate(on bool) {
	l.mu.Lock()
	l.desperate = on
	l.mu.Unlock()
}

// writable reports whether frames may be added to it.
func (s *segment) writable() bool { return s != nil && !s.suspect && !s.sealed }

// room is how long a frame may be to go into the active segment.
func (s *segment) room() int64 { return s.limit() - s.end - endMarkLen - sealReserve(s.size) }

// tight is the same where nothing is kept free but what the seal takes.
func (s *segment) tight() int64 {
	return s.limit() - s.end - endMarkLen - min(int64(512+sealedExtent*len(s.extents)), sealReserve(s.size))
}

// sealedExtent is how many bytes of the seal one extent takes, at most in all likelihood.
const sealedExtent = 96

// chargeWhole charges the whole file of a segment that is full to the records in it, what stays empty at its end included, so that the
// bounds hold for what the disk has to give.
func (l *Log) chargeWhole(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := int64(0)
	for _, e := range s.extents {
		sum += e.bytes
	}
	if sum >= s.size {
		return // they are compressed
	}
	for _, e := range s.extents {
		before := e.liveBytes()
		e.bytes = share(s.size, e.bytes, sum)
		if e.live > 0 {
			l.addLive(e, 0, e.liveBytes()-before)
		}
	}
}

// sealReserve is kept free at the end of a segment for its seal frame.
func sealReserve(size int64) int64 { return min(max(size/64, 4<<10), 64<<10, size/8) }

// segmentBytes is the size of new segments.
func (l *Log) segmentBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segmentSize()
}

// segmentSize is segmentBytes with Log.mu held.
func (l *Log) segmentSize() int64 {
	return l.o.segmentSize(l.boundTotal())
}

// segmentSize is the size of segments where all bounds together allow total bytes.
func (o *Options) segmentSize(total int64) int64 {
	if o.SegmentBytes > 0 {
		return max(o.SegmentBytes, 8<<10) &^ 4095
	}
	return min(max(total/32, minSegmentBytes), maxSegmentBytes) &^ 4095
}

// boundTotal is what all bounds together allow, those that are to be made included. Log.mu is held.
func (l *Log) boundTotal() int64 { return max(l.bounded, l.o.Bounds) }

// newSegment makes the file of a segment with room for a frame of n bytes. Nothing is written into it.
func (l *Log) newSegment(n int) (*segment, error) {
	l.mu.Lock()
	check, queues := l.checkpoint(), len(l.order)
	index := l.nextIndex
	l.nextIndex++
	first := l.durableNext()
	l.mu.Unlock()

	const grows = 64 // bytes by which the state of a queue may, as records are evicted for the sake of the file
	need := dataStart + 2*int64(len(check.buf)+grows*queues) + int64(n) + endMarkLen + tailLen
	need += sealReserve(need + need/4)
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("salt: %w", err)
	}
	s := &segment{index: index, name: segmentName(index), salt: binary.LittleEndian.Uint64(salt[:]), epoch: l.epoch, first: first}
	f, size, err := l.segmentFile(s.name, need)
	if err != nil {
		return nil, fmt.Errorf("new segment %s: %w", s.name, err)
	}
	s.file, s.size = f, size
	return s, nil
}

// abandon removes the file of a segment that was not begun.
func (l *Log) abandon(s *segment) error {
	return errors.Join(s.file.Close(), l.fs.Remove(s.path(l.dir)))
}

// errOutgrown says that the state of the queues became so large since a file was made for it that a frame does not fit any more.
var errOutgrown = errors.New("the state of the queues has outgrown the file")

// begin makes a new segment the active one, for a frame of n bytes. The header and the state of all queues are written but not synced: that
// is done with the first frame.
func (l *Log) begin(s *segment, n int) error {
	l.mu.Lock()
	check := l.checkpoint() // what was evicted for the sake of the file is in it
	l.mu.Unlock()
	b := make([]byte, dataStart, dataStart+2*len(check.buf)+2*endMarkLen)
	h := segmentHeader{
		salt: s.salt, index: s.index, first: s.first, epoch: s.epoch, boot: l.time.boot, origin: l.time.origin, size: uint32(s.size),
	}
	if l.o.Sync > 0 {
		h.flags |= flagDelayedSync
	}
	putSegmentHeader(b, h)
	copy(s.head[:], b)
	// Twice, so that one bad bit does not cost the names of the queues.
	for range 2 {
		s.named = len(b) >= firstPage
		framed, err := check.finish(&l.vault, s, int64(len(b)))
		if err != nil {
			return err
		}
		b = append(b, framed[:len(framed)-endMarkLen]...)
	}
	s.end = int64(len(b))
	if s.end+int64(n)+endMarkLen > s.limit() {
		return errOutgrown
	}
	b = append(b, make([]byte, endMarkLen)...)
	putEndMark(b[s.end:], s.salt, s.end)
	err := writeAt(s.file, s.head[:], s.size-tailLen)
	if err == nil {
		err = writeAt(s.file, b, 0)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.active
	l.segments = append(l.segments, s)
	l.active = s
	if old != nil {
		l.checkDead(old)
	}
	l.wakeFiller()
	l.log.Debug("segment begun", "segment", s.name, "bytes", s.size)
	return nil
}

// checkpoint gives a frame with the state of every queue. Log.mu is held.
func (l *Log) checkpoint() *frameBuilder {
	f := newFrame(frameCheckpoint, nil, l.time.now())
	f.first = l.durableNext()
	l.addQueues(f)
	return f
}

func (l *Log) addQueues(f *frameBuilder) {
	all := slices.DeleteFunc(slices.Clone(l.order), func(q *Queue) bool { return q.dropped })
	f.addStates(sectionQueues, l.nextID, all, func(*Queue) bool { return true })
}

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

// seal ends a segment: its last frame says what is in it, so that it need not be scanned. at is the log time of that frame: now, or for a
// segment that another process wrote the last time in it, as its header names the start of the machine in which that was.
func (l *Log) seal(s *segment, at int64) error {
	l.mu.Lock()
	s.sealed = true
	f := newFrame(frameSeal, nil, at)
	f.first = l.durableNext()
	f.addSection(sectionExtents, func(b []byte) ([]byte, int) {
		for _, e := range s.extents {
			b = appendExtent(b, extentState{e.queue.id, e.first, e.last, e.start, e.end, e.count, uint64(e.bytes), e.expires})
		}
		return b, len(s.extents)
	})
	f.addSection(sectionAges, func(b []byte) ([]byte, int) {
		for _, e := range s.extents {
			b = appendAge(b, f.base, e.newest)
		}
		return b, len(s.extents)
	})
	if slices.ContainsFunc(s.extents, func(e *extent) bool { return e.key != 0 }) {
		f.addSection(sectionKeys, func(b []byte) ([]byte, int) {
			for _, e := range s.extents {
				b = appendUint(b, uint64(e.key))
			}
			return b, len(s.extents)
		})
	}
	short, sections := len(f.buf), f.sections
	l.addQueues(f)
	l.mu.Unlock()
	room := s.limit() - s.end - endMarkLen
	if int64(len(f.buf)) > room {
		// The next segment begins with the state of the queues anyway.
		f.buf, f.sections = f.buf[:short], sections
	}
	if int64(len(f.buf)) > room {
		return l.sync(s)
	}
	off := s.end
	b, err := f.finish(&l.vault, s, off)
	if err == nil {
		err = writeAt(s.file, b, off)
	}
	if err != nil {
		l.suspect(s)
		return fmt.Errorf("seal %s: %w", s.name, err)
	}
	var slot [slotLen]byte
	putSealSlot(slot[:], s.salt, off)
	if err := writeAt(s.file, slot[:], slotAt); err != nil {
		l.suspect(s)
		return fmt.Errorf("seal %s: %w", s.name, err)
	}
	if err := l.sync(s); err != nil {
		return err
	}
	l.mu.Lock()
	l.unsynced = time.Time{}
	s.end = off + int64(len(f.buf))
	l.mu.Unlock()
	return nil
}

// shrink cuts off what a sealed segment does not need, if that is worth it. The copy of the header moves to the new end first.
func (l *Log) shrink(s *segment) {
	used := (s.end+endMarkLen+tailLen-1)/tailLen*tailLen + tailLen
	if used >= s.size-s.size/8 {
		return
	}
	err := writeAt(s.file, s.head[:], used-tailLen)
	if err == nil {
		err = s.file.Sync()
	}
	if err == nil {
		err = s.file.Truncate(used)
	}
	if err != nil {
		l.log.Warn("shortening a segment failed", "segment", s.name, "err", err)
		return
	}
	l.mu.Lock()
	s.size = used
	l.mu.Unlock()
}

// finalSeal is the last thing before the log is closed.
func (l *Log) finalSeal() {
	if s := l.active; s.writable() {
		if err := l.seal(s, l.time.now()); err != nil {
			l.closeErr = errors.Join(l.closeErr, err)
			return
		}
		l.shrink(s)
	}
}

// free gives up segments nobody needs: as spares, or for good.
func (l *Log) free(dead []*segment) {
	if len(dead) == 0 {
		return
	}
	var ready []spare
	size := l.segmentBytes()
	for _, s := range dead {
		l.mu.Lock()
		if s.pins > 0 || s.gone {
			l.mu.Unlock()
			continue
		}
		s.gone = true
		l.segments = slices.DeleteFunc(l.segments, func(x *segment) bool { return x == s })
		l.dead = slices.DeleteFunc(l.dead, func(x *segment) bool { return x == s })
		keep := len(l.spares)+len(ready) < maxSpares && !s.suspect && s.size == size && !(l.seals() && s.plainInside())
		n := l.nextSpare
		l.nextSpare++
		l.fileMu.Lock()
		f := s.file
		s.file = nil
		l.fileMu.Unlock()
		l.mu.Unlock()
		var err error
		if f != nil {
			err = f.Close()
		}
		if keep {
			sp := spare{name: spareName(n), size: s.size}
			if e := l.fs.Rename(s.path(l.dir), filepath.Join(l.dir, sp.name)); e == nil {
				ready = append(ready, sp)
			} else {
				err = errors.Join(err, e)
			}
		} else {
			err = errors.Join(err, l.fs.Remove(s.path(l.dir)))
		}
		l.log.Debug("segment freed", "segment", s.name, "kept", keep)
		if err != nil {
			l.log.Warn("freeing a segment failed", "segment", s.name, "err", err)
		}
	}
	// A spare may be overwritten only when its old name is gone for good.
	err := l.fs.SyncDir(l.dir)
	if err != nil {
		for _, sp := range ready {
			err = errors.Join(err, l.fs.Remove(filepath.Join(l.dir, sp.name)))
		}
		l.alarm(fmt.Errorf("sync %s: %w", l.dir, err))
		return
	}
	l.mu.Lock()
	l.spares = append(l.spares, ready...)
	l.roomAgain()
	l.mu.Unlock()
}

// roomAgain lifts the lowered bounds after something was freed. Log.mu is held.
func (l *Log) roomAgain() {
	l.noSpace = false
	for _, b := range l.bounds {
		b.ceiling = 0
	}
	l.wakeFiller()
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
