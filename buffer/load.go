package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// What cannot be read is not the same as what is read and wrong: a device that resets gives errors for a while and then has everything
// still. So Open waits a little, and then fails rather than to change anything.
const (
	firstReload = 50 * time.Millisecond
	lastReload  = 800 * time.Millisecond
)

// errUnreadable marks an error of the disk while a segment is loaded.
var errUnreadable = errors.New("the segment cannot be read at the moment; its file was left alone")

// load reads one segment file. It returns false if there is nothing in it: then torn says whether something may have been. A log opened
// for reading only takes what can be read, after some tries, as it changes nothing.
func (l *Log) load(info FileInfo, index uint64) (sc scanned, found bool, err error) {
	err = l.insist(info.Name, func(anyway bool) (err error) {
		sc, found, err = l.tryLoad(info, index, anyway)
		return err
	})
	return sc, found, err
}

// insist calls f until it can read what it wants, for some tries; the last time anyway says that unreadable bytes are to be taken for zeros.
func (l *Log) insist(name string, f func(anyway bool) error) error {
	for wait := firstReload; ; wait *= 2 {
		err := f(l.readOnly && wait > lastReload)
		if wait > lastReload || !errors.Is(err, errUnreadable) {
			return err
		}
		l.log.Warn("reading a segment failed; trying again", "segment", name, "err", err)
		time.Sleep(wait)
	}
}

// completeStates reads the state of the queues from the frames of the newest segment, where its seal had no room for that: no other segment
// says it.
func (l *Log) completeStates(sc *scanned) error {
	if !sc.intact || slices.ContainsFunc(sc.updates, func(u update) bool { return u.whole }) {
		return nil
	}
	s := sc.seg
	return l.insist(s.name, func(anyway bool) error {
		f, err := l.fs.Open(s.path(l.dir), true)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", s.name, errUnreadable, err)
		}
		var w window
		w.reset(f, s.salt)
		end := s.end
		frames := scan(&w, s, end, nil)
		s.end = end
		err = errors.Join(w.err, f.Close())
		if err != nil && !anyway {
			return fmt.Errorf("%s: %w: %w", s.name, errUnreadable, err)
		}
		sc.updates = frames.updates
		return nil
	})
}

// tryLoad makes one attempt at load. anyway takes unreadable bytes for zeros.
func (l *Log) tryLoad(info FileInfo, index uint64, anyway bool) (scanned, bool, error) {
	f, err := l.fs.Open(filepath.Join(l.dir, info.Name), l.readOnly)
	if err != nil {
		return scanned{}, false, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	failed := func(err error) (scanned, bool, error) {
		return scanned{}, false, errors.Join(fmt.Errorf("%s: %w", info.Name, err), f.Close())
	}
	h, err := readHeaders(f, info.Size, index)
	switch {
	case err != nil && !anyway:
		return failed(fmt.Errorf("%w: %w", errUnreadable, err))
	case h.version > formatVersion:
		return failed(fmt.Errorf("format %d: this program knows up to %d", h.version, formatVersion))
	case h.version == 0:
		garbage := !h.earlier
		if garbage {
			blank, err := isBlank(f, info.Size)
			if err != nil && !anyway {
				return failed(fmt.Errorf("%w: %w", errUnreadable, err))
			}
			garbage = !blank
		}
		l.afterwards(func() error { return l.dispose(info, garbage) })
		return scanned{torn: garbage}, false, f.Close()
	}
	s := &segment{
		index: index, name: info.Name, salt: h.salt, epoch: h.epoch, first: h.first, size: info.Size, file: f, sealed: true, head: h.raw,
	}
	sc, err := readSegment(f, s, h)
	if err != nil && !anyway {
		return failed(fmt.Errorf("%w: %w", errUnreadable, err))
	}
	if sc.headless && h.unused && s.end == dataStart {
		// The power failed before anything of a new segment was synced.
		l.afterwards(func() error { return l.dispose(info, false) })
		return scanned{}, false, f.Close()
	}
	l.segments = append(l.segments, s)
	l.epoch = max(l.epoch, h.epoch)
	if sc.intact {
		s.file = nil
		return sc, true, f.Close()
	}
	return sc, true, nil
}

// dispose takes a file away that is no segment: one that was about to become one is removed, garbage is put aside.
func (l *Log) dispose(info FileInfo, garbage bool) error {
	switch {
	case garbage:
		l.counts.damage++
		d := Damage{Segment: info.Name, Bytes: info.Size, Kept: l.putAside(info), Err: errBadHeader}
		l.aside = append(l.aside, d)
		l.reportDamage([]Damage{d})
	case !l.readOnly:
		return l.fs.Remove(filepath.Join(l.dir, info.Name))
	}
	return nil
}

// foundHeader is what the copies of a segment's header say.
type foundHeader struct {
	segmentHeader
	raw [segmentHeaderLen]byte
	// version is 0 if no copy is good.
	version uint16
	// tail says that the copy at the end of the file is good, headless that it is the only one.
	tail, headless bool
	// earlier says that the file begins with the header of an earlier life, unused that it begins with that or with zeros.
	earlier, unused bool
	// start is how the file begins.
	start []byte
}

// readHeaders looks for a good header of the segment with the given index.
func readHeaders(f File, size int64, index uint64) (foundHeader, error) {
	h := foundHeader{start: make([]byte, dataStart)}
	end := make([]byte, segmentHeaderLen)
	err := readFull(f, h.start, 0)
	if size >= dataStart+tailLen {
		err = errors.Join(err, readFull(f, end, size-tailLen))
	}
	for i, c := range [][]byte{h.start, h.start[headerCopyAt:], end} {
		x, version := readHeaderCopy(c)
		switch {
		case version > formatVersion:
			h.version = version
			return h, err
		case version == 0:
			continue
		case x.index != index:
			h.earlier = h.earlier || i < 2
			continue
		case h.version == 0:
			h.segmentHeader, h.version, h.headless = x, version, i == 2
			copy(h.raw[:], c)
		}
		h.tail = h.tail || i == 2
	}
	h.unused = h.earlier || len(bytes.Trim(h.start, "\x00")) == 0
	return h, err
}

// isBlank tells whether a file holds nothing but zeros.
func isBlank(f File, size int64) (bool, error) {
	b := make([]byte, min(size, 256<<10))
	for off := int64(0); off < size; off += int64(len(b)) {
		if err := readFull(f, b, off); err != nil {
			return false, err
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// readSegment reads the contents of a segment: from its seal, or else all its frames.
func readSegment(f File, s *segment, h foundHeader) (scanned, error) {
	var w window
	w.reset(f, s.salt)
	limit := s.size
	if h.tail {
		limit = s.limit()
	}
	sealed := false
	end := limit
	if at, ok := readSealSlot(h.start[slotAt:], s.salt); ok {
		sc, ok := readSeal(&w, s, at, limit)
		if ok {
			sc.header, sc.headless, sc.intact = h.segmentHeader, h.headless, true
			return sc, nil
		}
		if at >= dataStart && at <= limit {
			end, sealed = at, true
		}
	}
	sc := scan(&w, s, end, nil)
	sc.header, sc.headless = h.segmentHeader, h.headless
	if sealed {
		// Only the seal is bad: what lies before its place is complete.
		sc.sealed = true
		if sc.torn {
			sc.torn = false
			sc.bad = append(sc.bad, sc.tail)
		}
		sc.bad = append(sc.bad, badRegion{end, limit, errBadBody})
	}
	return sc, w.err
}

// repairHead writes the start of a segment anew from the header at its end.
func (l *Log) repairHead(sc scanned) error {
	f, err := l.fs.Open(sc.seg.path(l.dir), false)
	if err != nil {
		return err
	}
	b := make([]byte, slotAt+slotLen)
	copy(b, sc.seg.head[:])
	copy(b[headerCopyAt:], sc.seg.head[:])
	if sc.sealAt > 0 {
		putSealSlot(b[slotAt:], sc.seg.salt, sc.sealAt)
	} else {
		b = b[:slotAt] // seal writes the slot, or it is there
	}
	return errors.Join(writeAt(f, b, 0), f.Sync(), f.Close())
}
