package forwarder

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
)

// With live_first an uplink has two readers of its normal lane: one follows the end of the queue, where fresh records come in, and one
// works off the backlog behind it. Fresh records leave first. Within each of the two the order holds; the sequence in the identity tells
// where a record belongs.
//
// Where more comes in than the cloud takes, the fresh ones get old themselves. The reader at the end then jumps to the new end, and what
// it leaves out becomes a further part of the backlog, whose parts are sent one after the other:
//
//	floor                                                  end
//	  |  backlog  | sent live | backlog |   sent live    |  live ...
//
// What the backlog has in flight stands in front of the fresh records, in the sockets and at the broker. So no more of it is in flight
// than keeps the line busy: backlogPace.

// The tracks of a stream: its lanes, of which the normal one is the backlog where live_first is set, and the fresh records of that lane.
const (
	trackLive = int(pipeline.Lanes)
	tracks    = int(pipeline.Lanes) + 1
)

const (
	// liveAge is from when on a record is not fresh any more.
	liveAge = time.Second
	// liveCheck is how often the age of what leaves first is looked at.
	liveCheck = 100 * time.Millisecond
	// leastJump: fewer records are not worth a jump.
	leastJump = 64
	// maxParts bounds the parts of the backlog. Beyond it no more jumps are made.
	maxParts = 256
	// liveRow is how many fresh records leave in a row while there is a backlog: where they come in as fast as they leave, the backlog would
	// wait for ever.
	liveRow = 16
)

// backlog is what the reader behind reads: parts of the queue, in order.
type backlog struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	parts []run
}

// add puts from..to behind the other parts.
func (b *backlog) add(from, to buffer.Seq) {
	if from > to {
		return
	}
	b.mu.Lock()
	b.parts = append(b.parts, run{from, to})
	b.mu.Unlock()
	signal(b.wake)
}

func (b *backlog) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.parts)
}

// next waits for a part behind after.
func (b *backlog) next(ctx context.Context, after buffer.Seq) (run, error) {
	for {
		b.mu.Lock()
		for len(b.parts) > 0 && b.parts[0].to <= after {
			b.parts = b.parts[1:]
		}
		if len(b.parts) > 0 {
			p := b.parts[0]
			b.mu.Unlock()
			return p, nil
		}
		b.mu.Unlock()
		select {
		case <-b.wake:
		case <-ctx.Done():
			return run{}, ctx.Err()
		}
	}
}

// read fills l with records of the backlog behind after, and returns up to where it has looked.
func (b *backlog) read(ctx context.Context, q *buffer.Queue, after buffer.Seq, l *lease) (buffer.Seq, error) {
	p, err := b.next(ctx, after)
	if err != nil {
		return after, err
	}
	after = max(after, p.from-1)
	if err := q.Next(ctx, after, &l.batch); err != nil {
		return after, err
	}
	n := 0
	for n < len(l.batch.Recs) && l.batch.Recs[n].Seq <= p.to {
		n++
	}
	if n == 0 || n < len(l.batch.Recs) {
		// What comes behind this part belongs to the reader in front; also where nothing of the part was left.
		l.batch.Recs = l.batch.Recs[:n]
		return p.to, nil
	}
	return l.batch.Recs[n-1].Seq, nil
}

// front is the reader at the end of the queue. It begins behind after, which each jump moves.
type front struct {
	tail *buffer.Tail

	mu    sync.Mutex
	jumps int
	after buffer.Seq
	// moved ends the reading from before a jump.
	moved context.CancelFunc
}

// read fills l with records behind after, or behind where the last jump led.
func (f *front) read(ctx context.Context, after buffer.Seq, l *lease) (buffer.Seq, error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	f.mu.Lock()
	l.jumps = f.jumps
	after = max(after, f.after)
	f.moved = stop
	f.mu.Unlock()
	err := f.tail.Next(reading, after, &l.batch)
	if err != nil {
		if ctx.Err() == nil && reading.Err() != nil {
			err, l.batch.Recs = nil, l.batch.Recs[:0] // it jumped
		}
		return after, err
	}
	return l.batch.Recs[len(l.batch.Recs)-1].Seq, nil
}

func (f *front) jump(to buffer.Seq) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jumps++
	f.after = to
	if f.moved != nil {
		f.moved()
	}
	return f.jumps
}

// live is the state of live_first during one pass. nil: the lane is sent in order.
type live struct {
	queue   *buffer.Queue
	backlog *backlog
	front   *front
	jumps   int        // leases of an earlier number hold what a jump has left out
	taken   buffer.Seq // the last fresh record that was taken
	checked time.Time
	row     int // fresh records that left in a row
	pace    backlogPace
	failed  atomic.Bool // the reader in front cannot read where it is
}

func newLive(q *buffer.Queue, batch int) *live {
	end := q.Stored()
	l := &live{
		queue: q, backlog: &backlog{wake: make(chan struct{}, 1)}, taken: end, pace: newBacklogPace(batch),
		front: &front{tail: q.Tail(), after: end},
	}
	l.backlog.add(q.Floor()+1, end)
	return l
}

// take accepts a batch for a track, unless it holds what is to be sent as backlog.
func (s *stream) take(track int, l *lease) {
	if track == trackLive {
		if l.jumps != s.live.jumps || len(l.batch.Recs) == 0 {
			l.feed.release(l)
			return
		}
		s.live.checked = time.Time{}
	}
	s.current[track] = l
}

// freshen jumps to the end of the queue where what is to leave first is fresh no more, or cannot be read.
func (s *stream) freshen() {
	v := s.live
	if v == nil {
		return
	}
	l := s.current[trackLive]
	now := time.Now()
	failed := v.failed.Load()
	if !failed && (l == nil || now.Sub(v.checked) < liveCheck) {
		return
	}
	v.checked = now
	if !failed && s.d.out.log.Age(l.peek()) < liveAge {
		return
	}
	end := v.queue.Stored()
	from := v.taken + 1
	if l != nil {
		from = l.peek().Seq
	}
	if end < from || !failed && end-from < leastJump || v.backlog.count() >= maxParts {
		return
	}
	v.failed.Store(false)
	if l != nil {
		s.current[trackLive] = nil
		l.feed.release(l)
	}
	v.jumps = v.front.jump(end)
	v.taken = end
	v.backlog.add(from, end)
}

// allowed says whether a record of the track may leave now.
func (s *stream) allowed(track int) bool {
	v := s.live
	switch {
	case v == nil:
		return true
	case track == trackLive:
		return !s.careful // a suspected record is looked for in the order of the queue
	case track == int(pipeline.Normal):
		return v.pace.room()
	}
	return true
}

// turn says whether it is the backlog's turn although there are fresh records.
func (s *stream) turn() bool {
	return s.live != nil && s.live.row >= liveRow && s.current[pipeline.Normal] != nil && s.live.pace.room()
}

// backlogPace bounds what the backlog has in flight, by what it adds to the time that an acknowledgement takes: records that the line or
// the broker cannot take yet only make the fresh ones wait. It is a window that grows while the acknowledgements come as quickly as the
// quickest of late, and shrinks when they take queueing longer.
type backlogPace struct {
	window, least float64
	open, peak    int
	// low and lower are the shortest times of this span and of the one before.
	low, lower time.Duration
	span       time.Time
	sum        time.Duration
	n, round   int
	// growth is 2 until the window was too large for the first time, then 1.25.
	growth float64
}

const (
	// queueing is how long a fresh record may wait behind the backlog on the way, or a quarter of the round trip where that is more.
	queueing = 5 * time.Millisecond
	// paceSpan is how long a shortest time counts, at least. Then the window is made smaller for a moment, to see it anew.
	paceSpan    = 10 * time.Second
	leastWindow = 16
	mostWindow  = 1 << 15
)

// newBacklogPace begins a pass; batch is how many records leave together.
func newBacklogPace(batch int) backlogPace {
	least := float64(max(leastWindow, 4*batch))
	return backlogPace{window: least, least: least, round: int(least), growth: 2}
}

func (p *backlogPace) room() bool { return p.open < int(p.window) }

func (p *backlogPace) sent() {
	p.open++
	p.peak = max(p.peak, p.open)
}

// answered takes a record out of flight. took is how long its acknowledgement took, 0 if it got none.
func (p *backlogPace) answered(took time.Duration, now time.Time) {
	p.open--
	if took <= 0 {
		return
	}
	if p.low == 0 || took < p.low {
		p.low = took
	}
	p.sum += took
	if p.n++; p.n >= p.round {
		p.adjust(now)
	}
}

func (p *backlogPace) adjust(now time.Time) {
	average := p.sum / time.Duration(p.n)
	low := p.low
	if p.lower > 0 {
		low = min(low, p.lower)
	}
	limit := low + max(queueing, low/4)
	switch {
	case average > limit:
		p.window *= max(float64(limit)/float64(average), 0.5)
		p.growth = 1.25
	case float64(p.peak) > 0.8*p.window:
		p.window *= p.growth
	}
	if p.span.IsZero() {
		p.span = now
	}
	if now.Sub(p.span) >= paceSpan {
		p.span, p.lower, p.low = now, p.low, 0
		p.window /= 2
	}
	p.window = min(max(p.window, p.least), mostWindow)
	p.sum, p.n, p.peak, p.round = 0, 0, p.open, max(int(p.window), 1)
}
