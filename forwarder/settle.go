package forwarder

import (
	"context"
	"fmt"
	"time"
)

// This file is the second half of a stream: what becomes of what was sent.

// settle handles the answers that have come.
func (s *stream) settle() {
	list := s.answers.take(s.spare)
	if list == nil {
		return
	}
	s.now = time.Now()
	for _, a := range list {
		s.settleOne(a)
	}
	clear(list)
	s.spare = list
	s.d.inFlight.Store(int64(s.window.open))
	s.flushAcks()
}

func (s *stream) settleOne(a answer) {
	f := a.f
	if f.parcel != nil {
		s.settleParcel(f.parcel, a.err)
		return
	}
	if f.report != nil {
		s.settleReport(f, a.err)
		return
	}
	if f.burying {
		s.settleBurial(f, a.err)
		return
	}
	switch v := judge(a.err); v {
	case accepted:
		s.done(f, placeDelivered)
	case rejected:
		s.refused(f, a.err)
	case gone:
		// It stays in the window: after the pass the oldest one tells what the connection was lost over.
		s.broken = true
	default:
		s.land(f)
		s.end(v, a.err)
	}
}

// refused handles a record that the cloud does not want for what it is, as far as the cloud can be believed.
func (s *stream) refused(f *flight, err error) {
	key, log := recordKey{f.lane, f.seq}, s.d.log.With("lane", f.lane.String(), "seq", uint64(f.seq), "err", err)
	switch {
	case local(err), s.d.blame.due(key, blameByCode, s.d.server, s.d.took == s.link):
		log.Warn("the cloud refused a record; it is now a dead letter")
		s.bury(f, err.Error())
		return
	case s.verdict != accepted: // the pass ends, and what was in flight is sent again
	case s.d.blame.skip(key, skipByCode):
		s.d.keeps(err)
	default:
		s.end(faulty, fmt.Errorf("the cloud broker refuses record after record, which are kept: %w", err))
	}
	s.land(f)
}

// end makes the pass end with a pause; of several reasons the gravest counts.
func (s *stream) end(v verdict, why error) {
	if v > s.verdict {
		s.verdict, s.why = v, why
	}
}

// done takes an answered flight out of the window and its record out of the buffer.
func (s *stream) done(f *flight, p place) {
	if p == placeDelivered {
		s.delivered++
		s.d.metrics.uplink.Observe(max(s.now.Sub(f.received), 0).Seconds())
		key := recordKey{f.lane, f.seq}
		s.d.suspect.clear(key)
		s.again = s.d.blame.taken(key) || s.again
		s.d.took = s.link
		if s.verdict == accepted {
			s.d.proved()
		}
		s.widen()
	}
	s.leave(f, p)
	s.land(f)
}

// widen lets more into flight again, step by step, after a suspected record turned out to be good or the cloud takes
// records again.
func (s *stream) widen() {
	if s.limit == 0 || s.delivered < s.limit {
		return
	}
	if s.limit *= 2; s.limit > 256 {
		s.limit, s.careful = 0, false
	}
}

// leave notes that a record leaves the buffer, with the next flushAcks.
func (s *stream) leave(f *flight, p place) {
	a := &s.acks[f.lane]
	a.add(f, p)
	if len(a.seqs) >= 1024 {
		s.flushAcks()
	}
}

func (s *stream) flushAcks() {
	for lane := range s.acks {
		a := &s.acks[lane]
		if len(a.seqs) == 0 {
			continue
		}
		s.d.out.lanes[lane].release(a)
		a.reset()
	}
}

// bury moves a record to the dead letters. It is acknowledged in its own queue when the dead letter is on disk, so that a
// crash in between shows it twice rather than not at all.
func (s *stream) bury(f *flight, reason string) {
	if !f.aboard {
		s.board(f)
	}
	f.burying = true
	s.burials++
	s.d.out.dead.add(reason, f.data, func(err error) { s.answers.put(f, err) })
}

// settleBurial ends what bury began. When the disk could not take the dead letter, the record stays where it is.
func (s *stream) settleBurial(f *flight, err error) {
	s.burials--
	if err == nil {
		key := recordKey{f.lane, f.seq}
		s.d.suspect.clear(key)
		s.d.blame.buried(key)
		s.done(f, placeDead)
		return
	}
	s.land(f)
	s.end(later, fmt.Errorf("keep a dead letter: %w", err))
}

// finish waits until everything in flight was answered, for a bounded time when ctx ended. A lost link answers no more,
// so only dead letters on their way to the disk are waited for then. It reports whether the link is lost.
func (s *stream) finish(ctx context.Context) bool {
	defer s.flushAcks()
	s.current = [tracks]*lease{}
	s.forget()
	var timer <-chan time.Time
	stopping, losing := ctx.Done(), s.link.Lost()
	for {
		lost := s.isLost() // asked before settling: Lost is closed after the last answer
		s.settle()
		if s.window.open == 0 || lost && s.burials == 0 {
			return lost
		}
		if lost {
			losing = nil
		}
		select {
		case <-s.answers.wake:
		case <-losing:
		case <-stopping:
			t := time.NewTimer(s.d.times.stop)
			defer t.Stop()
			timer, stopping = t.C, nil
		case <-timer:
			return s.isLost()
		}
	}
}
