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
		go func() { done <- watched{users: f}.watch(ctx, slog.New(slog.NewTextHandler(&log, nil))) }()
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

// fakeCertificates go through a list of outcomes.
type fakeCertificates struct {
	problems [][]error
	warnings [][]string
	n        int
}

func (f *fakeCertificates) ReloadCertificates() ([]string, []error) {
	f.n = min(f.n+1, len(f.problems)-1)
	if f.n == 1 {
		return []string{"devices.cert"}, f.problems[f.n]
	}
	return nil, f.problems[f.n]
}

func (f *fakeCertificates) CertificateWarnings(time.Time) []string { return f.warnings[f.n] }

// What is wrong with certificates is said when it begins, and not twice.
func TestWatchCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := []error{errors.New("no pair")}
		f := &fakeCertificates{
			problems: [][]error{nil, nil, broken, broken, nil, broken},
			warnings: [][]string{{"it expires"}, {"it expires"}, {"it expires", "no pair; the earlier one is in use"}, nil, nil, nil},
		}
		var log syncBuffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- watched{users: &fakeUsers{changed: []bool{false}, errs: []error{nil}}, certs: []certificates{f}}.watch(ctx, slog.New(slog.NewTextHandler(&log, nil)))
		}()
		time.Sleep(8 * watchEvery)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		text := log.String()
		if strings.Count(text, "no pair") != 2 || strings.Count(text, "it expires") != 1 || strings.Count(text, "audit=true files=devices.cert") != 1 {
			t.Errorf("log: %s", text)
		}
	})
}
