package buffer

import (
	"errors"
	"fmt"
)

// update is a change of the state of queues, as found on disk.
type update struct {
	whole  bool // every queue there is
	nextID uint64
	states []queueState
}

// keep adds what stands behind the states.
func (u *update) keep(losses map[uint64]lossList) {
	for i := range u.states {
		u.states[i].losses = losses[u.states[i].id]
	}
}

// scanned is what was found in one segment.
type scanned struct {
	seg     *segment
	header  segmentHeader
	pieces  []piece
	updates []update
	bad     []badRegion
	// latest is the largest log time in it.
	latest int64
	// next is the position behind the last frame.
	next Pos
	// last is where the last frame with records begins.
	last int64
	// sealed says that the segment was closed for writing, torn that the last frame is not whole.
	sealed, torn bool
	// intact says that all this was read from the seal.
	intact bool
	// headless says that only the header at the end of the file is good; sealAt is where the seal was found then, 0 if there is none.
	headless bool
	sealAt   int64
	tail     badRegion
}

// piece is what one frame, or one extent of a seal, holds of one queue.
type piece struct {
	extentState
	tail int64 // as in extent
	at   int64 // when it was written, at the latest
	key  uint32
}

// scan reads all frames of a segment up to limit, which is the end of the file or the place of the seal. It looks past bad regions: only
// if no good frame follows is it the end.
func scan(w *window, s *segment, limit int64, visit func(h frameHeader, off int64, body []byte) error) (out scanned) {
	out = scanned{seg: s, next: s.first}
	s.end = dataStart
	var bad []badRegion
	for off := int64(dataStart); off < limit; {
		h, body, err := w.frame(off, limit, true)
		if err == nil {
			err = out.take(h, off, body, s)
		}
		if err == nil && visit != nil {
			err = visit(h, off, body)
		}
		if err == nil {
			out.bad, bad = append(out.bad, bad...), nil
			off += h.total()
			s.end = off
			if h.kind == frameCommit && h.count > 0 {
				out.last = off - h.total()
			}
			out.next = max(out.next, h.first+h.positions())
			if h.kind == frameSeal {
				out.sealed, out.sealAt = true, off
				return out
			}
			continue
		}
		if len(bad) == 0 {
			if mark, e := w.get(off, int(min(endMarkLen, limit-off)), limit, true); e == nil && isEndMark(mark, s.salt, off) {
				return out
			}
		}
		from := off + 1
		if h.length > 0 && !errors.Is(err, errPastEnd) {
			from = off + h.total()
		}
		next, ok := w.resync(from, limit)
		if !ok {
			next = limit
		}
		bad = append(bad, badRegion{off, next, err})
		off = next
	}
	if len(bad) > 0 {
		out.torn = true
		out.tail = badRegion{bad[0].off, limit, bad[0].err}
	}
	return out
}

// take notes what a good frame holds.
func (out *scanned) take(h frameHeader, off int64, body []byte, s *segment) error {
	var pieces []piece
	var updates []update
	raw := uint64(0)
	for range h.sections {
		sec, rest, err := nextSection(body)
		if err != nil {
			return err
		}
		body = rest
		switch sec.kind {
		case sectionRecords:
			entries, err := decodeIndex(nil, sec, s.epoch)
			if err != nil {
				return err
			}
			for _, e := range entries {
				expires := h.expires
				if expires == 0 {
					expires = never
				}
				pieces = append(pieces, piece{tail: off, at: h.base, key: e.key, extentState: extentState{
					queue: e.queue, first: e.first, last: e.last, start: off, end: off + h.total(),
					count: e.count, bytes: e.bytes + e.count*recordOverhead, expires: expires,
				}})
				raw += e.bytes + e.count*recordOverhead
			}
		case sectionQueues, sectionCursors:
			nextID, states, err := decodeQueueStates(sec)
			if err != nil {
				return err
			}
			updates = append(updates, update{sec.kind == sectionQueues, nextID, states})
		case sectionLosses:
			losses, err := decodeLosses(sec)
			if err != nil {
				return err
			}
			if n := len(updates); n > 0 {
				updates[n-1].keep(losses)
			}
		}
	}
	if len(body) != 0 {
		return fmt.Errorf("sections: %w", errBadContent)
	}
	for i := range pieces {
		pieces[i].bytes = max(uint64(share(h.total(), int64(pieces[i].bytes), int64(raw))), pieces[i].bytes)
	}
	out.latest = max(out.latest, h.base)
	out.pieces = append(out.pieces, pieces...)
	out.updates = append(out.updates, updates...)
	return nil
}

// readSeal takes the contents of a sealed segment from its last frame. It returns false if that is not intact.
func readSeal(w *window, s *segment, at, size int64) (scanned, bool) {
	out := scanned{seg: s, sealed: true}
	if at < dataStart || at > size {
		return out, false
	}
	h, body, err := w.frame(at, size, true)
	if err != nil || h.kind != frameSeal {
		return out, false
	}
	if out.take(h, at, body, s) != nil {
		return out, false
	}
	for range h.sections {
		sec, rest, err := nextSection(body)
		if err != nil {
			return out, false
		}
		body = rest
		switch sec.kind {
		case sectionExtents:
			extents, err := decodeExtents(sec)
			if err != nil {
				return out, false
			}
			for _, e := range extents {
				if e.end > at {
					return out, false
				}
				out.pieces = append(out.pieces, piece{extentState: e, tail: e.end, at: h.base})
			}
		case sectionAges:
			ages, err := decodeAges(sec, h.base, len(out.pieces))
			if err != nil {
				return out, false
			}
			for i := range ages {
				out.pieces[i].at = ages[i]
			}
		case sectionKeys:
			keys, err := decodeKeys(sec, len(out.pieces))
			if err != nil {
				return out, false
			}
			for i := range keys {
				out.pieces[i].key = keys[i]
			}
		}
	}
	s.end, out.next = at+h.total(), h.first
	return out, true
}
