package buffer

import (
	"cmp"
	"slices"
	"time"
)

// Stats tells how the whole log is. Counters begin at Open.
type Stats struct {
	Epoch uint64
	// Segments and Bytes are the files on disk, Spares those among them that are only kept ready. LiveBytes is what the stored records
	// are charged.
	Segments, Spares int
	Bytes, LiveBytes int64
	// Frames and Records were written, with Syncs fsyncs, and PayloadBytes is the records' data. WrittenBytes is all that the disk was
	// given for it, in whole pages: frames, headers, and the zeros of new segments. RelocatedBytes only moved old records.
	Frames, Records, Syncs     uint64
	PayloadBytes, WrittenBytes uint64
	RelocatedBytes             int64
	// Evicted and Damaged records; DamagedRegions counts places on disk. Failed records were never durable, and who waited was told.
	Evicted, Damaged, DamagedRegions, Failed uint64
	// WaitingBytes wait for the disk.
	WaitingBytes int64
	// Alarms counts failures of the disk. LastError is the last one, nil after a commit without trouble if no reader stands still because
	// the disk cannot be read.
	Alarms    uint64
	LastError error
	// NoSpace says that the disk is full: the bounds act as if they were full.
	NoSpace bool
}

// Stats gives a snapshot.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.counts
	s := Stats{
		Epoch: l.epoch, Segments: len(l.segments), Spares: len(l.spares), Frames: c.frames, Records: c.records, Syncs: c.syncs,
		PayloadBytes: c.payload, WrittenBytes: l.fs.written.Load(), RelocatedBytes: c.relocated, Evicted: c.evicted,
		Damaged: c.damaged, DamagedRegions: c.damage,
		Failed: c.failed, WaitingBytes: l.gathered, Alarms: c.alarms, LastError: c.lastError, NoSpace: l.noSpace,
	}
	if s.LastError == nil {
		s.LastError = l.stalled()
	}
	for _, x := range l.segments {
		s.Bytes += x.size
		s.LiveBytes += x.bytes
	}
	for _, x := range l.spares {
		s.Bytes += x.size
	}
	return s
}

// QueueStats tells how one queue is.
type QueueStats struct {
	Name string
	// Declared says that this process uses the queue; others were left by an earlier configuration.
	Declared bool
	// Records and Bytes are stored; Bytes is what they are charged to the bound, an estimate where a file is partly done with.
	Records uint64
	Bytes   int64
	// Waiting bytes are not yet on disk.
	WaitingBytes int64
	// First and Last are the sequences of the oldest and newest stored record, 0 if there is none.
	First, Last Seq
	// Floor: all up to it are done with. Next is what the next record gets.
	Floor, Next Seq
	// Oldest and Newest tell when these were appended, by today's wall clock less their age, zero if there is none.
	Oldest, Newest time.Time
	// Segments is the number of files that hold records of the queue.
	Segments int
	// Keys counts the stored records by the ID of the key they are encrypted with; empty if none is.
	Keys map[string]uint64
	// Evicted and Damaged count since the queue was made, the others since Open.
	Evicted, Damaged, Purged, Expired, Failed uint64
	// Unheard records of Damaged were found before Log.Queue was called, which will report them to OnDrop.
	Unheard uint64
}

// Stats gives a snapshot. Finding the oldest record's time may read up to a MiB from disk, once for each oldest record.
func (q *Queue) Stats() QueueStats {
	l := q.log
	l.mu.Lock()
	s := q.stats()
	known := q.times
	l.mu.Unlock()
	if s.Records == 0 {
		return s
	}
	if known.first != s.First {
		known.first, known.oldest = s.First, q.timeOf(s.First)
	}
	if known.last != s.Last {
		known.last, known.newest = s.Last, q.timeOf(s.Last)
	}
	s.Oldest, s.Newest = l.wallOrZero(known.oldest), l.wallOrZero(known.newest)
	l.mu.Lock()
	defer l.mu.Unlock()
	q.times.first, q.times.oldest = known.first, known.oldest
	if q.times.last < known.last {
		q.times.last, q.times.newest = known.last, known.newest
	}
	return s
}

// stats gives all but the times. Log.mu is held.
func (q *Queue) stats() QueueStats {
	s := QueueStats{
		Name: q.name, Declared: q.declared, Records: q.records, Bytes: q.bytes, WaitingBytes: q.pending, Floor: q.done.floor, Next: q.next,
		Evicted: q.evicted, Damaged: q.damaged, Purged: q.purged, Expired: q.expired, Failed: q.failed,
	}
	for _, u := range q.unheard {
		s.Unheard += uint64(u.hi - u.lo + 1)
	}
	if q.records == 0 {
		return s
	}
	// Between the floor and the first span above it nothing is done with.
	s.First = q.done.floor + 1
	s.Last = q.stored
	if n := len(q.done.spans); n > 0 && q.done.spans[n-1].hi == s.Last {
		s.Last = q.done.spans[n-1].lo - 1
	}
	for id, n := range q.keyIDs() {
		if id != 0 {
			if s.Keys == nil {
				s.Keys = map[string]uint64{}
			}
			s.Keys[keyName(id)] = n
		}
	}
	var last *segment
	for _, e := range q.extents {
		if e.seg != last {
			s.Segments++
			last = e.seg
		}
	}
	return s
}

// times caches when the oldest and newest record were appended.
type times struct {
	first, last    Seq
	oldest, newest int64 // log times
}

func (q *Queue) timeOf(seq Seq) int64 {
	var at int64
	// An error only leaves the time unknown; it is met again, and reported, by the reader.
	_ = q.Scan(seq-1, func(r Rec) bool {
		at = r.received
		return false
	})
	return at
}

// Queues gives the state of every queue there is, declared or not, by name.
func (l *Log) Queues() []QueueStats {
	l.mu.Lock()
	qs := make([]*Queue, 0, len(l.queues))
	for _, q := range l.queues {
		qs = append(qs, q)
	}
	l.mu.Unlock()
	slices.SortFunc(qs, func(a, b *Queue) int { return cmp.Compare(a.name, b.name) })
	out := make([]QueueStats, 0, len(qs))
	for _, q := range qs {
		out = append(out, q.Stats())
	}
	return out
}

// Lookup gives a queue that is there without declaring it, for listing and for reading what is left of an earlier configuration; nil if
// there is none.
func (l *Log) Lookup(name string) *Queue {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queues[name]
}
