package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// times are the waits of a drain. They are fields so that tests can shorten them.
type times struct {
	stop time.Duration // for acknowledgements on the way when stopping

	quotaMin, quotaMax         time.Duration // after "cannot take it now"
	forbiddenMin, forbiddenMax time.Duration // after "may not be sent"

	prove, provePoll time.Duration // for a connection to show that it works
	settle           time.Duration // for it to stand before a suspected record is sent the first time
	atOnce           time.Duration // a close within this time of sending is about what was sent
}

func defaultTimes() times {
	return times{
		stop:     2 * time.Second,
		quotaMin: time.Second, quotaMax: time.Minute,
		forbiddenMin: 30 * time.Second, forbiddenMax: 5 * time.Minute,
		prove: 10 * time.Second, provePoll: 50 * time.Millisecond,
		settle: time.Second, atOnce: 5 * time.Second,
	}
}

// drain sends the records of one uplink, urgent lane first, over one link after the other, each time beginning at the ack
// floor. It is the only reader of the uplink's lanes.
type drain struct {
	out     *output
	gateway string
	address string // GATEWAY/UPLINK, for identities
	log     *slog.Logger
	metrics *metrics
	times   times

	// What follows belongs to the drain's goroutine.

	liveFirst bool // fresh records of the normal lane overtake its backlog
	pacer     pacer
	batching  *batching
	suspect   suspicion
	blame     blame
	server    string // of the link in use
	took      Link   // the last one over which a record was taken
	quota     backoff
	forbidden backoff
	last      *cell // of the last record
	// gently: the last pass ended with a refusal, so the next one begins with one record in flight. What is in flight behind
	// a refused record is taken before it, and that need not happen on every try.
	gently bool

	inFlight atomic.Int64
	mu       sync.Mutex
	alarm    string // why sending pauses; empty: it does not
}

// run sends until ctx ends, and then waits a short time for acknowledgements on the way.
func (d *drain) run(ctx context.Context) {
	for ctx.Err() == nil {
		link, err := d.out.uplink.Connected(ctx)
		if err != nil {
			if ctx.Err() == nil {
				d.log.Error("the uplink ended", "err", err)
			}
			return
		}
		if isClosed(link.Lost()) {
			pause(ctx, d.times.provePoll) // the uplink has not noticed yet
			continue
		}
		d.server = d.out.uplink.Status().Server
		s := &stream{d: d, link: link, answers: newAnswers(), gather: d.batching.pass()}
		d.after(ctx, link, s.run(ctx))
	}
}

// after decides what to do between two passes.
func (d *drain) after(ctx context.Context, link Link, e ending) {
	switch {
	case e.lost:
		d.afterLoss(ctx, link, e)
	case e.verdict == faulty:
		link.Close(e.why) // another server may be better, or another connection to this one
	}
	switch {
	case ctx.Err() != nil:
	case e.verdict == later:
		d.gently = true
		if e.delivered > 0 {
			d.quota.reset()
		}
		d.rest(ctx, "quota", e.why, d.quota.next(d.times.quotaMin, d.times.quotaMax))
	case e.verdict != accepted:
		d.gently = true
		d.rest(ctx, "forbidden", e.why, d.forbidden.next(d.times.forbiddenMin, d.times.forbiddenMax))
	}
}

// afterLoss looks for somebody to blame for a connection that the peer closed.
func (d *drain) afterLoss(ctx context.Context, link Link, e ending) {
	if !link.ClosedByPeer() {
		return
	}
	if e.reporting {
		d.out.gaps.closed()
	}
	if e.oldest.seq == 0 {
		return
	}
	d.suspect.closed(e.oldest, e.evidence && !e.reporting)
	if e.batched > 0 && d.suspect.closes == suspectCloses {
		// It may have been too large for a broker that cannot say so, and not one of its records to blame.
		d.batching.size.shrink(e.batched, smallest)
	}
	if !d.suspect.condemned(e.oldest) || d.blame.due(e.oldest, blameByClose, d.server, d.took == link) {
		return
	}
	why := errors.New("the cloud broker closes the connection on record after record, which are kept")
	d.suspect = suspicion{}
	if d.blame.skip(e.oldest, skipByClose) {
		d.keeps(why)
		return
	}
	d.rest(ctx, "forbidden", why, d.forbidden.next(d.times.forbiddenMin, d.times.forbiddenMax))
}

// keeps raises the alarm over a refused record that stays in the buffer, as nothing else has been taken.
func (d *drain) keeps(why error) {
	if d.alarm == "" {
		d.log.Warn("the cloud refuses records and takes none; they are kept, nothing is lost", "err", why)
	}
	d.setAlarm(fmt.Sprintf("the last records were refused, and none was taken; they are kept: %v", why))
}

// proved notes that the cloud takes records.
func (d *drain) proved() {
	if d.alarm != "" { // only this goroutine writes it
		d.forbidden.reset()
		d.setAlarm("")
		d.log.Info("the cloud takes records again")
	}
}

// rest pauses sending and says why in the status.
func (d *drain) rest(ctx context.Context, reason string, why error, wait time.Duration) {
	d.metrics.paused.WithLabelValues(d.out.name, reason).Inc()
	if d.alarm == "" {
		d.log.Warn("the cloud takes no records; sending pauses, nothing is lost", "reason", reason, "err", why, "retry_in", wait)
	}
	d.setAlarm(fmt.Sprintf("sending pauses: %v", why))
	pause(ctx, wait)
}

func (d *drain) setAlarm(text string) {
	d.mu.Lock()
	d.alarm = text
	d.mu.Unlock()
}

// alarmText is the alarm for the status.
func (d *drain) alarmText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.alarm
}

// cell returns the ledger's cell for a route. Records of one route tend to follow each other.
func (d *drain) cell(route []byte, lane pipeline.Lane) *cell {
	if d.last == nil || d.last.lane != lane || d.last.route != string(route) {
		d.last = d.out.ledger.cell(route, d.out.index, lane)
	}
	return d.last
}

func (d *drain) identity(m message.Message, lane pipeline.Lane, rec *buffer.Rec) Identity {
	return Identity{
		ID: m.ID.String(), Seq: SequenceText(rec.Epoch, lane.String(), rec.Seq), Source: m.Source.Name(), Uplink: d.address,
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// backoff makes growing pauses, each between half and all of its length, so that gateways refused together do not come
// back together.
type backoff struct{ last time.Duration }

func (b *backoff) next(least, most time.Duration) time.Duration {
	b.last = min(max(2*b.last, least), most)
	return b.last/2 + rand.N(b.last/2+1)
}

func (b *backoff) reset() { b.last = 0 }
