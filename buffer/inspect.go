package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// OpenReadOnly opens the log of a stopped gateway for looking at it: Queues, Lookup, Scan, Next, Verify. It changes nothing on disk. It
// fails with ErrLocked while another process has the folder open for writing.
func OpenReadOnly(dir string, o Options) (*Log, error) {
	l := newLog(dir, o, true)
	lock, err := l.fs.Lock(filepath.Join(dir, lockName), true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("buffer: open %s: %w", dir, err)
	}
	if err == nil {
		l.lock = lock
	}
	if err := l.recover(); err != nil {
		err = errors.Join(fmt.Errorf("buffer: open %s: %w", dir, err), l.closeFiles())
		if l.lock != nil {
			err = errors.Join(err, l.lock.Close())
		}
		return nil, err
	}
	return l, nil
}

// Report is what Verify found.
type Report struct {
	Segments, Frames, Records uint64
	Bytes                     int64
	// Locked counts the records that are encrypted with a key that was not given: their checksums were checked, not what is in them.
	Locked uint64
	// Damage lists the bad regions, the damaged files Open found and moved aside, and the queues of which records were found missing since Open. A torn end is not damage.
	Damage []Damage
}

// Verify reads every byte of the log and checks it. It changes nothing, and may run while the log is in use.
func (l *Log) Verify() (Report, error) {
	var r Report
	l.mu.Lock()
	segments := append([]*segment(nil), l.segments...)
	for _, s := range segments {
		s.pins++
	}
	l.mu.Unlock()
	var failed error
	var w window
	for _, s := range segments {
		if failed == nil {
			failed = l.verifySegment(&r, &w, s)
		}
		l.mu.Lock()
		l.unpin(s)
		l.mu.Unlock()
		l.closeIdle(s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Damage = append(r.Damage, l.aside...)
	for _, q := range l.order {
		if n := q.damaged - q.damagedBefore; n > 0 {
			r.Damage = append(r.Damage, Damage{Queue: q.name, Records: n, Err: errBadContent})
		}
	}
	return r, failed
}

// verifySegment checks all frames of a pinned segment.
func (l *Log) verifySegment(r *Report, w *window, s *segment) error {
	f, err := pass{log: l, seg: s}.open()
	if err != nil {
		return fmt.Errorf("buffer: verify %s: %w", s.name, err)
	}
	l.mu.Lock()
	end, size := s.end, s.size
	l.mu.Unlock()
	h, err := readHeaders(f, size, s.index)
	if err == nil && (h.version == 0 || h.headless) {
		err = errBadHeader
	}
	if err != nil {
		r.Damage = append(r.Damage, Damage{Segment: s.name, Bytes: dataStart, Err: err})
	}
	w.reset(f, s.salt)
	// A segment of its own, as scanning sets fields.
	copied := &segment{index: s.index, name: s.name, salt: s.salt, epoch: s.epoch, first: s.first}
	var u unsealer
	found := scan(w, copied, end, func(h frameHeader, off int64, body []byte) error {
		locked, err := l.unlock(&u, copied, h, off, body)
		if err != nil {
			return err
		}
		r.Frames++
		r.Records += uint64(h.count)
		r.Locked += locked
		return nil
	})
	r.Segments++
	r.Bytes += end
	if found.torn {
		found.bad = append(found.bad, found.tail)
	}
	for _, b := range found.bad {
		if w.err != nil {
			b.err = fmt.Errorf("%w: %w", b.err, w.err)
		}
		r.Damage = append(r.Damage, Damage{Segment: s.name, Offset: b.off, Bytes: b.end - b.off, Err: b.err})
	}
	return nil
}

// unlock decrypts and decompresses all records of a frame, and tells how many of them it has no key for.
func (l *Log) unlock(u *unsealer, s *segment, h frameHeader, off int64, body []byte) (locked uint64, err error) {
	u.reset()
	at := off + frameHeaderLen
	for range h.sections {
		sec, rest, err := nextSection(body)
		if err != nil {
			return 0, err
		}
		if sec.kind == sectionRecords {
			if !sec.sound() {
				return 0, errBadContent
			}
			_, err := u.records(&l.inflate, sec, s, at, l.anyKey(sec.key), "")
			if missing := (*KeyError)(nil); errors.As(err, &missing) {
				locked += uint64(sec.count)
			} else if err != nil {
				return 0, err
			}
		}
		at += sectionHeaderLen + int64(sec.stored)
		body = rest
	}
	return locked, nil
}

// anyKey gives the key of that name, whoever has it.
func (l *Log) anyKey(id uint32) keyring {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.order {
		if k, ok := q.keys.find(id); ok {
			return keyring{k}
		}
	}
	return nil
}
