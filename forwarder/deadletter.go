package forwarder

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
)

// deadBytes bounds the dead letters of one uplink; beyond it the oldest go.
const deadBytes = 16 << 20

// deadLetters keeps the records that can never be sent, with the reason, for a person to look at: those that the cloud
// refuses for what they are, and those whose resulting topic is no topic name. They go when they are sent again or discarded
// (resend.go), or pushed out by newer ones, which is counted.
type deadLetters struct {
	log     *buffer.Log
	queue   *buffer.Queue
	logger  *slog.Logger
	evicted prometheus.Counter
	top     buffer.Seq // the last one that was there at the start

	resending sync.Mutex
}

// open declares the queue.
func (d *deadLetters) open(name string) error {
	q, err := d.log.Queue(name, buffer.QueueOptions{
		Bound: d.log.NewBound(deadBytes, buffer.DropOldest),
		OnDrop: func(_ *buffer.Queue, why buffer.Reason, recs []buffer.Rec) {
			if why == buffer.Evicted {
				d.evicted.Add(float64(len(recs)))
			}
		},
	})
	if err != nil {
		return err
	}
	d.queue, d.top = q, q.Stats().Next-1
	return nil
}

// record makes the buffer's record of a dead letter, built at the end of b.
func (d *deadLetters) record(b []byte, reason string, rec []byte) ([]byte, buffer.Record) {
	start := len(b)
	b = appendDeadLetter(b, reason, rec)
	return b, buffer.Record{Queue: d.queue, Data: b[start:len(b):len(b)]}
}

// add stores a dead letter. done is called once, with nil when it is on disk.
func (d *deadLetters) add(reason string, rec []byte, done func(error)) {
	_, r := d.record(nil, reason, rec)
	pos, err := d.log.Append(r)
	if errors.Is(err, buffer.ErrTooLarge) {
		// It cannot be kept, and it must not stop everything behind it: what is left of it is this line.
		d.logger.Error("a dead letter is too large to be kept", "queue", d.queue.Name(), "bytes", len(rec), "reason", reason)
		done(nil)
		return
	}
	if err != nil {
		done(err)
		return
	}
	d.log.Notify(pos, done)
}

// DeadLetters returns the dead letters of an uplink, the oldest first. There are 16 MiB of them at most.
func (f *Forwarder) DeadLetters(uplink string) ([]Stored, error) {
	if o := f.output(uplink); o != nil {
		return o.dead.all()
	}
	return nil, fmt.Errorf("list dead letters: there is no uplink %q", uplink)
}

func (d *deadLetters) all() ([]Stored, error) {
	var out []Stored
	err := d.queue.Scan(0, func(r buffer.Rec) bool {
		s, err := ReadDeadLetter(bytes.Clone(r.Data))
		if err != nil {
			s.Reason = err.Error() // it is listed all the same: that it is there matters
		}
		out = append(out, s)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return out, nil
}
