package forwarder

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/config"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

func TestCommands(t *testing.T) {
	rules, err := compileCommands("gw", "cloud", "5", []config.Command{
		{From: "cmd/{gateway}/#", To: "cmd/{rest}"},
		{From: "move/+/now", To: "{2}/{gateway}/{uplink}"},
		{From: "raw/#"},
		{From: "evil/#", To: "{rest}"},
	})
	if err != nil {
		t.Fatal(err)
	}
	past, future := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	for _, k := range []struct {
		in      message.Message
		answer  error
		local   string
		result  string
		refused bool
	}{
		{message.Message{Topic: "cmd/gw/press1/set"}, nil, "cmd/press1/set", commandDelivered, false},
		{message.Message{Topic: "cmd/gw/x", Expires: future}, nil, "cmd/x", commandDelivered, false},
		{message.Message{Topic: "move/arm/now"}, nil, "arm/gw/cloud", commandDelivered, false},
		{message.Message{Topic: "raw/a"}, nil, "raw/a", commandDelivered, false},
		{message.Message{Topic: "cmd/gw/x"}, message.ErrNoMatch, "cmd/x", commandNobody, false},
		{message.Message{Topic: "cmd/gw/x"}, message.ErrBusy, "cmd/x", commandBusy, true},
		{message.Message{Topic: "cmd/gw/x"}, errFakeGone, "cmd/x", commandFailed, true},
		{message.Message{Topic: "cmd/gw/x"}, message.ErrTooLarge, "cmd/x", commandInvalid, false},
		{message.Message{Topic: "cmd/gw/x", Expires: past}, nil, "", commandExpired, false},
		{message.Message{Topic: "cmd/other/x"}, nil, "", commandUnmapped, false},
		{message.Message{Topic: "evil/tidegate/gw/status"}, nil, "", commandInvalid, false},
		{message.Message{Topic: "evil/$SYS/x"}, nil, "", commandInvalid, false},
		{message.Message{Topic: "evil"}, nil, "", commandInvalid, false},
	} {
		var got *message.Message
		results := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"uplink", "result"})
		c := &commands{
			gateway: "gw", uplink: "cloud", rules: rules, results: results, log: slog.New(slog.DiscardHandler),
			deliver: Kept(func(_ context.Context, m message.Message) error { got = &m; return k.answer }),
		}
		k.in.Payload = []byte("p")
		err := c.accept(context.Background(), k.in)
		if (err != nil) != k.refused || k.refused && !errors.Is(err, k.answer) {
			t.Errorf("%s: error %v", k.in.Topic, err)
		}
		if n := testutil.ToFloat64(results.WithLabelValues("cloud", k.result)); n != 1 {
			t.Errorf("%s: not counted as %s", k.in.Topic, k.result)
		}
		switch {
		case k.local == "":
			if got != nil {
				t.Errorf("%s was delivered to %s", k.in.Topic, got.Topic)
			}
		case got == nil:
			t.Errorf("%s was not delivered", k.in.Topic)
		case got.Topic != k.local || got.Source.Protocol != message.Uplink || got.Source.Client != "cloud" || got.ID.IsZero() ||
			got.Received.IsZero() || string(got.Payload) != "p":
			t.Errorf("%s: delivered %+v", k.in.Topic, got)
		}
	}
}

// TestCommandsWaitForDevicesAfterTheStart: the cloud hands over what it kept before the devices are back. Such a command is
// offered again for a while, and then given up.
func TestCommandsWaitForDevicesAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := false
		results := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"uplink", "result"})
		c := &commands{
			gateway: "gw", uplink: "cloud", rules: []commandRule{{from: "#", to: mustTemplate(t, "{topic}")}}, results: results,
			log: slog.New(slog.DiscardHandler), settled: time.Now().Add(commandGrace),
			deliver: Kept(func(context.Context, message.Message) error {
				if there {
					return nil
				}
				return message.ErrNoMatch
			}),
		}
		offer := func() error { return c.accept(context.Background(), message.Message{Topic: "a"}) }
		for range 3 {
			if err := offer(); !errors.Is(err, message.ErrBusy) || errors.Is(err, message.ErrNoMatch) {
				t.Errorf("nobody yet: %v", err)
			}
			time.Sleep(commandGrace / 4)
		}
		there = true
		if err := offer(); err != nil {
			t.Errorf("somebody subscribed: %v", err)
		}
		there = false
		time.Sleep(commandGrace / 4)
		if err := offer(); err != nil {
			t.Errorf("still nobody: %v", err)
		}
		for result, want := range map[string]float64{commandBusy: 3, commandDelivered: 1, commandNobody: 1} {
			if n := testutil.ToFloat64(results.WithLabelValues("cloud", result)); n != want {
				t.Errorf("%g counted as %s, want %g", n, result, want)
			}
		}
	})
}

func mustTemplate(t *testing.T, text string) pipeline.Template {
	t.Helper()
	tpl, err := pipeline.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func TestCommandErrors(t *testing.T) {
	for _, c := range []config.Command{{From: "a/#/b", To: "x"}, {From: "a", To: "{what}"}, {From: ""}} {
		if _, err := compileCommands("gw", "cloud", "5", []config.Command{c}); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// TestCommandsThroughRun: the uplink's handler reaches the local side, and what it delivers is not ingested.
func TestCommandsThroughRun(t *testing.T) {
	cfg := testConfig(nil, "cloud")
	up := cfg.Uplinks["cloud"]
	up.Commands = []config.Command{{From: "cmd/#", To: "{topic}"}}
	cfg.Uplinks["cloud"] = up
	cloud := newFakeCloud(takeAll)
	r := open(t, t.TempDir(), cfg, map[string]*fakeCloud{"cloud": cloud}).start()
	defer r.close()
	handler := func() message.Handler {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		return cloud.handler
	}
	eventually(t, "the uplink runs", func() bool { return handler() != nil })
	if err := handler()(context.Background(), message.Message{Topic: "cmd/x"}); !errors.Is(err, message.ErrBusy) {
		t.Errorf("right after the start: %v", err)
	}
	if e := r.entry("all", "cloud"); e.Taken != 0 {
		t.Errorf("a command went up again: %+v", e)
	}
}
