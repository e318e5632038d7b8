package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

// gatekeeper is the way of commands from one uplink, on a log of its own, to a local side that counts.
type gatekeeper struct {
	t         *testing.T
	c         *commands
	log       *buffer.Log
	results   *prometheus.CounterVec
	forgotten prometheus.Counter
	delivered []message.Message
	answer    error // of the local side
	ticket    message.Ticket
}

var guarded = config.Command{From: "cmd/#", To: "{rest}", ID: "tg-id", Time: "tg-time", ReplayWindow: config.Age(7 * 24 * time.Hour)}

func keepGate(t *testing.T, dir string, rule config.Command, o buffer.Options) *gatekeeper {
	t.Helper()
	log, err := buffer.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := compileCommands("gw", "cloud", "5", []config.Command{rule})
	if err != nil {
		t.Fatal(err)
	}
	k := &gatekeeper{
		t: t, log: log, results: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"uplink", "result"}),
		forgotten: prometheus.NewCounter(prometheus.CounterOpts{Name: "y"}),
	}
	g, err := openGuard(log, identitiesName("cloud"), k.forgotten)
	if err != nil {
		t.Fatal(err)
	}
	k.c = &commands{
		gateway: "gw", uplink: "cloud", rules: rules, results: k.results, log: slog.New(slog.DiscardHandler), guard: g,
		deliver: func(_ context.Context, m message.Message) (message.Ticket, error) {
			if k.answer == nil {
				k.delivered = append(k.delivered, m)
			}
			return k.ticket, k.answer
		},
	}
	return k
}

// command is one of the cloud with an identity; empty: none.
func command(topic, id string, more ...message.Property) message.Message {
	m := message.Message{Topic: "cmd/" + topic, Payload: []byte("p"), QoS: 1, Properties: more}
	if id != "" {
		m.Properties = append([]message.Property{{Key: "tg-id", Value: id}}, more...)
	}
	return m
}

// offer hands a command over and wants it to end as result.
func (k *gatekeeper) offer(m message.Message, result string) error {
	k.t.Helper()
	before := k.count(result)
	err := k.c.accept(k.t.Context(), m)
	if k.count(result) != before+1 {
		k.t.Errorf("%s %v is not %s: %v", m.Topic, m.Properties, result, err)
	}
	return err
}

// take wants a command to be acknowledged, as result.
func (k *gatekeeper) take(m message.Message, result string) {
	k.t.Helper()
	if err := k.offer(m, result); err != nil {
		k.t.Errorf("%s %v: %v", m.Topic, m.Properties, err)
	}
}

func (k *gatekeeper) count(result string) float64 {
	return testutil.ToFloat64(k.results.WithLabelValues("cloud", result))
}

func (k *gatekeeper) wantDelivered(n int) {
	k.t.Helper()
	if len(k.delivered) != n {
		k.t.Errorf("%d commands were delivered, want %d", len(k.delivered), n)
	}
}

func (k *gatekeeper) close() {
	k.t.Helper()
	if err := k.log.Close(); err != nil {
		k.t.Error(err)
	}
}

// TestReplayedCommand: an identity is delivered once for a topic, whoever repeats it, before and after an end of the process.
func TestReplayedCommand(t *testing.T) {
	dir, disk := t.TempDir(), &badDisk{}
	k := keepGate(t, dir, guarded, buffer.Options{FS: disk})
	again := command("a", "1")
	again.Dup = true
	k.take(again, commandDelivered) // the first one to arrive may well be a repetition
	k.take(again, commandRedelivered)
	k.take(command("a", "1"), commandReplayed)
	k.take(command("a", "2", message.Property{Key: "tg-src", Value: "forged"}), commandDelivered)
	if m := k.delivered[1]; len(m.Properties) != 1 || m.Dup || k.delivered[0].Dup {
		t.Errorf("delivered %+v", m)
	}
	for topic, want := range map[string]string{"reply/x": "reply/x", "reply/#": "", "+": ""} {
		m := command("a", topic)
		m.ResponseTopic = topic
		k.take(m, commandDelivered)
		if got := k.delivered[len(k.delivered)-1].ResponseTopic; got != want {
			t.Errorf("the response topic %q is handed over as %q", topic, got)
		}
	}
	k.take(command("b", "1"), commandDelivered)
	for range 3 {
		k.take(command("a", ""), commandDelivered)
	}
	k.wantDelivered(9)

	crashed := t.TempDir()
	disk.snapshot(t, dir, crashed)
	k.take(command("a", "3"), commandDelivered)
	k.close()
	for name, from := range map[string]string{"stop": dir, "crash": crashed} {
		k := keepGate(t, from, guarded, buffer.Options{})
		k.take(command("a", "1"), commandReplayed)
		k.take(again, commandRedelivered)
		k.take(command("a", "2"), commandReplayed)
		k.take(command("b", "1"), commandReplayed)
		k.take(command("b", "2"), commandDelivered)
		if want := map[string]int{"stop": 8, "crash": 7}[name]; k.c.guard.size() != want {
			t.Errorf("%s: %d identities are remembered, want %d", name, k.c.guard.size(), want)
		}
		k.wantDelivered(1)
		k.close()
	}
}

// TestOnlyDeliveredCommandsAreRemembered: one that had no effect may come again.
func TestOnlyDeliveredCommandsAreRemembered(t *testing.T) {
	k := keepGate(t, t.TempDir(), guarded, buffer.Options{})
	defer k.close()
	for answer, result := range map[error]string{
		message.ErrNoMatch: commandNobody, message.ErrBusy: commandBusy, message.ErrTooLarge: commandInvalid, errFakeGone: commandFailed,
	} {
		k.answer = answer
		_ = k.offer(command("a", "1"), result)
	}
	k.take(command("tidegate/x", "1"), commandInvalid)
	k.answer = nil
	k.take(command("a", "1"), commandDelivered)
	k.take(command("a", "1"), commandReplayed)
	if n := k.c.guard.size(); n != 1 {
		t.Errorf("%d identities are remembered, want 1", n)
	}
}

// TestCommandsWithoutIdentityCostNothing: they leave nothing on disk.
func TestCommandsWithoutIdentityCostNothing(t *testing.T) {
	off := guarded
	off.ReplayWindow = 0
	for _, rule := range []config.Command{guarded, off} {
		k := keepGate(t, t.TempDir(), rule, buffer.Options{})
		before := k.log.Queues()[0].Next
		for range 5 {
			id := "1"
			if rule.ReplayWindow > 0 {
				id = ""
			}
			k.take(command("a", id), commandDelivered)
		}
		k.wantDelivered(5)
		if n := k.log.Queues()[0].Next; n != before {
			t.Errorf("%d records were appended", n-before)
		}
		k.close()
	}
}

// TestIdentityThatDoesNotReachTheDisk: the command was delivered and is not acknowledged; when the cloud sends it again it is not delivered
// again, and acknowledged once its identity is on disk.
func TestIdentityThatDoesNotReachTheDisk(t *testing.T) {
	dir, disk := t.TempDir(), &badDisk{}
	k := keepGate(t, dir, guarded, buffer.Options{FS: disk})
	k.take(command("a", "0"), commandDelivered)
	disk.failing.Store(true)
	for range 5 {
		if err := k.offer(command("a", "1"), commandFailed); err == nil {
			t.Error("acknowledged while the disk fails")
		}
	}
	k.take(command("a", "0"), commandReplayed)
	k.take(command("a", ""), commandDelivered)
	k.wantDelivered(3)
	if n := len(k.c.guard.order); n > 3 {
		t.Errorf("order has grown to %d", n)
	}
	disk.failing.Store(false)
	eventually(t, "it is acknowledged", func() bool { return k.c.accept(t.Context(), command("a", "1")) == nil })
	k.take(command("a", "1"), commandReplayed)
	k.wantDelivered(3)
	k.close()
	k = keepGate(t, dir, guarded, buffer.Options{})
	defer k.close()
	k.take(command("a", "1"), commandReplayed)
}

// lateDisk is the disk of a local side, which says how it went when it is asked.
type lateDisk struct{ err error }

func (d *lateDisk) Durable(uint64) bool                { return d.err == nil }
func (d *lateDisk) Notify(_ uint64, f func(error))     { f(d.err) }
func (d *lateDisk) Wait(context.Context, uint64) error { return d.err }

// TestLocalSideDoesNotReachTheDisk: the command is neither acknowledged nor remembered, and delivered when it comes again.
func TestLocalSideDoesNotReachTheDisk(t *testing.T) {
	dir := t.TempDir()
	k := keepGate(t, dir, guarded, buffer.Options{})
	disk := &lateDisk{err: errDisk}
	k.ticket = message.NewTicket(disk, 1)
	for _, m := range []message.Message{command("a", "1"), command("a", "")} {
		for range 2 {
			if err := k.offer(m, commandFailed); !errors.Is(err, errDisk) {
				t.Errorf("%v: %v", m.Properties, err)
			}
		}
	}
	if n := k.c.guard.size(); n != 0 {
		t.Errorf("%d identities are remembered", n)
	}
	disk.err = nil
	k.take(command("a", "1"), commandDelivered)
	k.take(command("a", "1"), commandReplayed)
	k.take(command("a", ""), commandDelivered)
	k.wantDelivered(6)
	k.close()
	k = keepGate(t, dir, guarded, buffer.Options{})
	defer k.close()
	k.take(command("a", "1"), commandReplayed)
}

// TestConnectionEndsWhileAnIdentityIsWritten: what the cloud then sends again is not delivered again.
func TestConnectionEndsWhileAnIdentityIsWritten(t *testing.T) {
	disk := &badDisk{}
	k := keepGate(t, t.TempDir(), guarded, buffer.Options{FS: disk})
	defer k.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	disk.slow.Store(int64(20 * time.Millisecond))
	if err := k.c.accept(ctx, command("a", "1")); !errors.Is(err, context.Canceled) {
		t.Errorf("without a connection: %v", err)
	}
	disk.slow.Store(0)
	again := command("a", "1")
	again.Dup = true
	if err := k.c.accept(t.Context(), again); err != nil {
		t.Error(err)
	}
	k.take(again, commandRedelivered)
	k.wantDelivered(1)
}

// TestReplayWindow: an identity is forgotten when its time is over, restarts included, and not before. A command that says when it was
// made cannot be repeated after that either.
func TestReplayWindow(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		o := buffer.Options{Clock: func() (uint64, time.Duration) { return 1, time.Since(start) }}
		rule := guarded
		rule.ReplayWindow = config.Age(time.Hour)
		made := func(at time.Time) message.Property {
			return message.Property{Key: "tg-time", Value: at.Format(time.RFC3339)}
		}
		dated, ahead := command("a", "dated", made(start)), command("a", "ahead", made(start.Add(time.Hour)))
		plain := command("a", "plain")
		k := keepGate(t, dir, rule, o)
		for _, m := range []message.Message{dated, ahead, plain} {
			k.take(m, commandDelivered)
		}
		for _, wait := range []time.Duration{20 * time.Minute, 39 * time.Minute} {
			time.Sleep(wait)
			for _, m := range []message.Message{dated, ahead, plain} {
				k.take(m, commandReplayed)
			}
			k.close()
			k = keepGate(t, dir, rule, o)
		}
		time.Sleep(2 * time.Minute)
		k.take(dated, commandStale)
		k.take(ahead, commandReplayed) // it is not too old yet, so it is still known
		k.take(plain, commandDelivered)
		k.take(plain, commandReplayed)
		time.Sleep(time.Hour)
		k.take(ahead, commandStale)
		time.Sleep(time.Hour)
		if n := k.c.guard.size(); n != 0 {
			t.Errorf("%d identities are remembered for ever", n)
		}
		time.Sleep(10 * time.Minute)
		if n := k.c.guard.queue.Stats().Records; n != 0 {
			t.Errorf("%d identities are on disk for ever", n)
		}
		if n := testutil.ToFloat64(k.forgotten); n != 0 {
			t.Errorf("%v were forgotten before their time", n)
		}
		k.close()
		synctest.Wait()
	})
}

// TestIdentitiesAreBounded: the oldest goes, in memory and on disk, and is counted.
func TestIdentitiesAreBounded(t *testing.T) {
	dir := t.TempDir()
	k := keepGate(t, dir, guarded, buffer.Options{})
	k.c.guard.limit = 10
	const n = 2500
	for i := range n {
		k.take(command("a", fmt.Sprint(i)), commandDelivered)
	}
	if n := k.c.guard.size(); n != 10 {
		t.Errorf("%d identities are remembered, want 10", n)
	}
	if got := testutil.ToFloat64(k.forgotten); got != n-10 {
		t.Errorf("%v counted as forgotten, want %d", got, n-10)
	}
	if got := len(k.c.guard.order); got > 1500 {
		t.Errorf("order has grown to %d", got)
	}
	k.close()
	k = keepGate(t, dir, guarded, buffer.Options{})
	defer k.close()
	if n := k.c.guard.queue.Stats().Records; n != 10 {
		t.Errorf("%d identities are on disk, want 10", n)
	}
	for i := n - 10; i < n; i++ {
		k.take(command("a", fmt.Sprint(i)), commandReplayed)
	}
	k.take(command("a", fmt.Sprint(n-11)), commandDelivered)
}

// TestStrangeIdentityRecords: what is no identity of this version is let go of.
func TestStrangeIdentityRecords(t *testing.T) {
	dir := t.TempDir()
	k := keepGate(t, dir, guarded, buffer.Options{})
	good := keyOf("cmd/a", "1")
	for _, r := range []buffer.Record{
		{Data: nil, Lifetime: time.Hour},
		{Data: []byte{identityVersion}, Lifetime: time.Hour},
		{Data: append([]byte{identityVersion + 1}, good[:]...), Lifetime: time.Hour},
		{Data: append([]byte{identityVersion}, good[:]...)}, // without end
		{Data: append([]byte{identityVersion}, good[:]...), Lifetime: time.Hour},
	} {
		r.Queue = k.c.guard.queue
		pos, err := k.log.Append(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.log.Wait(t.Context(), pos); err != nil {
			t.Fatal(err)
		}
	}
	k.close()
	k = keepGate(t, dir, guarded, buffer.Options{})
	defer k.close()
	if n := k.c.guard.queue.Stats().Records; n != 1 || k.c.guard.size() != 1 {
		t.Errorf("%d of 1 good identities on disk, %d known", n, k.c.guard.size())
	}
	k.take(command("a", "1"), commandReplayed)
}

// TestSameIdentityOverTwoUplinks: each uplink has its own, so that one party can neither see nor use up another's.
func TestSameIdentityOverTwoUplinks(t *testing.T) {
	cfg := testConfig(nil, "east", "west", "old")
	for name, protocol := range map[string]string{"east": "5", "west": "5", "old": "3.1.1"} {
		u := cfg.Uplinks[name]
		u.Protocol, u.Commands = protocol, []config.Command{guarded}
		cfg.Uplinks[name] = u
	}
	clouds := map[string]*fakeCloud{"east": newFakeCloud(takeAll), "west": newFakeCloud(takeAll), "old": newFakeCloud(takeAll)}
	r := open(t, t.TempDir(), cfg, clouds)
	defer r.close()
	n := 0
	for _, o := range r.f.outs {
		if (o.guard == nil) != (o.name == "old") {
			t.Errorf("%s: guard %v", o.name, o.guard)
		}
		c := &commands{
			uplink: o.name, rules: o.rules, guard: o.guard, results: r.f.metrics.commands, log: slog.New(slog.DiscardHandler),
			deliver: Kept(func(context.Context, message.Message) error { n++; return nil }),
		}
		for range 2 {
			if err := c.accept(t.Context(), command("a", "1")); err != nil {
				t.Error(err)
			}
		}
	}
	if n != 4 { // once each over MQTT 5; over 3.1.1 there are no properties
		t.Errorf("delivered %d times", n)
	}
	if s := testutil.CollectAndCount(r.reg, "tidegate_command_identities"); s != 2 {
		t.Errorf("%d gauges", s)
	}
}
