package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeUsers is a users file that goes through a list of outcomes, the last of them for good.
type fakeUsers struct {
	changed []bool
	errs    []error
	n       int
}

func (f *fakeUsers) Reload() (bool, error) {
	i := min(f.n, len(f.changed)-1)
	f.n++
	return f.changed[i], f.errs[i]
}

// A broken users file is reported once, and again when it is read.
func TestWatchUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("line 1: no user")
		f := &fakeUsers{
			changed: []bool{false, true, false, false, true, false},
			errs:    []error{nil, nil, broken, broken, nil, nil},
		}
		var log syncBuffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- watchUsers(ctx, f, slog.New(slog.NewTextHandler(&log, nil))) }()
		time.Sleep(7 * watchEvery)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Count(log.String(), "failed") != 1 || strings.Count(log.String(), "read again") != 2 {
			t.Errorf("log: %s", log.String())
		}
	})
}
