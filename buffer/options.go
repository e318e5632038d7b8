package buffer

import (
	"log/slog"
	"time"
)

// Sizes in bytes.
const (
	// MaxRecordBytes is the largest record, whatever its bound.
	MaxRecordBytes = 16 << 20

	minSegmentBytes = 256 << 10
	maxSegmentBytes = 16 << 20
	// frameBytes is where a gathering frame is closed: enough to make an fsync worthwhile, little enough to lose to one bad bit.
	frameBytes = 1 << 20
	// readBytes is what one batch of a reader takes, about: a forwarder keeps several of them in memory.
	readBytes = 512 << 10
	// recordOverhead is charged to the bound for each record beside its data, at least.
	recordOverhead = 16
)

// Options of a Log.
type Options struct {
	// SegmentBytes is the size of a segment file. 0 means a thirty-second of all bounds, at least 256 KiB, at most 16 MiB.
	SegmentBytes int64
	// Bounds is what all bounds will allow together, those included that are made later; 0: not known. A bound keeps a part of itself free,
	// which is smaller the more others there are. So where this is not known, the first of several that are full at the start may make
	// room that is not needed.
	Bounds int64
	// Sync is how long written records may stay at risk. 0 means always: a record is durable after the fsync of its frame.
	// Otherwise a record counts as durable once written, and the fsync follows at most that much later.
	Sync time.Duration
	// GatherBytes bounds the memory of records that wait for the disk. 0 means 8 MiB. Append answers ErrBusy beyond it.
	GatherBytes int64
	// SaveEvery is how long an acknowledgement may wait to be written when there is nothing else to write. 0 means 1 s.
	SaveEvery time.Duration
	// QuarantineBytes bounds the folder where copies of damaged bytes are kept for a look. 0 means 16 MiB. A segment of which no header is
	// intact is moved there even if it goes beyond the bound: it is the only copy of what is in it. Nothing is removed from there.
	QuarantineBytes int64

	// OnSync is told how long each fsync of a frame took.
	OnSync func(d time.Duration)
	// OnDamage is told of each damaged region once. It must be quick and must not call the log.
	OnDamage func(d Damage)
	// OnAlarm is told when the disk fails, with the cause, and with nil when it works again. The same rules as for OnDamage.
	OnAlarm func(err error)

	// Keys gives the keys of a queue: the first one encrypts new records, all of them read old ones; none means that new records are not
	// encrypted. ok is false for a queue that nobody uses. Open fails with a KeyError, before anything is changed on disk, if a queue that
	// is used has records under a key that is not among them. nil means no keys, and no such check: what is encrypted can be listed,
	// verified and given up, but not read.
	Keys func(queue string) (keys []Key, ok bool)
	// Compress compresses records (zstd) where at least an eighth is saved by it. What is stored is read in any case.
	Compress bool
	// eager compresses small frames, too, which tests write.
	eager bool

	// Clock tells the time by which records age. nil means that of the operating system.
	Clock Clock
	// FS is the file system. nil means that of the operating system.
	FS FS
	// Logger gets what an operator should see. nil means none.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.GatherBytes <= 0 {
		o.GatherBytes = 8 << 20
	}
	if o.SaveEvery <= 0 {
		o.SaveEvery = time.Second
	}
	if o.QuarantineBytes <= 0 {
		o.QuarantineBytes = 16 << 20
	}
	if o.Clock == nil {
		o.Clock = machineClock()
	}
	if o.FS == nil {
		o.FS = osFS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// QueueOptions of a queue; they are not stored and may differ from one start to the next.
type QueueOptions struct {
	// Bound limits the bytes of the queue together with others. nil means no limit.
	Bound *Bound
	// Stays says that on a full disk records of others make room, not those of this queue, whatever the policy of the bound, unless there
	// is no room otherwise.
	Stays bool
	// MaxAge is how long a record stays; 0 means without end. Records that are older are Expired, with the same reservation as for
	// Record.Lifetime. It holds for what is stored already, too.
	MaxAge time.Duration
	// OnDrop gets the records that leave the queue without Ack, after they can be acknowledged no more, in batches. It runs on whichever
	// goroutine found out, without lock: it must be quick and must not call the log. recs are valid during the call. Of records that
	// are Damaged only the sequence is known, of those that are Failed the epoch too.
	OnDrop func(q *Queue, why Reason, recs []Rec)
	// KeepLosses says that what OnDrop was told of is kept, through a crash too, until it is Noted; see Losses.
	KeepLosses bool
}

// Reason says why a record left its queue without Ack.
type Reason int

const (
	// Evicted: its bound was full.
	Evicted Reason = iota
	// Expired: it was too old.
	Expired
	// Purged: Purge or Drop was called.
	Purged
	// Damaged: its bytes on disk are bad.
	Damaged
	// Failed: the disk failed before it was durable; who waited for it got the error.
	Failed
)

// String names the reason.
func (r Reason) String() string {
	names := [...]string{"evicted", "expired", "purged", "damaged", "failed"}
	if r < 0 || int(r) >= len(names) {
		return "unknown"
	}
	return names[r]
}

// Policy says what a full Bound does.
type Policy int

const (
	// DropOldest pushes out the oldest records, of the queue that joined the bound first as long as it has any.
	DropOldest Policy = iota
	// Refuse answers ErrFull.
	Refuse
)

// Damage describes a region that failed its checksum.
type Damage struct {
	// Segment is the file, Offset and Bytes the region in it.
	Segment string
	Offset  int64
	Bytes   int64
	// Queue and Records tell whose records are lost and how many, where that is known.
	Queue   string
	Records uint64
	// Torn says that the region is the end of the log, as a power cut in the middle of a write leaves it: nothing durable is known to be lost.
	Torn bool
	// Kept names the copy in the quarantine folder, if there was room.
	Kept string
	Err  error
}

// Pos numbers the appends of the whole log, beginning with 1. It is the ticket for Durable, Notify and Wait; 0 is durable by definition.
type Pos = uint64

// Seq numbers the records of one queue, beginning with 1, without holes from append on.
type Seq uint64

// Record is what Append takes.
type Record struct {
	Queue *Queue
	// Data is copied by Append.
	Data []byte
	// SameEnd says that so many bytes follow behind Data, which are the last ones of the record before in the same Append. Two queues that get
	// the same content have it on disk once in this way, where both have the same key. The record before has no SameEnd.
	SameEnd int
	// Lifetime is how long after the append sending the record is worth while, to the millisecond; 0 means for ever. Records are Expired
	// after it, but not each at once: the log gives up whole pieces, when the last record in them expired. See Rec.Lifetime and Log.Age.
	Lifetime time.Duration
	// Seq is filled in by Append in the caller's slice.
	Seq Seq
}

// Rec is a stored record.
type Rec struct {
	Seq Seq
	// Epoch and Seq and the queue name a record for ever: the epoch changes when the end of the log was lost.
	Epoch uint64
	// Data is valid until the Batch is used again.
	Data []byte

	// Both are log times.
	received, expires int64
}

// Lifetime is as given to Append, to the millisecond; 0 means for ever.
func (r *Rec) Lifetime() time.Duration {
	if r.expires == never {
		return 0
	}
	return time.Duration(max(r.expires-r.received, 1)) * time.Millisecond
}

// Batch is what Queue.Next fills. Its memory is used again by the next call.
type Batch struct {
	Recs []Rec

	win      window
	unsealer unsealer
	entries  []indexEntry
}
