package main

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"tidegate/buffer"
)

// A process that was killed holds its lock and its ports for some time longer: the kernel closes what it had open only once
// its last thread is gone, and that may be waiting for the disk. Whoever starts the next one at once finds them taken.
const (
	handoverPatience = 5 * time.Second
	handoverEvery    = 50 * time.Millisecond
)

// handOver calls take until it gets what an ending process may still hold, and says once in the log that it waits for what.
// It returns the last error when patience or ctx ends, and any other error at once.
func handOver(ctx context.Context, patience time.Duration, log *slog.Logger, what string, take func() error) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(handoverEvery)
	defer again.Stop()
	for waiting := false; ; waiting = true {
		err := take()
		if !errors.Is(err, buffer.ErrLocked) && !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		if !waiting {
			log.Info("waiting for what another process holds", "what", what, "err", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-deadline.C:
			return err
		case <-again.C:
		}
	}
}
