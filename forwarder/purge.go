package forwarder

import (
	"context"
	"fmt"

	"tidegate/buffer"
	"tidegate/message"
)

// Purge gives up what is in a queue of a log that no gateway uses, and returns how many records that were. Where it is the queue
// of an uplink's lane, it leaves behind what the next gateway tells the cloud and counts in its ledger.
func Purge(ctx context.Context, log *buffer.Log, q *buffer.Queue) (uint64, error) {
	uplink, lane, ok := splitLaneName(q.Name())
	if !ok {
		return q.Purge(), nil
	}
	g := newGaps(nil)
	k := gapKey{lane: lane, reason: placePurged.String()}
	_, err := log.Queue(q.Name(), buffer.QueueOptions{OnDrop: func(_ *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
		for i := range recs {
			k.epoch = recs[i].Epoch
			if k.reason = placePurged.String(); why == buffer.Damaged {
				k.reason = placeDamaged.String()
			}
			g.note(k, recs[i].Seq)
		}
	}})
	if err != nil {
		return 0, fmt.Errorf("purge %s: %w", q.Name(), err)
	}
	n := q.Purge()
	to, err := log.Queue(gapsName(uplink), buffer.QueueOptions{})
	if err != nil {
		return n, fmt.Errorf("purge %s: leave word of it: %w", q.Name(), err)
	}
	for _, r := range g.list {
		data, err := r.MarshalJSON()
		if err != nil {
			return n, fmt.Errorf("purge %s: leave word of it: %w", q.Name(), err)
		}
		pos, err := log.Append(buffer.Record{Queue: to, Data: data})
		if err == nil {
			err = message.NewTicket(log, pos).Wait(ctx)
		}
		if err != nil {
			return n, fmt.Errorf("purge %s: leave word of it: %w", q.Name(), err)
		}
	}
	return n, nil
}

// gapsName is the name of the queue that keeps the gap reports of an uplink.
func gapsName(uplink string) string { return "gaps/" + uplink }

// note adds a sequence that no ledger has.
func (g *gaps) note(k gapKey, seq buffer.Seq) {
	for _, r := range g.list {
		if r.gapKey == k && (r.lost.continues(seq) || len(r.lost.list) < maxRanges) {
			r.lost.add(seq)
			r.uncounted++
			return
		}
	}
	r := &gapReport{gapKey: k, uncounted: 1}
	r.lost.add(seq)
	g.list = append(g.list, r)
}

// settle puts what was given up while no gateway ran into the ledger.
func (g *gaps) settle(lanes []*lane) {
	for _, r := range g.list {
		for _, l := range lanes {
			if l.kind == r.lane && r.uncounted > 0 {
				l.unnamed.recovered.Add(int64(r.uncounted))
				p := placePurged
				if r.reason == placeDamaged.String() {
					p = placeDamaged
				}
				l.unnamed.places[p].Add(r.uncounted)
				r.uncounted, r.unsaved = 0, true
			}
		}
	}
}
