package buffer

import "time"

// A commit costs processor time that does not depend on its size: the call of fdatasync, the requests to the disk, their interrupts, and
// waking whoever waits. Where records stream in and the disk answers quickly, frames taken as soon as the disk is free hold some hundred
// records, and that cost is as large as that of the records themselves. So a frame of a stream gathers a little longer. Two things bound it:
// streamGather, and the moment when nothing more comes, as the senders wait for the acknowledgement of what was gathered.
const (
	// streamRecords in the frame before say that records stream in.
	streamRecords = 64
	// streamGather is how long a frame of a stream gathers, counted from its first record. Where one fsync takes as long, the frame that
	// gathered meanwhile is taken at once.
	streamGather = time.Millisecond
	// streamBytes make a frame large enough.
	streamBytes = 256 << 10
	// streamRecent is how long ago the frame before may have been taken. In a process with nothing to do a short wait takes more than a
	// millisecond, which the first records after a burst are spared.
	streamRecent = 2 * time.Millisecond
	// streamPause without a record says that the senders wait.
	streamPause = 250 * time.Microsecond
	// streamRest is how many commits keep a target that was found, as finding it costs a pause. Then it grows by a part of streamGrowth with
	// each commit, which doubles it in 22.
	streamRest   = 64
	streamGrowth = 32
	maxTarget    = 1 << 16
)

// pace decides how long the committer lets a frame gather. Of many senders it sees only that records come or pause. A pause at the same
// number of records twice is their window, all of it on the way: half of it is then the target, so that one half is synced while the other
// one comes in. After a while the target grows again, as the window may have grown. A pause at any other number is an accident of the scheduler.
//
// It belongs to the committer.
type pace struct {
	last   uint32 // records of the last frame
	taken  time.Time
	target uint32 // a frame with so many records is taken
	paused uint32 // records of the frame in which the last pause was seen
	rest   int    // so many more commits keep the target
	timer  *time.Timer
}

// took notes that a frame was taken.
func (p *pace) took(f *frameBuilder) {
	if f != nil {
		p.last, p.taken = f.count, time.Now()
	}
}

// reached notes that a frame gathered enough without a pause.
func (p *pace) reached() {
	if p.rest > 0 {
		p.rest--
		return
	}
	p.target = min(p.target+p.target/streamGrowth+1, maxTarget)
}

// pause notes that no record came for a while after the first n of a frame.
func (p *pace) pause(n uint32) {
	if near := n / 32; n+near >= p.paused && n <= p.paused+near {
		p.target, p.rest = n/2, streamRest
	}
	p.paused = n
}

// letGather waits until the gathering frame is to be taken. It returns at once when there is none, or records do not stream in.
func (l *Log) letGather() {
	p := &l.pace
	if p.last < streamRecords || time.Since(p.taken) > streamRecent {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.gathering) == 1 && !l.closing {
		f := l.gathering[0]
		if f.count >= p.target || p.target < streamRecords {
			p.reached()
			return
		}
		left := streamGather - time.Since(f.began)
		if left <= 0 || l.large(f) {
			return
		}
		n := f.count
		l.wakeAt = p.target
		l.mu.Unlock()
		paused := l.sleep(min(left, streamPause)) && left >= streamPause
		l.mu.Lock()
		l.wakeAt = 0
		if paused && f.count == n {
			p.pause(n)
			return
		}
	}
}

// sleep waits for something to do, and tells whether nothing came for d.
func (l *Log) sleep(d time.Duration) bool {
	l.pace.timer.Reset(d)
	select {
	case <-l.kick:
		return false
	case <-l.pace.timer.C:
		return true
	}
}

// large tells whether f is large enough to be taken in the middle of a stream. Log.mu is held.
func (l *Log) large(f *frameBuilder) bool {
	return f.size >= min(streamBytes, l.frameLimitLocked())
}
