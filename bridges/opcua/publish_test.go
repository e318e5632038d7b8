package opcua

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges/opcua/link"
	"tidegate/config"
	"tidegate/message"
)

// taking is a bridge without a server, and values for it.
func taking(t *testing.T, bus *fakeBus, n int) (*Bridge, []link.Value) {
	t.Helper()
	b, err := New("press1", counterConfig("opc.tcp://127.0.0.1:1", n), Options{Bus: bus, GatewayID: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	var values []link.Value
	for i := range n {
		if err := b.Resolve(i, link.Description{}); err != nil {
			t.Fatal(err)
		}
		values = append(values, link.Value{Item: i, DataValue: link.DataValue{Value: link.Variant{Type: 6, Value: int32(i)}}})
	}
	return b, values
}

// outcomes collects what done is told.
type outcomes struct{ of chan error }

func (o outcomes) done(err error) { o.of <- err }

func (o outcomes) none(t *testing.T, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-o.of:
		t.Errorf("done was told %v: %s", err, why)
	default:
	}
}

func TestDoneWhenTheLastValueIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		bus.commit = -1 // by hand
		b, values := taking(t, bus, 3)
		o := outcomes{make(chan error, 10)}
		b.Take(t.Context(), values, o.done)
		o.none(t, "nothing is on disk")
		bus.flush(nil)
		if err := <-o.of; err != nil || bus.count() != 3 {
			t.Errorf("%v, %d messages", err, bus.count())
		}
		b.Take(t.Context(), nil, o.done)
		if err := <-o.of; err != nil {
			t.Errorf("an empty notification: %v", err)
		}
		b.Take(t.Context(), values, o.done)
		bus.flush(errors.New("the disk failed"))
		if err := <-o.of; err == nil {
			t.Error("the disk failed, and done was told nothing")
		}
		o.none(t, "it was told already")
	})
}

func TestABusyGatewayIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		b, values := taking(t, bus, 2)
		bus.setBusy(true)
		o := outcomes{make(chan error, 10)}
		go b.Take(t.Context(), values, o.done)
		time.Sleep(time.Hour)
		o.none(t, "the gateway takes nothing")
		if n, most := bus.refusals(), int(time.Hour/busyLimit)+5; n > most {
			t.Errorf("%d offers in an hour, want at most %d", n, most)
		}
		bus.setBusy(false)
		started := time.Now()
		if err := <-o.of; err != nil || time.Since(started) > busyLimit+time.Second {
			t.Errorf("%v after %s", err, time.Since(started))
		}
		bus.setBusy(true)
		ctx, cancel := context.WithCancel(t.Context())
		go b.Take(ctx, values, o.done)
		time.Sleep(time.Minute)
		cancel()
		o.none(t, "the values were not taken over")
		if bus.count() != 2 {
			t.Errorf("%d messages", bus.count())
		}
	})
}

// TestAShortBusySpellCostsFewOffers: the gateway counts each one that it refuses.
func TestAShortBusySpellCostsFewOffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		b, values := taking(t, bus, 1)
		bus.setBusy(true)
		o := outcomes{make(chan error, 10)}
		go b.Take(t.Context(), values, o.done)
		time.Sleep(5 * time.Second)
		bus.setBusy(false)
		if err := <-o.of; err != nil {
			t.Error(err)
		}
		if n := bus.refusals(); n > 5 {
			t.Errorf("%d offers in 5 s, want at most 5", n)
		}
	})
}

// TestARefusedValueHoldsNothingUp: what the gateway will never take is counted, the others flow.
func TestARefusedValueHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		bus.refuse["count/1"] = fmt.Errorf("too long: %w", message.ErrTooLarge)
		b, values := taking(t, bus, 3)
		o := outcomes{make(chan error, 10)}
		b.Take(t.Context(), values, o.done)
		if err := <-o.of; err != nil || bus.count() != 2 || b.figures.refused.Load() != 1 {
			t.Errorf("%v, %d messages, %d refused", err, bus.count(), b.figures.refused.Load())
		}
	})
}

// TestBridgesShareARegistry: two bridges, one registry, every figure.
func TestBridgesShareARegistry(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	var ends []func()
	for _, name := range []string{"press1", "press2"} {
		b, err := New(name, config.OPCUA{Endpoint: "opc.tcp://127.0.0.1:1", Security: "Basic256Sha256/Sign", Format: "json"}, Options{
			Bus: newBus(), Dir: t.TempDir(), GatewayID: "gw", Metrics: reg,
		})
		if err != nil {
			t.Fatal(err)
		}
		end, err := b.register()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != 9 { // the age of the last value is there when there is one
		t.Errorf("%d metrics", len(families))
	}
	for _, f := range families {
		if n := len(f.GetMetric()); n%2 != 0 {
			t.Errorf("%s: %d figures of two bridges", f.GetName(), n)
		}
	}
	for _, end := range ends {
		end()
	}
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("%d metrics are left, %v", len(families), err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := config.OPCUA{Endpoint: "opc.tcp://127.0.0.1:1", Security: "None", Format: "json"}
	for name, change := range map[string]func(*config.OPCUA){
		"a broken policy": func(c *config.OPCUA) { c.Security = "Basic128Rsa15/Sign" },
		"no node ID":      func(c *config.OPCUA) { c.Nodes = []config.OPCUANode{{ID: "x"}} },
		"no node to write": func(c *config.OPCUA) {
			c.Writes = []config.OPCUAWrite{{ID: "x", Topic: "t"}}
		},
	} {
		c := good
		change(&c)
		if _, err := New("x", c, Options{Bus: newBus()}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
