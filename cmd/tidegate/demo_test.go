package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/internal/demo"
)

// TestDemo: three kinds of devices, an outage, nothing lost, in time.
func TestDemo(t *testing.T) {
	begin := time.Now()
	var out, errs syncBuffer
	if code := runDemo(context.Background(), stdio{out: &out, err: &errs}, false, true, nil); code != exitOK {
		t.Fatalf("code %d, out %s, errors %s", code, out.String(), errs.String())
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("the demo took %v", d)
	}
	var r demo.Report
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatal(err)
	}
	for name, c := range r.Protocols {
		if c.Acked < 20 || c.Delivered < c.Acked || c.Sent < c.Acked || c.Lost != 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if len(r.Protocols) != 3 || r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}

// TestDemoSeesLosses: a cloud that throws messages away makes the demo fail, and it says how many are missing.
func TestDemoSeesLosses(t *testing.T) {
	var thrown atomic.Int64
	var out, errs syncBuffer
	code := runDemo(context.Background(), stdio{out: &out, err: &errs}, false, false, func(topic string, payload []byte) bool {
		if strings.HasPrefix(topic, "demo/mqtt/") && string(payload) == "7" {
			thrown.Add(1)
			return false
		}
		return true
	})
	if code != exitFailed || thrown.Load() == 0 || !strings.Contains(errs.String(), "were acknowledged and did not arrive") {
		t.Errorf("code %d with %d messages thrown away\n%s%s", code, thrown.Load(), out.String(), errs.String())
	}
	if strings.Contains(out.String(), "Nothing that was acknowledged was lost") {
		t.Error("it says that nothing was lost")
	}
}

// TestDemoInterrupted: who stops it in the middle is told nothing of losses; what had not arrived was on disk.
func TestDemoInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var arrived atomic.Int64
	var out, errs syncBuffer
	code := runDemo(ctx, stdio{out: &out, err: &errs}, false, true, func(string, []byte) bool {
		if arrived.Add(1) == 300 {
			cancel()
		}
		return true
	})
	var r demo.Report
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatal(err)
	}
	if code != exitFailed || r.Lost != 0 || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("code %d, %+v, errors %s", code, r, errs.String())
	}
}

// TestDemoUsage: wrong words on the command line.
func TestDemoUsage(t *testing.T) {
	tidegate(t, "", "demo", "now").want(t, exitUsage, "", `unexpected argument "now"`)
}
