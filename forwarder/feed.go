package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"tidegate/buffer"
)

// lease is a batch of records on loan from the buffer's reader. It is read into again only after every record of it was
// answered, because a message in flight may point into its memory. It belongs to one goroutine at a time: the feed's
// while it is being filled, the drain's after that.
type lease struct {
	feed  *feed
	batch buffer.Batch
	next  int // the first record that was not looked at
	refs  int // records in flight, and 1 as long as there are more to look at
	jumps int // see live
}

func (l *lease) peek() *buffer.Rec { return &l.batch.Recs[l.next] }

// feed reads one lane for one pass, one batch ahead of the drain. A few batches of about half a MiB are in use besides
// those that records in flight keep.
type feed struct {
	queue *buffer.Queue
	log   *slog.Logger
	// read fills a lease with records behind after, or with none, and returns up to where it has looked.
	read func(ctx context.Context, after buffer.Seq, l *lease) (buffer.Seq, error)
	// failed is told when reading fails; nil: nobody.
	failed func()
	out    chan *lease // unbuffered
	back   chan *lease // batches to be used again
}

const retryRead = time.Second

func newFeed(q *buffer.Queue, log *slog.Logger) *feed {
	f := &feed{queue: q, log: log, out: make(chan *lease), back: make(chan *lease, 4)}
	f.read = func(ctx context.Context, after buffer.Seq, l *lease) (buffer.Seq, error) {
		if err := q.Next(ctx, after, &l.batch); err != nil || len(l.batch.Recs) == 0 {
			return after, err
		}
		return l.batch.Recs[len(l.batch.Recs)-1].Seq, nil
	}
	return f
}

// run reads what is behind the ack floor until ctx ends or the log is closed.
func (f *feed) run(ctx context.Context) {
	after := f.queue.Floor()
	failed := false
	for {
		l := f.empty()
		var err error
		after, err = f.read(ctx, after, l)
		switch {
		case ctx.Err() != nil, errors.Is(err, buffer.ErrClosed), errors.Is(err, buffer.ErrDropped):
			return
		case err != nil:
			// The buffer tries twice and then gives up what it cannot read, so this passes.
			if !failed {
				f.log.Warn("reading the buffer failed; trying again", "queue", f.queue.Name(), "err", err)
			}
			failed = true
			if f.failed != nil {
				f.failed()
			}
			if !pause(ctx, retryRead) {
				return
			}
			continue
		case len(l.batch.Recs) == 0:
			f.keep(l)
			continue
		}
		failed = false
		l.next, l.refs = 0, 1
		select {
		case f.out <- l:
		case <-ctx.Done():
			return
		}
	}
}

func (f *feed) empty() *lease {
	select {
	case l := <-f.back:
		return l
	default:
		return &lease{feed: f}
	}
}

// release lets go of one reference to l.
func (f *feed) release(l *lease) {
	if l.refs--; l.refs == 0 {
		f.keep(l)
	}
}

// keep lets the memory of l be used again.
func (f *feed) keep(l *lease) {
	select {
	case f.back <- l:
	default: // enough are waiting; this one is garbage
	}
}

// pause waits for d and reports whether ctx is still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
