package main

import (
	"context"
	"log/slog"
	"time"
)

// watchEvery is how soon a change of the users file is seen at the latest.
const watchEvery = 2 * time.Second

// reloader is a file that is read again when it changed; *access.Checker is one.
type reloader interface {
	Reload() (changed bool, err error)
}

// watchUsers reloads the users file when it changes, until ctx ends. It looks rather than waiting for events, which get
// lost on some file systems and when a file is replaced through a symbolic link. What goes wrong is logged once.
func watchUsers(ctx context.Context, users reloader, log *slog.Logger) error {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		changed, err := users.Reload()
		switch {
		case err != nil:
			if err.Error() != last {
				last = err.Error()
				log.Warn("reading the users file failed; the users stay as they were", "err", err)
			}
		case changed || last != "":
			last = ""
			log.Info("users file read again")
		}
	}
}
