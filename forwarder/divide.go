package forwarder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/forwarder/pipeline"
	"tidegate/message/envelope"
)

// This file is what becomes of a batch: the answer to it is the answer to each of its records, unless the cloud refuses it for
// what is in it or for its size. Then it is divided until the record that is to blame is alone.

// waryFor is how many batches must be taken after a refused one before several are in flight again.
const waryFor = 16

// settleParcel handles the answer to a batch, which is the answer to each of its members.
func (s *stream) settleParcel(p *parcel, err error) {
	s.gather.answered(p)
	switch v := judgeBatch(err); v {
	case accepted:
		for _, f := range p.members {
			s.done(f, placeDelivered)
		}
		s.gather.wary[p.lane] = max(s.gather.wary[p.lane]-1, 0)
		s.gather.recycle(p)
	case rejected:
		s.divide(p, err)
	case gone:
		s.broken = true // as for a single record
	default:
		s.landAll(p)
		s.end(v, err)
	}
}

// judgeBatch is judge for a batch. Its topic is that of the uplink and not that of a record: where the cloud does not like
// it, that is a mistake of the configuration, and must not empty the buffer into the dead letters.
func judgeBatch(err error) verdict {
	var refusal Refusal
	if errors.As(err, &refusal) && refusal.Code() == codeTopicInvalid {
		return forbidden
	}
	return judge(err)
}

// divide handles a batch that the cloud refused for what is in it, or for its size: it is sent again in halves, down to the
// record that is to blame, which becomes a dead letter.
func (s *stream) divide(p *parcel, err error) {
	g, n := s.gather, len(p.members)
	g.wary[p.lane] = waryFor
	if !p.piece {
		g.size.before = g.size.limit
	}
	var refusal Refusal
	if errors.As(err, &refusal) && refusal.Code() == codePacketTooLarge {
		if n > 1 {
			g.size.shrink(p.own(), leastText)
		} else {
			g.size.restore() // it was this record
		}
	}
	switch {
	case n == 1:
		if errors.As(err, &refusal) && refusal.Code() == codePacketTooLarge && g.encoder.Compression() == envelope.None {
			// By itself it may have fitted. What the cloud can read is the user's to say, so it is not packed all the same.
			err = fmt.Errorf("%w; its batch has %d bytes, its record %d: compress = \"zstd\" or \"gzip\" makes it about as long as by itself",
				err, len(p.payload), len(p.members[0].data))
		}
		s.refused(p.members[0], err)
		g.recycle(p)
	case g.over:
		s.landAll(p)
	default:
		s.d.log.Debug("the cloud refused a batch; its records are tried in smaller ones", "lane", p.lane.String(), "records", n, "err", err)
		first := &parcel{lane: p.lane, members: p.members[: n/2 : n/2], lines: p.lines, qos: p.qos, piece: true}
		second := &parcel{lane: p.lane, members: p.members[n/2:], lines: p.lines, qos: p.qos, piece: true}
		g.pieces = append([]*parcel{first, second}, g.pieces...)
	}
}

// stepPiece sends the next part of a batch that was refused, or waits for the answer to the last one. Urgent records do not wait for
// the parts of another lane.
func (s *stream) stepPiece(ctx context.Context) bool {
	if acted, more := s.stepUrgent(ctx); acted {
		return more
	}
	g := s.gather
	if g.trying != nil {
		return s.idle(ctx, time.Hour)
	}
	p := g.pieces[0]
	if d := s.holdBack(p); d > 0 {
		return s.idle(ctx, d)
	}
	g.pieces = g.pieces[1:]
	g.trying = p
	return s.ship(ctx, p)
}

// stepUrgent gathers and sends urgent records beside parts of a batch of another lane. more is what step returns.
func (s *stream) stepUrgent(ctx context.Context) (acted, more bool) {
	g := s.gather
	urgent := func(p *parcel) bool { return p != nil && p.lane == pipeline.Urgent }
	if s.limit > 0 || urgent(g.trying) || slices.ContainsFunc(g.pieces, urgent) {
		return false, true
	}
	track, ok := s.pick()
	ok = ok && laneOf(track) == pipeline.Urgent
	p := g.full[pipeline.Urgent]
	switch {
	case p == nil && ok:
		return true, s.sendNext(ctx, track)
	case p == nil:
		p = g.open[pipeline.Urgent]
	}
	if p == nil || s.holdBack(p) > 0 {
		return false, true
	}
	return true, s.send(ctx, p)
}
