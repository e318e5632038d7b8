package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// events notes what happens in which order.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, s)
}

func (e *events) want(t *testing.T, list ...string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Equal(e.list, list) {
		t.Errorf("got %v, want %v", e.list, list)
	}
}

// stopping is a part that takes a while to stop.
func (e *events) stopping(name string, takes time.Duration) part {
	return part{name, func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(takes)
		e.add(name + " stopped")
		return nil
	}, time.Second}
}

func TestSuperviseStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e events
		ctx, cancel := context.WithCancel(t.Context())
		parts := []part{e.stopping("admin", 0), e.stopping("forwarder", 300*time.Millisecond), e.stopping("edge", 300*time.Millisecond)}
		err := supervise(ctx, parts, func() { e.add("up"); cancel() }, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Error(err)
		}
		e.want(t, "up", "edge stopped", "forwarder stopped", "admin stopped")
	})
}

func TestSuperviseLeavesTheStuckBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e events
		var log syncBuffer
		ctx, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		parts := []part{e.stopping("forwarder", 0), e.stopping("edge", time.Minute)}
		err := supervise(ctx, parts, cancel, nil, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || time.Since(begun) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		e.want(t, "forwarder stopped")
		time.Sleep(time.Minute) // the test waits for every goroutine
		if !strings.Contains(log.String(), "did not stop in time") || !strings.Contains(log.String(), "part=edge") {
			t.Errorf("log: %s", log.String())
		}
	})
}

func TestSuperviseHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e events
		ctx, cancel := context.WithCancel(t.Context())
		hurry := make(chan struct{})
		begun := time.Now()
		parts := []part{e.stopping("forwarder", 0), e.stopping("edge", time.Minute)}
		err := supervise(ctx, parts, func() { cancel(); close(hurry) }, hurry, slog.New(slog.DiscardHandler))
		if err != nil || time.Since(begun) != hurried {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		e.want(t, "forwarder stopped")
		time.Sleep(time.Minute)
	})
}

func TestSuperviseEndsWhenAPartFails(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"error":   {errors.New("accept: broken"), "edge: accept: broken"},
		"nothing": {nil, "edge: ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var e events
				parts := []part{e.stopping("forwarder", 0), {"edge", func(context.Context) error { return c.err }, time.Second}}
				err := supervise(t.Context(), parts, func() {}, nil, slog.New(slog.DiscardHandler))
				if err == nil || err.Error() != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				e.want(t, "forwarder stopped")
			})
		})
	}
}
