package forwarder

import (
	"context"
	"errors"
	"time"
)

// This file is what becomes of a batch: the answer to it is the answer to each of its records, unless the cloud refuses it for
// what is in it or for its size. Then it is divided until the record that is to blame is alone.

// waryFor is how many batches must be taken after a refused one before several are in flight again.
const waryFor = 16

// smallest is what shrink leaves of a batch at least: a line that comes and goes looks the same, and no broker takes less.
const smallest = 8 << 10

// regrow is how long batches stay small after shrink, before larger ones are tried.
const regrow = time.Hour

// settleParcel handles the answer to a batch, which is the answer to each of its members.
func (s *stream) settleParcel(p *parcel, err error) {
	s.gather.answered(p)
	switch v := judgeBatch(err); v {
	case accepted:
		for _, f := range p.members {
			s.done(f, placeDelivered)
		}
		s.gather.wary = max(s.gather.wary-1, 0)
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
	g.wary = waryFor
	var refusal Refusal
	if errors.As(err, &refusal) && refusal.Code() == codePacketTooLarge {
		if n > 1 {
			g.limit = min(g.limit, max(p.text(0, 0)/2, 1<<10))
		} else {
			g.limit = g.maxText // it was this record
		}
	}
	switch {
	case n == 1:
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

// stepPiece sends the next part of a batch that was refused, or waits for the answer to the last one.
func (s *stream) stepPiece(ctx context.Context) bool {
	g := s.gather
	if g.trying {
		return s.idle(ctx, time.Hour)
	}
	p := g.pieces[0]
	g.pieces = g.pieces[1:]
	g.trying = true
	return s.ship(ctx, p)
}

// shrink halves the batches after the peer closed the connection again and again over one with that much text: it may have
// been too large for a broker that cannot say so, and not one of its records to blame.
func (b *batching) shrink(text int) {
	b.small, b.shrunk = min(b.small, max(text/2, smallest)), time.Now()
}
