package forwarder

import (
	"context"
	"errors"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// stream is one pass over one link: it sends from the ack floor on, in order, until the link is lost, the cloud asks for a
// pause, or ctx ends. It is used by the drain's goroutine alone; only the answers come from elsewhere.
type stream struct {
	d       *drain
	link    Link
	feeds   [tracks]*feed
	current [tracks]*lease
	live    *live // nil: records leave in order
	window  window
	answers *answers
	spare   []answer
	gather  *gathering // nil: every record is sent by itself
	acks    [pipeline.Lanes]ackList
	slab    []flight

	// limit bounds what is in flight while a record is suspected of making the peer close the connection, and after a
	// refusal; 0: no bound but the link's.
	limit   int
	careful bool

	verdict   verdict // the worst answer that ends the pass
	why       error
	now       time.Time // of the answers being settled
	broken    bool      // the link is about to be lost
	again     bool      // the pass ends because skipped records are to be sent again
	retry     time.Time // when that is, with nothing else to send
	delivered int
	pending   bool      // a gap report is in flight
	burials   int       // dead letters on their way to the disk
	sent      time.Time // when the last record was sent, while being careful
}

// ending says how a pass went.
type ending struct {
	lost    bool // the link is gone
	verdict verdict
	why     error
	// oldest is the first record that got no answer. evidence: the connection had shown that it works, and was lost soon
	// after this record was sent with nothing else in flight.
	oldest    recordKey
	batched   int // how much text was in flight with it, in one batch of several
	evidence  bool
	reporting bool // a gap report was in flight
	delivered int
}

// recordKey names a record of one uplink.
type recordKey struct {
	lane pipeline.Lane
	seq  buffer.Seq // 0: none
}

// run makes the pass.
func (s *stream) run(ctx context.Context) ending {
	s.d.pacer.idle()
	settled := s.prepare(ctx)
	readCtx, stop := context.WithCancel(ctx)
	var readers sync.WaitGroup
	s.open()
	for _, f := range s.feeds {
		if f != nil {
			readers.Go(func() { f.run(readCtx) }) // ends with readCtx
		}
	}
	for s.step(ctx) {
	}
	stop()
	readers.Wait()
	s.closeLive()
	lost := s.finish(ctx)
	e := ending{
		lost: lost, verdict: s.verdict, why: s.why, delivered: s.delivered, reporting: s.pending,
		evidence: settled && s.window.open == 1 && time.Since(s.sent) <= s.d.times.atOnce,
	}
	if f := s.window.oldest(); f != nil && f.report == nil && !f.burying {
		e.oldest, e.batched = recordKey{f.lane, f.seq}, f.batched
	}
	s.d.inFlight.Store(0)
	return e
}

// open makes the readers of the lanes.
func (s *stream) open() {
	for i, q := range s.d.out.queues {
		s.feeds[i] = newFeed(q, s.d.log)
	}
	if !s.d.liveFirst {
		return
	}
	q := s.d.out.queues[pipeline.Normal]
	batch := 0
	if s.gather != nil {
		batch = s.gather.maxMessages
	}
	v := newLive(q, batch)
	s.live = v
	s.feeds[pipeline.Normal].read = func(ctx context.Context, after buffer.Seq, l *lease) (buffer.Seq, error) {
		return v.backlog.read(ctx, q, after, l)
	}
	f := newFeed(q, s.d.log)
	f.read = v.front.read
	f.failed = func() {
		v.failed.Store(true)
		signal(v.stuck)
	}
	s.feeds[trackLive] = f
}

func (s *stream) closeLive() {
	if s.live != nil {
		s.live.front.tail.Close()
	}
}

// prepare waits, where a record is suspected, until the connection has shown that it works and has stood for a moment, so
// that what follows can be blamed on the record.
func (s *stream) prepare(ctx context.Context) bool {
	s.limit, s.careful = 0, s.d.suspect.active()
	if s.careful || s.d.gently {
		s.limit = 1
	}
	s.d.gently = false
	if !s.careful {
		return false
	}
	proven, standing := false, true
	for deadline := time.Now().Add(s.d.times.prove); standing && !proven && time.Now().Before(deadline); {
		if proven = s.link.Proven(); !proven {
			standing = s.stand(ctx, s.d.times.provePoll)
		}
	}
	if proven {
		standing = s.stand(ctx, s.d.suspect.standing(s.d.times.settle))
	}
	if !standing && ctx.Err() == nil {
		s.d.suspect = suspicion{} // the connection was lost over nothing: it is the line, and waiting would never end
	}
	return proven && standing
}

// stand waits for d and reports whether the link is still there.
func (s *stream) stand(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.link.Lost():
	case <-ctx.Done():
	}
	return false
}

// step does one thing and reports whether the pass goes on.
func (s *stream) step(ctx context.Context) bool {
	s.settle()
	if s.broken || s.again || s.verdict != accepted || ctx.Err() != nil || s.isLost() {
		return false
	}
	if g := s.gather; g != nil && (g.trying != nil || len(g.pieces) > 0) {
		return s.stepPiece(ctx)
	}
	if s.limit > 0 && s.window.open >= s.limit {
		return s.wait(ctx)
	}
	if s.reports() {
		if r := s.d.out.gaps.due(); r != nil {
			return s.sendReport(ctx, r)
		}
	}
	s.freshen()
	if s.gather != nil {
		return s.stepBatch(ctx)
	}
	track, ok := s.pick()
	if !ok {
		s.flushAcks()
		return s.wait(ctx)
	}
	if p := &s.d.pacer; p.bounds() {
		if d := p.delay(time.Now(), s.price(track)); d > 0 {
			return s.idle(ctx, d)
		}
	}
	return s.sendNext(ctx, track)
}

// reports says whether a gap report may leave now.
func (s *stream) reports() bool {
	g := s.gather
	return !s.pending && !s.careful && (g == nil || g.trying == nil && len(g.pieces) == 0)
}

// idle keeps the next record back for d, or until there is something else to do. An urgent record that comes is something else.
func (s *stream) idle(ctx context.Context, d time.Duration) bool {
	s.flushAcks()
	if due, waiting := s.d.out.gaps.delay(); waiting && s.reports() {
		d = min(d, due)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	var urgent chan *lease
	if s.current[pipeline.Urgent] == nil {
		urgent = s.feeds[pipeline.Urgent].out
	}
	select {
	case <-t.C:
	case l := <-urgent:
		s.take(int(pipeline.Urgent), l)
	case <-s.answers.wake:
	case <-s.link.Lost():
	case <-ctx.Done():
	}
	return true
}

func (s *stream) isLost() bool {
	select {
	case <-s.link.Lost():
		return true
	default:
		return false
	}
}

// precedence is the order in which tracks may send.
var precedence = [tracks]int{int(pipeline.Urgent), trackLive, int(pipeline.Normal)}

// pick chooses the track whose record goes next: urgent ones as long as there are any, then fresh ones.
func (s *stream) pick() (track int, ok bool) {
	for _, t := range precedence {
		f := s.feeds[t]
		if f == nil || !s.allowed(t) || t == trackLive && s.turn() {
			continue
		}
		if s.current[t] == nil {
			select {
			case l := <-f.out:
				s.take(t, l)
			default:
			}
		}
		if s.current[t] != nil {
			return t, true
		}
	}
	return 0, false
}

// wait sleeps until there is something to do.
func (s *stream) wait(ctx context.Context) bool {
	limited := s.limit > 0 && s.window.open >= s.limit
	var in [tracks]chan *lease
	for t, f := range s.feeds {
		if f != nil && s.current[t] == nil && !limited {
			in[t] = f.out
		}
	}
	gaps := s.d.out.gaps.wake
	if s.pending || s.careful || limited {
		gaps = nil // none is sent now
	}
	var timer, due <-chan time.Time
	if d, waiting := s.d.out.gaps.delay(); waiting && gaps != nil {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	if d, waiting := s.gather.delay(); waiting && !limited {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	again, stop := s.patience()
	defer stop()
	empty, stuck := s.live.stirred()
	select {
	case <-again:
		s.d.blame.forgive()
		s.again, s.d.gently = true, true
		if s.d.blame.several {
			s.link.Close(errors.New("it refused what there was"))
		}
	case <-empty:
	case <-stuck:
	case l := <-in[pipeline.Urgent]:
		s.take(int(pipeline.Urgent), l)
	case l := <-in[trackLive]:
		s.take(trackLive, l)
	case l := <-in[pipeline.Normal]:
		s.take(int(pipeline.Normal), l)
	case <-s.answers.wake:
	case <-gaps:
	case <-timer:
	case <-due:
	case <-s.link.Lost():
	case <-ctx.Done():
	}
	return true
}

// patience is when the skipped records are to be tried again, with nothing else to send that could prove the broker. That is soon
// where another server may take them and this one has taken nothing.
func (s *stream) patience() (again <-chan time.Time, stop func() bool) {
	if len(s.d.blame.skipped) == 0 || s.window.open > 0 {
		return nil, func() bool { return false }
	}
	if s.retry.IsZero() {
		least := s.d.times.forbiddenMin
		if s.d.blame.several && s.d.took != s.link {
			least = s.d.times.settle
		}
		s.retry = time.Now().Add(s.d.forbidden.next(least, s.d.times.forbiddenMax))
	}
	t := time.NewTimer(time.Until(s.retry))
	return t.C, t.Stop
}

// laneOf is the lane of a track.
func laneOf(track int) pipeline.Lane {
	if track == trackLive {
		return pipeline.Normal
	}
	return pipeline.Lane(track)
}

// sendNext sends the next record of a track, or finds that it needs no sending.
func (s *stream) sendNext(ctx context.Context, track int) bool {
	l := s.current[track]
	rec := l.peek()
	f := s.flight(track, l, rec)
	if v := s.live; v != nil {
		switch track {
		case trackLive:
			v.taken = rec.Seq
			v.row++
		case int(pipeline.Normal):
			v.row = 0
		}
	}
	more := s.dispatch(ctx, f, rec)
	l.next++
	if l.next == len(l.batch.Recs) {
		s.current[track] = nil
		l.feed.release(l) // the reference for looking at it
	}
	return more
}

func (s *stream) flight(track int, l *lease, rec *buffer.Rec) *flight {
	if len(s.slab) == 0 {
		s.slab = make([]flight, 64)
	}
	f := &s.slab[0]
	s.slab = s.slab[1:]
	*f = flight{lane: laneOf(track), track: track, seq: rec.Seq, epoch: rec.Epoch, lease: l, rec: rec, data: rec.Data}
	return f
}

func (s *stream) dispatch(ctx context.Context, f *flight, rec *buffer.Rec) bool {
	route, body, err := splitRecord(rec.Data)
	f.cell = s.d.cell(route, f.lane)
	if err != nil {
		s.bury(f, "the record cannot be read: "+err.Error())
		return true
	}
	age, expired := s.d.out.age(rec)
	if expired {
		s.leave(f, placeExpired)
		return true
	}
	if s.d.blame.skips(recordKey{f.lane, f.seq}) {
		return true
	}
	m, err := message.Decode(body)
	if err != nil {
		s.bury(f, "the message cannot be read: "+err.Error())
		return true
	}
	if s.d.suspect.condemned(recordKey{f.lane, f.seq}) {
		s.bury(f, "the cloud broker closed the connection each time the record was sent")
		return true
	}
	f.received = m.Received
	if s.gather != nil {
		s.collect(f, &m)
		return true
	}
	if !m.Expires.IsZero() {
		// What is left of its expiry counts from now on, whatever the wall clock was when it came in (MQTT 5.0, 3.3.2.3.3).
		m.Expires = time.Now().Add(m.Expires.Sub(m.Received) - age)
	}
	s.board(f)
	if s.careful {
		s.sent = time.Now()
	}
	err = s.link.Send(ctx, m, s.d.identity(m, f.lane, rec), func(err error) { s.answers.put(f, err) })
	if err != nil {
		return s.notTaken(ctx, f, err)
	}
	s.paid(f.lane, cost{1, len(rec.Data)})
	s.d.inFlight.Store(int64(s.window.open))
	return true
}

// board puts f into the window, where it keeps its batch from being used again.
func (s *stream) board(f *flight) {
	f.lease.refs++
	s.launch(f)
}

// launch puts f, whose batch is kept already, into the window.
func (s *stream) launch(f *flight) {
	s.window.add(f)
	f.aboard = true
	if s.live != nil && f.lane == pipeline.Normal {
		f.sent = time.Now()
		s.live.pace.sent()
	}
}

// land takes f out of the window.
func (s *stream) land(f *flight) {
	if s.live != nil && f.lane == pipeline.Normal && !f.answered {
		s.live.pace.answered(s.now.Sub(f.sent), s.now)
	}
	s.window.answer(f)
	f.lease.feed.release(f.lease)
}

// notTaken handles a record that the link did not take: a refusal is about the record, any other error about the link.
func (s *stream) notTaken(ctx context.Context, f *flight, err error) bool {
	if judge(err) != gone {
		s.answers.put(f, err)
		return true
	}
	s.land(f)
	return s.unusable(ctx, err)
}

// unusable drops a link that takes no messages although it is not lost.
func (s *stream) unusable(ctx context.Context, err error) bool {
	if ctx.Err() == nil && !s.isLost() {
		s.link.Close(err)
	}
	return false
}
