package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
)

// What is taken is tried again until it is free or patience ends, and that is logged once; any other error ends it at once.
func TestHandOver(t *testing.T) {
	other := errors.New("no space left on device")
	locked := fmt.Errorf("open the log: %w", buffer.ErrLocked)
	inUse := fmt.Errorf("listen: %w", syscall.EADDRINUSE)
	for _, c := range []struct {
		name   string
		answer []error // of one try after the other; the last one for ever
		want   error
		took   time.Duration
		logged int
	}{
		{"free", []error{nil}, nil, 0, 0},
		{"locked for a moment", []error{locked, locked, nil}, nil, 2 * handoverEvery, 1},
		{"port in use for a moment", []error{inUse, nil}, nil, handoverEvery, 1},
		{"locked for good", []error{locked}, locked, handoverPatience, 1},
		{"another error", []error{other}, other, 0, 0},
		{"another error later", []error{inUse, other}, other, handoverEvery, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out syncBuffer
				begun, tries := time.Now(), 0
				err := handOver(t.Context(), handoverPatience, slog.New(slog.NewTextHandler(&out, nil)), "the data folder", func() error {
					tries++
					return c.answer[min(tries, len(c.answer))-1]
				})
				if err != c.want || time.Since(begun) != c.took || strings.Count(out.String(), "waiting for what another process holds") != c.logged {
					t.Errorf("%v after %v, log %q", err, time.Since(begun), out.String())
				}
			})
		})
	}
}

// A signal ends the waiting.
func TestHandOverEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := handOver(ctx, time.Hour, slog.New(slog.DiscardHandler), "the lock", func() error {
		cancel()
		return buffer.ErrLocked
	})
	if !errors.Is(err, buffer.ErrLocked) {
		t.Error(err)
	}
}

// A gateway that is started while its killed predecessor still holds lock and ports gets them.
func TestRunWaitsForItsPredecessor(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	adminBusy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file := writeConfig(t, fmt.Sprintf("[listener.a]\nlisten = \"mqtt://%s\"\n[admin]\nlisten = \"http://%s\"\n", busy.Addr(), adminBusy.Addr()))
	held, err := buffer.Open(filepath.Join(filepath.Dir(file), "data", "log"), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &testGateway{file: file, background: start(t, nil, "run", "--config", file)}
	for _, next := range []struct {
		what string
		free func() error
	}{
		{"data folder", held.Close}, {"addresses of the listeners", busy.Close}, {"address of the admin surface", adminBusy.Close},
	} {
		eventually(t, "it waits for the "+next.what, func() bool { return strings.Contains(g.err.String(), `what="the `+next.what+`"`) })
		if err := next.free(); err != nil {
			t.Fatal(err)
		}
	}
	awaitReady(t, g)
	if code, text := g.get(t, "/metrics"); code != 200 || !strings.Contains(text, "\ntidegate_sessions 0\n") {
		t.Errorf("metrics: %d %s", code, text)
	}
}
