package buffer

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// recover builds the state of the log from what is in its folder. It changes files only if the log is not read-only: it seals segments
// that were left open, and moves what cannot be read at all out of the way.
func (l *Log) recover() error {
	files, err := l.fs.List(l.dir)
	if err != nil {
		return err
	}
	kept, err := l.fs.List(filepath.Join(l.dir, quarantineDir))
	if err != nil {
		return err
	}
	for _, f := range kept {
		l.quarantined += f.Size
	}
	slices.SortFunc(files, func(a, b FileInfo) int { return strings.Compare(a.Name, b.Name) })
	var found []scanned
	lostEnd := false
	for _, f := range files {
		if n, ok := parseName(f.Name, segmentSuffix); ok {
			l.nextIndex = max(l.nextIndex, n+1)
			sc, ok, err := l.load(f, n)
			if err != nil {
				return err
			}
			if ok {
				found = append(found, sc)
			} else {
				lostEnd = lostEnd || sc.torn
			}
			continue
		}
		if err := l.recoverSpare(f); err != nil {
			return err
		}
	}
	if n := len(found); n > 0 {
		if err := l.completeStates(&found[n-1]); err != nil {
			return err
		}
		// Only a failed write or fsync leaves a segment open and begins another.
		for _, sc := range found[:n-1] {
			sc.seg.suspect = !sc.sealed
		}
		last := found[n-1]
		lostEnd = lostEnd || !last.sealed && (last.torn || last.header.flags&flagDelayedSync != 0)
	}
	l.resumeTime(found)
	l.restore(found)
	if err := l.checkKeys(); err != nil {
		return err
	}
	l.dropPlainSpares()
	for _, f := range l.later {
		if err := f(); err != nil {
			return err
		}
	}
	l.later = nil
	if lostEnd || len(found) == 0 {
		l.epoch = newEpoch(l.epoch)
	}
	l.reportFound(found)
	if !l.readOnly {
		l.sealFound(found)
	}
	if n := len(l.segments); n > 0 {
		l.anchor = l.segments[n-1]
	}
	return l.closeFiles()
}

// resumeTime lets the log's time go on.
func (l *Log) resumeTime(found []scanned) {
	if len(found) == 0 {
		l.time.begin()
		return
	}
	var latest int64
	for _, sc := range found {
		latest = max(latest, sc.latest)
	}
	h := found[len(found)-1].header
	l.time.resume(h.boot, h.origin, latest)
}

// recoverSpare takes over a spare, or removes what the filler left unfinished.
func (l *Log) recoverSpare(f FileInfo) error {
	if n, ok := parseName(f.Name, spareSuffix); ok {
		l.nextSpare = max(l.nextSpare, n+1)
		if len(l.spares) < maxSpares {
			l.spares = append(l.spares, spare{f.Name, f.Size})
			return nil
		}
	} else if !strings.HasSuffix(f.Name, spareSuffix+tmpSuffix) {
		return nil
	}
	if l.readOnly {
		return nil
	}
	l.afterwards(func() error { return l.fs.Remove(filepath.Join(l.dir, f.Name)) })
	return nil
}

// afterwards puts off what changes the disk until it is clear that the log can be opened.
func (l *Log) afterwards(f func() error) { l.later = append(l.later, f) }

// restore makes the queues and their extents from what was found, oldest first.
func (l *Log) restore(found []scanned) {
	whole := l.restoreStates(found)
	// What a suspect segment holds may stand in memory only. It gives way to any other copy, so it comes first.
	for _, suspect := range []bool{true, false} {
		for i := range found {
			if found[i].seg.suspect == suspect {
				l.restorePieces(&found[i], whole)
			}
		}
	}
	l.settle(l.nextPos - 1)
	for _, q := range l.order {
		q.stored = q.next - 1
		l.findHoles(q)
	}
	for _, s := range l.segments {
		l.checkDead(s)
		l.credit += s.bytes
	}
}

// restorePieces makes the extents of one segment.
func (l *Log) restorePieces(sc *scanned, whole bool) {
	l.nextPos = max(l.nextPos, sc.next)
	for _, p := range sc.pieces {
		q := l.byID[p.queue]
		if q == nil {
			if whole && p.queue < l.nextID {
				continue // the queue was dropped
			}
			q = l.nameless(p.queue)
		}
		q.next = max(q.next, p.last+1)
		l.restorePiece(q, sc.seg, p)
	}
}

// restoreStates finds out what the log knew of its queues; it returns whether any complete list of them was found.
func (l *Log) restoreStates(found []scanned) bool {
	states := map[uint64]queueState{}
	whole := false
	for _, sc := range found {
		for _, u := range sc.updates {
			l.nextID = max(l.nextID, u.nextID)
			old := states
			if u.whole {
				whole, states = true, map[uint64]queueState{}
			}
			for _, st := range u.states {
				if before, ok := old[st.id]; ok {
					st.goOn(&before)
				}
				if st.dropped {
					delete(states, st.id)
				} else {
					states[st.id] = st
				}
			}
		}
	}
	ids := make([]uint64, 0, len(states))
	for id := range states {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		st := states[id]
		q := l.nameless(id)
		if st.name != "" && l.queues[st.name] == nil {
			delete(l.queues, q.name)
			q.name = st.name
			q.keys, _ = l.keysOf(q.name)
			l.queues[q.name] = q
			q.announce = 0
		}
		q.done, q.next, q.evicted = st.done.upTo(st.next-1), st.next, st.evicted
		q.damaged, q.damagedBefore = st.damaged, st.damaged
		q.losses = st.losses
	}
	return whole
}

// goOn takes from an earlier state what this one does not know: cursors go without the name, and those of a frame for which a segment was
// begun are older than the list of all queues there.
func (st *queueState) goOn(before *queueState) {
	if st.name == "" {
		st.name = before.name
	}
	st.done.join(&before.done)
	st.next = max(st.next, before.next)
	st.evicted, st.damaged = max(st.evicted, before.evicted), max(st.damaged, before.damaged)
	st.losses.join(&before.losses)
}

// nameless makes a queue whose name is not known.
func (l *Log) nameless(id uint64) *Queue {
	q := newQueue(l, id, fmt.Sprintf("recovered-%d", id))
	l.nextID = max(l.nextID, id+1)
	l.register(q)
	return q
}

// restorePiece adds a piece to its queue. Where another segment has the same sequences the newer copy counts: records are copied by
// relocating, and by writing again after a failed fsync.
func (l *Log) restorePiece(q *Queue, s *segment, p piece) {
	l.displace(q, p.first, p.last)
	e := indexEntry{queue: p.queue, first: p.first, last: p.last, count: p.count, charge: int64(p.bytes), key: p.key}
	l.addExtent(q, s, p.start, p.tail, p.end, e, p.expires, p.at)
}

// findHoles counts as damaged what should be in the queue and is in no extent.
func (l *Log) findHoles(q *Queue) {
	at := q.done.floor + 1
	var holes []span
	for _, x := range q.extents {
		if x.first > at {
			holes = append(holes, span{at, x.first - 1})
		}
		at = x.last + 1
	}
	if at < q.next {
		holes = append(holes, span{at, q.next - 1})
	}
	var missing []span
	for _, h := range holes {
		missing = q.done.missing(missing, h.lo, h.hi)
	}
	lost := l.lose(q, missing, l.epoch)
	if lost == 0 {
		return
	}
	for _, m := range missing {
		q.unheard = append(q.unheard, lostSpan{m, l.epoch})
	}
	l.log.Warn("records of a queue are damaged", "queue", q.name, "records", lost)
	if l.o.OnDamage != nil {
		l.o.OnDamage(Damage{Queue: q.name, Records: lost, Err: errBadContent})
	}
}

// reportFound reports the bad regions of scanned segments.
func (l *Log) reportFound(found []scanned) {
	for _, sc := range found {
		var ds []Damage
		if sc.headless {
			ds = append(ds, Damage{Segment: sc.seg.name, Bytes: dataStart, Err: errBadHeader})
		}
		for _, r := range sc.bad {
			sc.seg.markBad(r.off)
			ds = append(ds, Damage{Segment: sc.seg.name, Offset: r.off, Bytes: r.end - r.off, Err: r.err})
		}
		if sc.torn {
			ds = append(ds, Damage{Segment: sc.seg.name, Offset: sc.tail.off, Bytes: sc.tail.end - sc.tail.off, Torn: true, Err: sc.tail.err})
		}
		l.counts.damage += uint64(len(ds))
		l.reportDamage(ds)
		if sc.headless && !l.readOnly {
			// The header is written anew, so Verify will not see it again.
			l.aside = append(l.aside, ds[0])
		}
	}
}

// sealFound seals the segments that were left open, so that the next start need not scan them again, and makes what was
// found in them durable: a process that was killed may not have synced its last frames.
func (l *Log) sealFound(found []scanned) {
	for _, sc := range found {
		if sc.seg.suspect {
			continue // it is relocated
		}
		var err error
		if sc.headless {
			err = l.repairHead(sc)
		}
		if sc.intact || sc.headless && sc.sealAt > 0 {
			if err != nil {
				l.log.Warn("repairing a segment failed", "segment", sc.seg.name, "err", err)
			}
			continue
		}
		if err == nil {
			err = l.writeAgain(sc)
		}
		if err == nil {
			err = l.seal(sc.seg, sc.latest)
		}
		if err != nil {
			l.log.Warn("sealing a segment failed", "segment", sc.seg.name, "err", err)
			continue
		}
		l.shrink(sc.seg)
	}
}

// writeAgain writes the last frames of a segment over themselves. If their fsync failed just before the process ended, the kernel takes
// them for written, and only so the next fsync writes them.
func (l *Log) writeAgain(sc scanned) error {
	if sc.last == 0 {
		return nil
	}
	from := min(sc.last, max(dataStart, sc.seg.end-frameBytes))
	b := make([]byte, sc.seg.end-from)
	if err := readFull(sc.seg.file, b, from); err != nil {
		return err
	}
	return writeAt(sc.seg.file, b, from)
}
