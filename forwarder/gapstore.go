package forwarder

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

const (
	// gapBytes bounds the reports on disk; all that are kept in memory fit.
	gapBytes = 1 << 20
	// saveEvery is the least time between two writes of reports, for every saveBytes of the first, so that the disk is spared
	// while records are being lost all the time. At the most it is a second or so.
	saveEvery = 20 * time.Millisecond
	saveBytes = 512
	saveRetry = time.Second
	// saveLast bounds the last write, when stopping.
	saveLast = 2 * time.Second
)

// gapStore keeps the reports of one uplink on disk, in a queue of the log beside the records they are about, so that a
// restart does not forget them. A report that grew is written again and the older one is acknowledged. What no report on
// disk has yet the log keeps itself, as losses of the lanes.
type gapStore struct {
	log    *buffer.Log
	queue  *buffer.Queue
	lanes  []*lane
	logger *slog.Logger
	wake   chan struct{} // capacity 1: there is something to write
	// entering is held for reading by who lets the log keep a loss before a report has it.
	entering sync.RWMutex
}

// open declares the queue and takes in what an earlier process left.
func (g *gaps) open(log *buffer.Log, name string, logger *slog.Logger) error {
	q, err := log.Queue(name, buffer.QueueOptions{Bound: log.NewBound(gapBytes, buffer.DropOldest), Stays: true})
	if err != nil {
		return err
	}
	g.store.log, g.store.queue, g.store.logger = log, q, logger
	err = q.Scan(0, func(rec buffer.Rec) bool {
		r, err := readGapReport(rec.Data)
		if err != nil {
			g.gone = append(g.gone, rec.Seq)
			return true
		}
		r.stored = []buffer.Seq{rec.Seq}
		g.restore(r)
		return true
	})
	g.some.Store(len(g.list) > 0)
	return err
}

// restore takes in a report of an earlier process. Reports of a kind become one, as far as that has room; where one that grew
// and the one it replaces are both there, they are one in any case.
func (g *gaps) restore(r *gapReport) {
	for _, o := range g.list {
		both := o.lost
		if o.gapKey != r.gapKey {
			continue
		}
		if both.union(r.lost); len(both.list) <= maxRanges || len(both.list) < len(o.lost.list)+len(r.lost.list) {
			o.lost, o.unsaved = both, o.unsaved || r.unsaved
			o.uncounted += r.uncounted
			o.stored = append(o.stored, r.stored...)
			return
		}
	}
	g.list = append(g.list, r)
	g.trim()
}

// keep writes reports to the disk until ctx ends, and then what is left.
func (g *gaps) keep(ctx context.Context) {
	failed := false
	for {
		select {
		case <-g.store.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveLast)
			defer cancel()
			if _, err := g.save(last); err != nil {
				g.store.logger.Warn("gaps that were not announced yet are forgotten", "err", err)
			}
			return
		}
		n, err := g.save(ctx)
		if err == nil {
			failed = false
			if n > 0 {
				signal(g.store.wake) // what the log counts as lost only after it told of it is noted the next time
			}
			pause(ctx, time.Duration(1+min(n/saveBytes, 50))*saveEvery)
			continue
		}
		if !failed && ctx.Err() == nil {
			g.store.logger.Warn("keeping gap reports failed; trying again", "err", err)
		}
		failed = true
		pause(ctx, saveRetry)
		signal(g.store.wake)
	}
}

// save writes what is not on disk yet, waits until it is, and lets go of what is needed no more. It returns how many bytes it
// wrote.
func (g *gaps) save(ctx context.Context) (n int, err error) {
	marks := g.marks()
	reports, recs, err := g.unsaved()
	for i := range recs {
		n += len(recs[i].Data)
	}
	appended := false
	if err == nil && len(recs) > 0 {
		var pos buffer.Pos
		pos, err = g.store.log.Append(recs...)
		if appended = err == nil; appended {
			err = message.NewTicket(g.store.log, pos).Wait(ctx)
		}
	}
	g.mu.Lock()
	for i, r := range reports {
		if err != nil {
			r.unsaved = true
		} else {
			g.gone = append(g.gone, r.stored...)
			r.stored = r.stored[:0]
		}
		if appended { // also where nobody waited to the end
			r.stored = append(r.stored, recs[i].Seq)
		}
		if r.over {
			g.gone = append(g.gone, r.stored...)
			r.stored = nil
		}
	}
	gone := g.gone
	g.gone = nil
	g.mu.Unlock()
	if len(gone) > 0 {
		g.store.queue.Ack(gone...)
	}
	if err == nil {
		for i, l := range g.store.lanes {
			l.queue.Noted(marks[i])
		}
	}
	return n, err
}

// marks tells for each lane up to where its losses are in a report.
func (g *gaps) marks() []uint64 {
	g.store.entering.Lock()
	defer g.store.entering.Unlock()
	var marks []uint64
	for _, l := range g.store.lanes {
		_, mark := l.queue.Losses()
		marks = append(marks, mark)
	}
	return marks
}

// take makes reports of what an earlier process lost and did not keep.
func (g *gaps) take(l *lane) {
	losses, _ := l.queue.Losses()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range losses {
		k := gapKey{cmp.Or(x.Epoch, l.epoch), l.kind, placeOf(x.Why).String()}
		g.restore(&gapReport{gapKey: k, lost: runs{[]run{{x.First, x.Last}}}, unsaved: true})
	}
	g.store.lanes = append(g.store.lanes, l)
	if len(losses) > 0 {
		g.some.Store(true)
		signal(g.store.wake)
	}
}

// unsaved takes the reports that are to be written, with their records.
func (g *gaps) unsaved() ([]*gapReport, []buffer.Record, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var reports []*gapReport
	var recs []buffer.Record
	take := func(r *gapReport) error {
		if r == nil || !r.unsaved {
			return nil
		}
		data, err := r.MarshalJSON()
		if err != nil {
			return err
		}
		r.unsaved = false
		reports = append(reports, r)
		recs = append(recs, buffer.Record{Queue: g.store.queue, Data: data})
		return nil
	}
	err := take(g.sending)
	for i := 0; i < len(g.list) && err == nil; i++ {
		err = take(g.list[i])
	}
	return reports, recs, err
}
