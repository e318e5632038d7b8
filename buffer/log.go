package buffer

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Log is an open log folder.
type Log struct {
	dir      string
	o        Options
	fs       meter
	log      *slog.Logger
	readOnly bool
	lock     io.Closer

	// mu guards everything below, and the fields of queues, bounds and segments. It is never held across reading, writing or syncing,
	// nor while calling out: the committer takes the gathered frame under mu, writes it without, and publishes it under mu again.
	mu sync.Mutex
	// fileMu guards segment.file where readers open it, and is taken inside mu or alone.
	fileMu sync.Mutex

	epoch  uint64
	time   logTime
	queues map[string]*Queue
	byID   map[uint64]*Queue
	order  []*Queue
	nextID uint64
	// dirty lists the queues whose state must be written, unbound sums the bytes of queues without bound.
	dirty     []*Queue
	unbound   int64
	bounds    []*Bound
	bounded   int64 // what they allow together
	segments  []*segment
	active    *segment
	nextIndex uint64

	// gathering holds frames that wait for the committer, gathered counts their bytes, buffers keeps memory for new ones.
	gathering []*frameBuilder
	gathered  int64
	buffers   [][]byte
	// wakeAt is how many records of the gathering frame wake the committer; it is above 0 while it waits for them.
	wakeAt uint32
	// nextPos is the position the next append gets. Up to durable all is on disk, apart from lost.
	nextPos, durable Pos
	lost             []posRange
	// settled and anyLost repeat durable and whether there is a lost range, for those who ask without the lock. anyLost is set
	// before settled covers the range.
	settled atomic.Uint64
	anyLost atomic.Bool
	waiters []waiter

	// dead lists segments without live records; they are freed once the cursors that say so are on disk.
	dead []*segment
	// anchor is the newest segment that was synced: it knows the queues and the sequences given, so it is kept until a newer one does.
	anchor *segment
	// spares are files ready to become segments.
	spares []spare
	// credit is how many bytes may be relocated before more is appended.
	credit int64
	// noSpace says that the disk refused to give room for a spare.
	noSpace bool
	// crammed says that it did when a file was wanted last. Freeing segments changes noSpace, but not that.
	crammed bool
	// failed is the cause while nothing can be written.
	failed  error
	healAt  time.Time
	healGap time.Duration
	// lastSync is when an fsync worked last.
	lastSync time.Time
	// unsynced says since when written frames wait for their fsync.
	unsynced time.Time
	// expiring says that there are, or were, records that expire, or a queue with a maximum age.
	expiring bool
	// closing refuses appends, closed ends reading.
	closing, closed bool

	counts counters

	// kick wakes the committer; stop is closed by Close; done is closed when the goroutines have ended.
	kick      chan struct{}
	fill      chan struct{}
	stop      chan struct{}
	done      sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
	// later is what recovery does to the disk in the end.
	later []func() error
	// aside lists damage met by Open in files, or parts of them, that are no part of the log any more.
	aside []Damage
	// quarantined counts the bytes of the quarantine folder, nextSpare numbers spare files.
	quarantined int64
	nextSpare   uint64
	// lastNeed is what the last segment needed; the committer changes it, with mu held.
	lastNeed int64
	// desperate says that nothing else made room, see roll.
	desperate bool
	// lastSegmentSize, roomless, moved and pace belong to the committer: the growth of first segments, whether files that were removed
	// from a full disk gave no room, whether it relocated last, and how long a frame gathers.
	lastSegmentSize int64
	roomless        bool
	moved           bool
	pace            pace
	expiry          expiry
	compressor      compressor
	vault           vault
	inflate         inflater
}

// counters are what Stats tells since Open.
type counters struct {
	frames, syncs, records   uint64
	payload                  uint64
	relocated                int64
	evicted, damaged, damage uint64
	alarms, failed           uint64
	lastError                error
}

// Open opens the log in dir, which is made if it is not there. It recovers what the last process left and never refuses because of bad
// bytes: those are moved aside, counted and reported. It fails with ErrLocked if another process has the folder, and with errors of
// the file system, also if a segment still cannot be read after some tries: no file was changed because of that, and a later attempt finds
// everything. Close must be called.
func Open(dir string, o Options) (*Log, error) {
	l := newLog(dir, o, false)
	if err := l.fs.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("buffer: open %s: %w", dir, err)
	}
	lock, err := l.fs.Lock(filepath.Join(dir, lockName), false)
	if err != nil {
		return nil, fmt.Errorf("buffer: open %s: %w", dir, err)
	}
	l.lock = lock
	if err := l.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("buffer: open %s: %w", dir, err), l.closeFiles(), lock.Close())
	}
	// Both end when stop is closed; Close waits for them.
	l.done.Go(l.commitLoop)
	l.done.Go(l.fillLoop)
	return l, nil
}

func newLog(dir string, o Options, readOnly bool) *Log {
	o = o.withDefaults()
	shrink := compressor{on: o.Compress, records: compressRecords, bytes: compressBytes}
	if o.eager {
		shrink.records, shrink.bytes = 1, 0
	}
	return &Log{
		dir: dir, o: o, fs: newMeter(o.FS), log: o.Logger, readOnly: readOnly,
		queues: map[string]*Queue{}, byID: map[uint64]*Queue{}, nextID: 1, nextPos: 1, nextIndex: 1,
		kick: make(chan struct{}, 1), fill: make(chan struct{}, 1), stop: make(chan struct{}),
		pace: pace{target: maxTarget}, expiry: newExpiry(),
		time: logTime{read: o.Clock}, compressor: shrink,
	}
}

// newEpoch gives an epoch behind prev that no other log had: the seconds of the clock and 16 random bits, so that a folder which is
// thrown away, on a machine whose clock begins anew at each start, does not get the same again.
func newEpoch(prev uint64) uint64 {
	return max(prev+1, uint64(max(time.Now().Unix(), 0))<<16|uint64(rand.Uint32()&0xffff))
}

// Epoch names the life of the log: records are named by epoch, queue and sequence. It changes when the end of the log was lost, as
// sequences after it are then given a second time.
func (l *Log) Epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// Queue declares a queue. Its records and floor are there after a restart. Declaring it again only changes its options.
func (l *Log) Queue(name string, o QueueOptions) (*Queue, error) {
	if name == "" || len(name) > maxQueueName {
		return nil, fmt.Errorf("buffer: queue name of %d bytes: want 1 to %d", len(name), maxQueueName)
	}
	q, unheard, err := l.declare(name, o)
	for _, u := range unheard {
		q.report(Damaged, []span{u.span}, u.epoch)
	}
	return q, err
}

// declare makes or finds the queue and gives what its owner has not heard yet.
func (l *Log) declare(name string, o QueueOptions) (*Queue, []lostSpan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil, nil, fmt.Errorf("buffer: queue %s: %w", name, ErrClosed)
	}
	q := l.queues[name]
	if q == nil {
		if l.readOnly {
			return nil, nil, fmt.Errorf("buffer: queue %s: %w", name, ErrReadOnly)
		}
		q = newQueue(l, l.nextID, name)
		l.nextID++
		l.register(q)
	}
	q.declared, q.onDrop, q.maxAge = true, o.OnDrop, o.MaxAge
	if q.stayPut, q.keepLosses = o.Stays, o.KeepLosses; !q.keepLosses {
		q.leaving = nil
	}
	if q.maxAge > 0 && !l.expiring {
		l.expiring = true
		l.wakeCommitter()
	}
	l.join(q, o.Bound)
	var unheard []lostSpan
	if o.OnDrop != nil {
		unheard, q.unheard = q.unheard, nil
	}
	return q, unheard, nil
}

const maxQueueName = 1024

func (l *Log) register(q *Queue) {
	l.queues[q.name], l.byID[q.id] = q, q
	l.order = append(l.order, q)
}

// join moves q from its bound, if any, to b.
func (l *Log) join(q *Queue, b *Bound) {
	if q.bound == b {
		return
	}
	if old := q.bound; old != nil {
		old.used -= q.bytes
		old.pending -= q.pending
		old.queues = without(old.queues, q)
	} else {
		l.unbound -= q.bytes
	}
	q.bound = b
	if b != nil {
		b.used += q.bytes
		b.pending += q.pending
		b.queues = append(b.queues, q)
		if b.used > b.limit() {
			l.wakeCommitter()
		}
	} else {
		l.unbound += q.bytes
	}
}

func without(qs []*Queue, q *Queue) []*Queue {
	var out []*Queue
	for _, x := range qs {
		if x != q {
			out = append(out, x)
		}
	}
	return out
}

// Close writes what was appended and acknowledged, syncs it and lets go of the folder. Callbacks that still wait are called before.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		l.closing = true
		l.mu.Unlock()
		close(l.stop)
		l.wakeCommitter()
		l.done.Wait()
		l.mu.Lock()
		l.closed = true
		waiters := l.takeWaiters(^Pos(0))
		l.mu.Unlock()
		for _, w := range waiters {
			w.f(fmt.Errorf("commit: %w", ErrClosed))
		}
		l.closeErr = errors.Join(l.closeErr, l.closeFiles())
		if l.lock != nil {
			l.closeErr = errors.Join(l.closeErr, l.lock.Close())
		}
	})
	return l.closeErr
}

// closeFiles closes all segment files. No reader may be at work any more; one that is gets an error.
func (l *Log) closeFiles() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fileMu.Lock()
	defer l.fileMu.Unlock()
	var errs []error
	for _, s := range l.segments {
		if s.file != nil {
			errs = append(errs, s.file.Close())
			s.file = nil
		}
	}
	return errors.Join(errs...)
}

// closeIdle closes the file of a segment a reader has left; whoever needs it opens it again.
func (l *Log) closeIdle(s *segment) {
	if s == nil {
		return
	}
	l.mu.Lock()
	var f File
	if s.pins == 0 && s != l.active {
		l.fileMu.Lock()
		f, s.file = s.file, nil
		l.fileMu.Unlock()
	}
	l.mu.Unlock()
	if f != nil {
		if err := f.Close(); err != nil {
			l.log.Warn("closing a segment failed", "segment", s.name, "err", err)
		}
	}
}

// wakeCommitter makes the committer look for work.
func (l *Log) wakeCommitter() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}
