package forwarder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// DeadSelection picks dead letters; the zero value picks all.
type DeadSelection struct {
	ID  string // tg-id of the message
	Seq string // sequence of the dead letter: EPOCH-dead-N, or N alone
}

func (d DeadSelection) picks(r buffer.Rec, s Stored) bool {
	return (d.ID == "" || d.ID == s.Message.ID.String()) &&
		(d.Seq == "" || d.Seq == SequenceText(r.Epoch, "dead", r.Seq) || d.Seq == strconv.FormatUint(uint64(r.Seq), 10))
}

// DeadResult tells how many of the dead letters that were picked are gone, and how many cannot be sent and stay.
type DeadResult struct {
	Done uint64
	Kept uint64
	// Why is the reason for the first one that stays.
	Why string
}

// letter is a dead letter on its way out.
type letter struct {
	seq   buffer.Seq
	route string
	lane  pipeline.Lane
	rec   buffer.Record
}

// How many dead letters go together, and what their records may have in bytes.
const (
	letterCount = 256
	letterBytes = 1 << 20
)

// resender appends dead letters of one uplink to its lanes again. Each gets a new sequence and keeps its tg-id, by which the
// cloud can tell that it is the same record. A dead letter is acknowledged only when its record is on disk: a crash in
// between leaves both, never none.
type resender struct {
	log   *buffer.Log
	dead  *buffer.Queue
	lanes [pipeline.Lanes]*buffer.Queue
	// route returns the lane and the lifetime that a route gives its messages.
	route func(name string) (pipeline.Lane, time.Duration)
	// room is how many bytes the bound leaves. What is resent never pushes out what waits.
	room func() int64
	// moved is told of each letter that is a record again. It may be nil.
	moved func(letter)
}

// run resends what is picked of the letters that are there now: one that becomes a dead letter again meanwhile stays.
func (r *resender) run(ctx context.Context, pick DeadSelection) (DeadResult, error) {
	var result DeadResult
	last, after := r.dead.Stats().Last, buffer.Seq(0)
	for ctx.Err() == nil {
		letters, next, err := r.gather(after, last, pick, &result)
		if err != nil {
			return result, fmt.Errorf("read dead letters: %w", err)
		}
		if err := r.send(ctx, letters); err != nil {
			return result, err
		}
		result.Done += uint64(len(letters))
		if next == 0 {
			return result, nil
		}
		after = next
	}
	return result, ctx.Err()
}

// gather reads the next letters behind after. next is where to go on; 0: there are no more.
func (r *resender) gather(after, last buffer.Seq, pick DeadSelection, result *DeadResult) (letters []letter, next buffer.Seq, err error) {
	bytes := 0
	err = r.dead.Scan(after, func(rec buffer.Rec) bool {
		if rec.Seq > last {
			return false
		}
		if len(letters) == letterCount || bytes >= letterBytes {
			next = after
			return false
		}
		after = rec.Seq
		s, err := ReadDeadLetter(rec.Data)
		if err != nil && pick != (DeadSelection{}) {
			return true
		}
		if err == nil && !pick.picks(rec, s) {
			return true
		}
		if err == nil {
			err = message.ValidName(s.Message.Topic)
		}
		if err == nil && strings.Contains(s.Reason, pipeline.ExpandFailed) {
			err = errors.New("the route made no topic for it that may be sent") // which is not the one that stands there
		}
		if err != nil {
			if result.Kept++; result.Why == "" {
				result.Why = err.Error()
			}
			return true
		}
		_, body, _ := splitDeadLetter(rec.Data)
		lane, expire := r.route(s.Route)
		letters = append(letters, letter{rec.Seq, s.Route, lane, buffer.Record{
			Queue: r.lanes[lane], Data: slices.Clone(body), Lifetime: lifetime(&s.Message, expire),
		}})
		bytes += len(body)
		return true
	})
	return letters, next, err
}

// send appends letters to their lanes and lets go of them when they are there.
func (r *resender) send(ctx context.Context, letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	var need int64
	recs := make([]buffer.Record, len(letters))
	seqs := make([]buffer.Seq, len(letters))
	for i, l := range letters {
		recs[i], seqs[i] = l.rec, l.seq
		need += int64(len(l.rec.Data)) + 64 // and what the buffer charges for keeping it, roughly
	}
	if room := r.room(); need > room {
		return fmt.Errorf("%w: the buffer has room for %d bytes and %d dead letters need %d; they stay, resend them when the backlog is smaller",
			buffer.ErrFull, max(room, 0), len(letters), need)
	}
	pos, err := r.log.Append(recs...)
	for errors.Is(err, buffer.ErrBusy) { // the disk is behind
		if !pause(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
		pos, err = r.log.Append(recs...)
	}
	if err == nil {
		// They are records now: who asked may be gone, and they are to be dead letters no more all the same.
		err = message.NewTicket(r.log, pos).Wait(context.WithoutCancel(ctx))
	}
	if err != nil {
		return fmt.Errorf("resend %d dead letters: %w", len(letters), err)
	}
	r.dead.Ack(seqs...)
	for _, l := range letters {
		if r.moved != nil {
			r.moved(l)
		}
	}
	return nil
}

// ResendDead sends dead letters of an uplink again, on a gateway that runs. Each copy moves from the ledger's place dead to
// buffered; one that died before this process began is counted as recovered, as if it had been found in its lane.
func (f *Forwarder) ResendDead(ctx context.Context, uplink string, pick DeadSelection) (DeadResult, error) {
	o := f.output(uplink)
	if o == nil {
		return DeadResult{}, errNoUplink(uplink)
	}
	o.dead.resending.Lock() // or two of them would send the same letters
	defer o.dead.resending.Unlock()
	r := &resender{
		log: f.log, dead: o.dead.queue, lanes: o.queues,
		route: func(name string) (pipeline.Lane, time.Duration) {
			for _, r := range f.plan.Load().chain.Routes() {
				if r.Name == name {
					return r.Lane, r.Expire
				}
			}
			return pipeline.Normal, 0
		},
		room: func() int64 {
			used, limit := o.bound.Used()
			return limit - used
		},
		moved: func(l letter) {
			c := f.ledger.cell([]byte(l.route), o.index, l.lane)
			c.buffered.Add(1)
			if l.seq > o.dead.top {
				c.places[placeDead].Add(^uint64(0)) // minus one
			} else {
				c.recovered.Add(1)
			}
		},
	}
	return r.run(ctx, pick)
}

// ResendDead sends dead letters of an uplink again when a gateway with this configuration is started, in a log that no
// gateway uses.
func ResendDead(ctx context.Context, log *buffer.Log, c *config.Config, uplink string, pick DeadSelection) (DeadResult, error) {
	u, ok := c.Uplinks[uplink]
	if !ok {
		return DeadResult{}, errNoUplink(uplink)
	}
	dead := log.Lookup(deadName(uplink))
	if dead == nil {
		return DeadResult{}, nil
	}
	r := &resender{log: log, dead: dead, route: func(name string) (pipeline.Lane, time.Duration) {
		route := c.Routes[name] // of no name that is configured: as the zero value says
		if route.Lane == pipeline.Urgent.String() {
			return pipeline.Urgent, route.Expire.D()
		}
		return pipeline.Normal, route.Expire.D()
	}}
	for kind := range pipeline.Lanes {
		// Without its bound and age: the log shall give up nothing here, where nobody would announce it.
		q, err := log.Queue(laneName(uplink, kind), buffer.QueueOptions{})
		if err != nil {
			return DeadResult{}, fmt.Errorf("resend dead letters: %w", err)
		}
		r.lanes[kind] = q
	}
	// The bound of the gateway that is started next, a part of which it keeps free.
	limit := log.LimitOf(maxBytesOf(u), Bounds(c))
	r.room = func() int64 {
		left := limit
		for _, q := range r.lanes {
			s := q.Stats()
			left -= s.Bytes + s.WaitingBytes
		}
		return left
	}
	return r.run(ctx, pick)
}

// CountDead counts the dead letters that pick picks of a queue of them.
func CountDead(dead *buffer.Queue, pick DeadSelection) (n uint64, err error) {
	err = dead.Scan(0, func(rec buffer.Rec) bool {
		if s, err := ReadDeadLetter(rec.Data); err == nil && pick.picks(rec, s) {
			n++
		}
		return true
	})
	if err != nil {
		return n, fmt.Errorf("read dead letters: %w", err)
	}
	return n, nil
}

// DiscardDead gives up dead letters of a queue of them, with or without a gateway. In the ledger they stay where they are.
func DiscardDead(dead *buffer.Queue, pick DeadSelection) (DeadResult, error) {
	var result DeadResult
	var seqs []buffer.Seq
	last := dead.Stats().Last
	err := dead.Scan(0, func(rec buffer.Rec) bool {
		if rec.Seq > last {
			return false
		}
		s, err := ReadDeadLetter(rec.Data)
		if err == nil && pick.picks(rec, s) || err != nil && pick == (DeadSelection{}) {
			seqs = append(seqs, rec.Seq)
		}
		return true
	})
	if errors.As(err, new(*buffer.KeyError)) && pick == (DeadSelection{}) {
		// All of them, and nobody has their key: what is given up need not be read.
		result.Done = dead.Purge()
		return result, nil
	}
	if err != nil {
		return result, fmt.Errorf("read dead letters: %w", err)
	}
	result.Done = uint64(len(dead.Ack(seqs...)))
	return result, nil
}

// deadName is the name of the queue of an uplink's dead letters.
func deadName(uplink string) string { return "dead/" + uplink }

func errNoUplink(name string) error {
	return fmt.Errorf("there is no [uplink.%s] to send dead letters to: configure it, or discard them", name)
}
