package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// part is one thing that runs from start to stop.
type part struct {
	name string
	// run works until ctx ends and returns when everything it started has ended. An error before that, or an early
	// nil, ends the gateway: a service manager starts it again.
	run func(ctx context.Context) error
	// patience is how long a stop may take before the next part is stopped anyway.
	patience time.Duration
}

// hurried is what is left of a part's patience after a second signal.
const hurried = 500 * time.Millisecond

// running is a part that was started.
type running struct {
	part
	cancel context.CancelFunc
	done   chan error
}

// supervise starts parts in their order, calls up, waits for ctx to end or a part to fail, and stops the parts in reverse
// order, one after the other: each has a context of its own, as one for all would lose that order. Once hurry is closed
// nobody gets much time. A part that does not stop in time is logged and left behind; it is no error, as the process is
// about to end and whatever is acknowledged is on disk.
func supervise(ctx context.Context, parts []part, up func(), hurry <-chan struct{}, log *slog.Logger) error {
	failed := make(chan error, len(parts))
	started := make([]running, 0, len(parts))
	for _, p := range parts {
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{p, cancel, make(chan error, 1)}
		started = append(started, r)
		go func() { // ends with the part; stop waits for it below
			err := p.run(partCtx)
			if partCtx.Err() == nil {
				if err == nil {
					err = errors.New("ended by itself")
				}
				failed <- fmt.Errorf("%s: %w", p.name, err)
			}
			r.done <- err
		}()
	}
	up()

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		log.Error("stopping", "err", err)
	}
	for i := len(started) - 1; i >= 0; i-- {
		started[i].stop(hurry, log)
	}
	return err
}

// stop ends a part and waits for it.
func (r running) stop(hurry <-chan struct{}, log *slog.Logger) {
	r.cancel()
	begun := time.Now()
	patience := time.NewTimer(r.patience)
	defer patience.Stop()
	for {
		select {
		case err := <-r.done:
			if err != nil && !errors.Is(err, context.Canceled) {
				log.Warn("a part did not stop cleanly", "part", r.name, "err", err)
			}
			return
		case <-hurry:
			hurry = nil
			patience.Reset(min(hurried, max(r.patience-time.Since(begun), 0)))
		case <-patience.C:
			log.Warn("a part did not stop in time", "part", r.name, "waited", time.Since(begun).Round(time.Millisecond))
			return
		}
	}
}
