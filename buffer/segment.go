package buffer

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	segmentSuffix = ".seg"
	spareSuffix   = ".spare"
	lockName      = "lock"
	quarantineDir = "quarantine"
)

func segmentName(index uint64) string { return fmt.Sprintf("%016x%s", index, segmentSuffix) }
func spareName(n uint64) string       { return fmt.Sprintf("%016x%s", n, spareSuffix) }

// parseName gives the number in a file name with the given suffix.
func parseName(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil
}

// segment is one file of the log. Its fields are guarded by Log.mu, apart from those that never change after it was made.
type segment struct {
	index uint64
	name  string
	salt  uint64
	epoch uint64
	first Pos
	size  int64

	file File
	// end is where the next frame goes, or where the last one ends.
	end int64
	// extents are all that were written, dead ones too: they go into the seal.
	extents []*extent
	// live and bytes sum those of the extents.
	live  uint64
	bytes int64
	// pins counts readers at work; the file is neither closed nor reused meanwhile.
	pins int
	// sealed says that nothing more is written to it.
	sealed bool
	// suspect says that a write or fsync failed, so that the file is never written again.
	suspect bool
	// stuckUntil is when relocating it is tried again, after its records could not be read or did not fit.
	stuckUntil time.Time
	// held says that records were given up because they could not be read: the file is left alone until the next start.
	held bool
	// named says that the names of the queues stand behind the first page, too.
	named bool
	// head is the header, as it stands in the file.
	head [segmentHeaderLen]byte
	// dying says that the segment is listed in Log.dead, gone that its file is.
	dying, gone bool
	// bad holds the offsets of damage that was reported.
	bad map[int64]bool
}

// limit is where the frames must end.
func (s *segment) limit() int64 { return s.size - tailLen }

func (s *segment) path(dir string) string { return filepath.Join(dir, s.name) }

// extent is where a run of records of one queue lies: in the frames from start to end of a segment. The extents of a queue never
// overlap in sequences, so a reader takes them in order, whatever file they are in.
type extent struct {
	seg         *segment
	queue       *Queue
	first, last Seq
	// The frames from start to end hold the records in order; tail is where the last of these frames begins.
	start, tail, end int64
	count            uint64
	// bytes is what all count records are charged; live of them are not yet done with.
	bytes int64
	live  uint64
	// Frames expire from earliest to expires, the log time at which the last record does, and were written from oldest to newest.
	expires, earliest, oldest, newest int64
	// key names the key that seals all of them, 0 if none does.
	key uint32
}

// liveBytes estimates what the live records are charged: their share by number.
func (e *extent) liveBytes() int64 {
	if e.live >= e.count {
		return e.bytes
	}
	return int64(float64(e.bytes) * (float64(e.live) / float64(e.count)))
}

// setLive changes the number of live records and every sum it is part of.
func (l *Log) setLive(e *extent, live uint64) {
	before, bytes := e.live, e.liveBytes()
	e.live = live
	l.addLive(e, live-before, e.liveBytes()-bytes)
	if e.seg.live == 0 {
		l.checkDead(e.seg)
	}
}

// checkDead lists a segment to be freed if nothing in it is needed any more.
func (l *Log) checkDead(s *segment) {
	if s.live == 0 && s != l.active && !s.dying && !s.gone && !s.held {
		s.dying = true
		l.dead = append(l.dead, s)
		l.wakeCommitter()
	}
}

// addExtent notes that the frames from start to end of s hold what e says of q. It extends the extent before it where that is in
// the same file, with all its frames before these and not yet large, but never across a hole: an extent must not claim what it does not
// hold, as a crash can bring back what was acknowledged. tail is where the last frame begins, or end if that is not known.
func (l *Log) addExtent(q *Queue, s *segment, start, tail, end int64, e indexEntry, expires, at int64) {
	charge := e.charge
	i := q.search(e.first)
	if i > 0 {
		p := q.extents[i-1]
		behind := start >= p.end || start == p.tail && end == p.end
		split := p.apart(expires, at) && len(s.extents) < s.splits()
		if p.seg == s && behind && p.key == e.key && p.end-p.start < l.extentBytes(s) && p.last+1 == e.first && !split {
			before, bytes := p.live, p.liveBytes()
			p.last, p.tail, p.end = e.last, tail, end
			p.count += e.count
			p.bytes += charge
			p.expires, p.earliest = max(p.expires, expires), min(p.earliest, expires)
			p.oldest, p.newest = min(p.oldest, at), max(p.newest, at)
			p.live = uint64(p.last-p.first+1) - q.done.count(p.first, p.last)
			l.addLive(p, p.live-before, p.liveBytes()-bytes)
			return
		}
	}
	l.insertExtent(&extent{
		seg: s, queue: q, first: e.first, last: e.last, start: start, tail: tail, end: end, count: e.count, bytes: charge, expires: expires,
		earliest: expires, oldest: at, newest: at, key: e.key,
	})
}

// apart says that records of this age and expiry should not stand in one extent with those of e, as it is given up as a whole.
func (e *extent) apart(expires, at int64) bool {
	const spread = int64(expirySpread / time.Millisecond)
	switch {
	case at-e.oldest > spread || e.newest-at > spread:
		return true
	case e.expires == never || expires == never:
		return e.earliest != expires // where all live for ever, earliest is that too
	}
	return expires-e.earliest > spread || e.expires-expires > spread
}

// splits is how many extents there may be before no more are made for their age alone: the seal must have room for all, and memory too.
func (s *segment) splits() int { return int(min(sealReserve(s.size)/64, 128)) }

// insertExtent adds an extent to its queue and segment.
func (l *Log) insertExtent(x *extent) {
	q, s := x.queue, x.seg
	l.expiring = l.expiring || x.expires != never
	x.live = uint64(x.last-x.first+1) - q.done.count(x.first, x.last)
	if x.live == 0 {
		s.addDead(x)
		return
	}
	s.extents = append(s.extents, x)
	q.extents = slices.Insert(q.extents, q.search(x.first), x)
	l.addLive(x, x.live, x.liveBytes())
}

// addLive changes every sum that the live records of e are part of; live may be negative, wrapped.
func (l *Log) addLive(e *extent, live uint64, bytes int64) {
	e.seg.live += live
	e.seg.bytes += bytes
	e.queue.records += live
	e.queue.bytes += bytes
	if b := e.queue.bound; b != nil {
		b.used += bytes
	} else {
		l.unbound += bytes
	}
}

// extentBytes is where an extent is closed: what one read takes.
func (l *Log) extentBytes(s *segment) int64 { return min(max(s.size/16, 64<<10), 1<<20) }

// addDead keeps a dead extent for the seal, joined to the one before it where there is one.
func (s *segment) addDead(x *extent) {
	for i := len(s.extents) - 1; i >= max(0, len(s.extents)-8); i-- {
		p := s.extents[i]
		behind := x.start >= p.end || x.start == p.tail && x.end == p.end
		if p.queue == x.queue && p.live == 0 && p.last+1 == x.first && behind {
			p.last, p.tail, p.end = x.last, x.tail, x.end
			p.count += x.count
			p.bytes += x.bytes
			return
		}
	}
	s.extents = append(s.extents, x)
}

// displace takes lo..hi out of the extents of q.
func (l *Log) displace(q *Queue, lo, hi Seq) {
	i := q.search(lo)
	var old []*extent
	for j := i; j < len(q.extents) && q.extents[j].first <= hi; j++ {
		old = append(old, q.extents[j])
	}
	q.extents = slices.Delete(q.extents, i, i+len(old))
	for _, x := range old {
		l.addLive(x, -x.live, -x.liveBytes())
		x.seg.extents = slices.DeleteFunc(x.seg.extents, func(e *extent) bool { return e == x })
		if x.first < lo {
			l.keepPart(x, x.first, lo-1)
		}
		if x.last > hi {
			l.keepPart(x, hi+1, x.last)
		}
	}
	if l.active != nil {
		for _, x := range old {
			l.checkDead(x.seg)
		}
	}
}

// keepPart adds lo..hi of x again, with its share of the bytes.
func (l *Log) keepPart(x *extent, lo, hi Seq) {
	count := min(x.count, uint64(hi-lo)+1)
	bytes := int64(float64(x.bytes) / float64(x.count) * float64(count))
	l.insertExtent(&extent{
		seg: x.seg, queue: x.queue, first: lo, last: hi, start: x.start, tail: x.tail, end: x.end, count: count, bytes: bytes, expires: x.expires,
		earliest: x.earliest, oldest: x.oldest, newest: x.newest, key: x.key,
	})
}
