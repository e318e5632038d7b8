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
// What is in flight stands in front of the next fresh record, in the sockets and at the broker. So no more of this lane is in flight than
// keeps the line busy: livePace.

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
	// maxParts bounds the parts of the backlog. Beyond it no more jumps are made, which the joining of parts keeps from lasting.
	maxParts = 1024
	// liveRow is how many fresh records leave in a row while there is a backlog: where they come in as fast as they leave, the backlog would
	// wait for ever.
	liveRow = 16
)

// backlog is what the reader behind reads: parts of the queue, in order.
type backlog struct {
	queue *buffer.Queue
	wake  chan struct{} // capacity 1
	empty chan struct{} // capacity 1: all of it was read

	mu    sync.Mutex
	parts []run
}

// add puts from..to behind the other parts. Parts become one where the cloud has all that lies between them.
func (b *backlog) add(from, to buffer.Seq) {
	if from > to {
		return
	}
	b.mu.Lock()
	joined := b.parts[:0]
	for _, p := range append(b.parts, run{from, to}) {
		if n := len(joined); n > 0 && !b.queue.Needed(joined[n-1].to+1, p.from-1) {
			joined[n-1].to = p.to
			continue
		}
		joined = append(joined, p)
	}
	b.parts = joined
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
		signal(b.empty)
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
	began int // the jump from which on the reader goes on by itself
	// moved ends the reading from before a jump.
	moved context.CancelFunc
}

// read fills l with records behind after, or behind where the last jump led.
func (f *front) read(ctx context.Context, after buffer.Seq, l *lease) (buffer.Seq, error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	f.mu.Lock()
	l.jumps = f.jumps
	if f.began != f.jumps {
		// What was read meanwhile belongs to the backlog as far as the jump says so, and is read again beyond.
		f.began, after = f.jumps, f.after
	}
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
	stuck   chan struct{} // capacity 1: the reader in front cannot read where it is
	jumps   int           // leases of an earlier number hold what a jump has left out
	taken   buffer.Seq    // the last fresh record that was taken
	checked time.Time
	row     int // fresh records that left in a row
	pace    livePace
	failed  atomic.Bool // the reader in front cannot read where it is
}

func newLive(q *buffer.Queue, batch int) *live {
	end := q.Stored()
	l := &live{
		queue: q, backlog: &backlog{queue: q, wake: make(chan struct{}, 1), empty: make(chan struct{}, 1)}, taken: end,
		pace: newLivePace(batch), front: &front{tail: q.Tail(), after: end, began: -1}, stuck: make(chan struct{}, 1),
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
	if end < from || !failed && end == from || v.backlog.count() >= maxParts {
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
	case track == int(pipeline.Urgent):
		return true
	case !v.pace.room():
		return false
	case track == trackLive:
		// A suspected record is looked for in the order of the queue.
		return !s.careful || s.current[pipeline.Normal] == nil && v.backlog.count() == 0
	}
	return true
}

// turn says whether it is the backlog's turn although there are fresh records.
func (s *stream) turn() bool {
	v := s.live
	if v == nil || v.row < liveRow || !v.pace.room() {
		return false
	}
	if s.current[pipeline.Normal] == nil {
		select {
		case l := <-s.feeds[pipeline.Normal].out:
			s.take(int(pipeline.Normal), l)
		default:
		}
	}
	return s.current[pipeline.Normal] != nil
}

// stirred gives what wakes a waiting stream beside records and answers.
func (v *live) stirred() (empty, stuck <-chan struct{}) {
	if v == nil {
		return nil, nil
	}
	return v.backlog.empty, v.stuck
}

// livePace bounds what the lane has in flight, by what it adds to the time that an acknowledgement takes: records that the line or the
// broker cannot take yet only make fresh ones wait, and grow old where no jump can pass them. It is a window that grows while the
// acknowledgements come as quickly as the quickest of late, and shrinks when they take queueing longer.
type livePace struct {
	window, least float64
	open, peak    int
	// low is the shortest mean time of an answer since the line was last looked at with little in flight; one answer alone tells little on
	// a line whose round trips vary. span is when that was.
	low  time.Duration
	span time.Time
	// probing: little is kept in flight, to see the line without what waits on it; saved is the window for after that.
	probing bool
	saved   float64
	// since: answers to what was sent earlier tell of the window before.
	since    time.Time
	sum      time.Duration
	n, round int
	// growth is 2 until the window was too large for the first time, then 1.25.
	growth float64
}

const (
	// queueing is how long a fresh record may wait behind others on the way, or half of the round trip where that is more.
	queueing = 5 * time.Millisecond
	// paceSpan is how often the line is looked at with little in flight: a part of the window, probeShare.
	paceSpan    = 10 * time.Second
	probeShare  = 0.25
	leastWindow = 1
	firstWindow = 8
	mostWindow  = 1 << 15
	// leastRound is over how many answers a mean is taken, at least.
	leastRound = 16
)

// newLivePace begins a pass; batch is how many records leave together.
func newLivePace(batch int) livePace {
	least := float64(max(leastWindow, batch))
	return livePace{window: max(firstWindow, least), least: least, round: leastRound, growth: 2}
}

func (p *livePace) room() bool { return p.open < int(p.window) }

func (p *livePace) sent() {
	p.open++
	p.peak = max(p.peak, p.open)
}

// answered takes a record out of flight. took is how long its acknowledgement took, 0 if it got none.
func (p *livePace) answered(took time.Duration, now time.Time) {
	p.open--
	if p.probing && p.since.IsZero() && p.open < int(p.window) {
		p.since = now // what waited on the line has left it
	}
	if took <= 0 || p.probing && p.since.IsZero() || now.Add(-took).Before(p.since) {
		return
	}
	p.sum += took
	if p.n++; p.n >= p.round {
		p.adjust(now)
	}
}

// adjust ends a round.
func (p *livePace) adjust(now time.Time) {
	average := p.sum / time.Duration(p.n)
	if p.probing || p.low == 0 || average < p.low {
		p.low = average
	}
	limit := p.low + max(queueing, p.low/2)
	switch {
	case p.probing:
		p.window, p.probing = p.saved, false
	case average > limit:
		p.window *= max(float64(limit)/float64(average), 0.5)
		p.growth, p.since = 1.25, now
	case p.peak >= int(0.8*p.window):
		p.window *= p.growth
	}
	p.window = min(max(p.window, p.least), mostWindow)
	if p.span.IsZero() {
		p.span = now
	}
	if now.Sub(p.span) >= paceSpan {
		p.span, p.probing, p.saved, p.since = now, true, p.window, time.Time{}
		p.window = max(p.window*probeShare, p.least)
	}
	p.sum, p.n, p.peak, p.round = 0, 0, p.open, max(int(p.window), leastRound)
}
