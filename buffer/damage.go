package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// noteDamage gives up the records of q that a pass should have found and did not. It returns what is to be reported of it, and the
// lost sequences. Log.mu is held.
func (l *Log) noteDamage(q *Queue, p pass, res passResult, recs []Rec) ([]Damage, []span) {
	if len(res.damage) == 0 && uint64(len(recs)) == uint64(res.reached-p.lo+1) {
		return nil, nil
	}
	var spans []span
	at := p.lo
	for i := range recs {
		if recs[i].Seq > at {
			spans = q.done.missing(spans, at, recs[i].Seq-1)
		}
		at = recs[i].Seq + 1
	}
	if at <= res.reached {
		spans = q.done.missing(spans, at, res.reached)
	}
	lost := l.lose(q, spans, p.seg.epoch)
	if len(res.damage) == 0 && lost > 0 {
		res.damage = []badRegion{{p.off, p.end, errBadContent}}
	}
	var ds []Damage
	for _, r := range res.damage {
		if known := p.seg.bad[r.off]; known && lost == 0 {
			continue
		} else if !known {
			l.counts.damage++
			p.seg.markBad(r.off)
		}
		ds = append(ds, Damage{Segment: p.seg.name, Offset: r.off, Bytes: r.end - r.off, Queue: q.name, Records: lost, Err: r.err})
		lost = 0 // counted once
	}
	return ds, spans
}

// lose counts spans of q as damaged and marks them as done with. Log.mu is held.
func (l *Log) lose(q *Queue, spans []span, epoch uint64) uint64 {
	var n uint64
	q.leaves(Damaged, epoch, spans)
	for _, s := range spans {
		n += l.finish(q, s.lo, s.hi)
	}
	q.damaged += n
	q.urgent = q.urgent || n > 0
	l.counts.damaged += n
	return n
}

// lostSpan is a run of sequences that are gone, with the epoch in which they were appended as far as it is known.
type lostSpan struct {
	span
	epoch uint64
}

// reportLost tells the owner of q which records were found damaged, or keeps that until there is an owner.
func (q *Queue) reportLost(spans []span, epoch uint64) {
	q.log.mu.Lock()
	unheard := q.onDrop == nil
	if unheard {
		for _, s := range spans {
			q.unheard = append(q.unheard, lostSpan{s, epoch})
		}
	}
	q.log.mu.Unlock()
	if !unheard {
		q.report(Damaged, spans, epoch)
	}
}

// report tells the owner of q which sequences are gone whose data nobody has.
func (q *Queue) report(why Reason, spans []span, epoch uint64) {
	onDrop := q.dropFunc()
	if onDrop == nil || len(spans) == 0 {
		return
	}
	const most = 1024
	recs := make([]Rec, 0, most)
	for _, s := range spans {
		for seq := s.lo; seq <= s.hi; seq++ {
			if recs = append(recs, Rec{Seq: seq, Epoch: epoch, expires: never}); len(recs) == most {
				q.drop(onDrop, why, recs)
				recs = recs[:0]
			}
		}
	}
	if len(recs) > 0 {
		q.drop(onDrop, why, recs)
	}
}

func (s *segment) markBad(off int64) {
	if s.bad == nil {
		s.bad = map[int64]bool{}
	}
	s.bad[off] = true
}

// reportDamage keeps copies of the bad bytes and tells the owner. It runs without lock.
func (l *Log) reportDamage(ds []Damage) {
	for _, d := range ds {
		if !l.readOnly && d.Kept == "" {
			d.Kept = l.quarantine(d)
		}
		l.log.Warn("damaged bytes in the buffer", "segment", d.Segment, "offset", d.Offset, "bytes", d.Bytes, "queue", d.Queue,
			"records", d.Records, "torn", d.Torn, "kept", d.Kept, "err", d.Err)
		if l.o.OnDamage != nil {
			l.o.OnDamage(d)
		}
	}
}

// maxKept bounds what is kept of one damaged region.
const maxKept = 1 << 20

// quarantine copies a damaged region to the quarantine folder, if there is room, and gives the name of the copy.
func (l *Log) quarantine(d Damage) string {
	n := min(d.Bytes, maxKept)
	dir := filepath.Join(l.dir, quarantineDir)
	name := fmt.Sprintf("%s-%d.bad", d.Segment, d.Offset)
	l.mu.Lock()
	fits := n > 0 && l.quarantined+n <= l.o.QuarantineBytes
	if fits {
		l.quarantined += n
	}
	l.mu.Unlock()
	if !fits {
		return ""
	}
	if err := l.copyOut(d, n, dir, name); err != nil {
		if !errors.Is(err, os.ErrExist) {
			l.log.Warn("keeping damaged bytes failed", "segment", d.Segment, "offset", d.Offset, "err", err)
			return ""
		}
	}
	return filepath.Join(quarantineDir, name)
}

func (l *Log) copyOut(d Damage, n int64, dir, name string) error {
	src, err := l.fs.Open(filepath.Join(l.dir, d.Segment), true)
	if err != nil {
		return err
	}
	b := make([]byte, n)
	_ = readFull(src, b, d.Offset) // what cannot be read is kept as zeros
	err = src.Close()
	if e := l.fs.MkdirAll(dir); e != nil {
		return errors.Join(err, e)
	}
	dst, e := l.fs.Create(filepath.Join(dir, name))
	if e != nil {
		return errors.Join(err, e)
	}
	return errors.Join(err, writeAt(dst, b, 0), dst.Close())
}

// putAside moves a segment whose headers are all lost, and with them the salt that checks its frames, to the quarantine folder. It may hold
// records nobody else has, so it is kept there whatever the bound of that folder; only copies of damaged regions then find no room.
func (l *Log) putAside(f FileInfo) string {
	if l.readOnly {
		return f.Name
	}
	path, dir := filepath.Join(l.dir, f.Name), filepath.Join(l.dir, quarantineDir)
	kept := filepath.Join(quarantineDir, f.Name)
	if err := errors.Join(l.fs.MkdirAll(dir), l.fs.Rename(path, filepath.Join(l.dir, kept))); err != nil {
		l.log.Warn("putting a damaged segment aside failed", "segment", f.Name, "err", err)
		return f.Name
	}
	l.quarantined += f.Size
	return kept
}
