package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

func withCommands(c *config.Uplink) {
	c.Commands = []config.Command{{From: "cmd/{gateway}/#", To: "cmd/{rest}"}}
}

// taker is a handler that keeps what it was handed and answers as told.
type taker struct {
	mu     sync.Mutex
	got    []message.Message
	answer func(n int, m message.Message) error // n counts the calls, from 0
}

func (k *taker) handle(_ context.Context, m message.Message) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.got = append(k.got, m)
	if k.answer == nil {
		return nil
	}
	return k.answer(len(k.got)-1, m)
}

func (k *taker) payloads() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, m := range k.got {
		out = append(out, string(m.Payload))
	}
	return strings.Join(out, " ")
}

// eachCommands runs f against the drivers that take commands.
func eachCommands(t *testing.T, f func(t *testing.T, v variant)) {
	t.Helper()
	each(t, func(t *testing.T, v variant) {
		if v.commands {
			f(t, v)
		}
	})
}

func TestCommandIsAcknowledgedAfterItWasTaken(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		entered, release := make(chan struct{}), make(chan struct{})
		var got message.Message
		h := run(t, v, withCommands, func(_ context.Context, m message.Message) error {
			got = m
			close(entered)
			<-release
			return nil
		}, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		peer.Send(testpeer.Command{
			Topic: "cmd/gw/press1/setpoint", Payload: []byte("21"), QoS: 1, ContentType: "text/plain", ResponseTopic: "answers",
			CorrelationData: []byte{9}, Expiry: 60, Properties: []message.Property{{Key: "k", Value: "v"}},
		})
		<-entered
		// While the handler works, messages still go up and nothing is acknowledged down.
		l := newLedger(100)
		err := l.drain(within(t, 5*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
		if err != nil {
			t.Fatal(err)
		}
		if n := len(peer.CommandAcks()); n != 0 {
			t.Fatalf("%d commands were acknowledged before the handler returned", n)
		}
		close(release)
		eventually(t, "acknowledged", func() bool { return len(peer.CommandAcks()) == 1 })
		if got.Topic != "cmd/gw/press1/setpoint" || string(got.Payload) != "21" || got.QoS != 1 || got.ID.IsZero() ||
			got.Source.Protocol != message.Uplink || got.Source.Client != "cloud" || got.Received.IsZero() {
			t.Errorf("handed over as %+v", got)
		}
		if v.is5() && (got.ContentType != "text/plain" || got.ResponseTopic != "answers" || !bytes.Equal(got.CorrelationData, []byte{9}) ||
			len(got.Properties) != 1 || time.Until(got.Expires) < 50*time.Second) {
			t.Errorf("handed over as %+v", got)
		}
		c := peer.Connects()[0]
		if c.Clean || v.is5() && c.SessionExpiry != 7*24*3600 {
			t.Errorf("connect with clean start %v and session expiry %d s, want the session kept for 7 days", c.Clean, c.SessionExpiry)
		}
	})
}

func TestCommandsAreKeptWhileTheGatewayIsAway(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		first := run(t, v, withCommands, nil, peer.URL())
		connected(t, first)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		first.stop()
		eventually(t, "gone", func() bool { return peer.Open() == 0 })
		var want []string
		for i := range 30 {
			want = append(want, fmt.Sprint(i))
			if n := peer.Send(testpeer.Command{Topic: "cmd/gw/x", Payload: []byte(fmt.Sprint(i)), QoS: 1}); n != 1 {
				t.Fatalf("%d sessions wait for the command, want 1", n)
			}
		}
		k := &taker{}
		second := run(t, v, withCommands, k.handle, peer.URL())
		connected(t, second)
		eventually(t, "all are acknowledged", func() bool { return len(peer.CommandAcks()) == 30 })
		if got := k.payloads(); got != strings.Join(want, " ") {
			t.Errorf("taken %s", got)
		}
	})
}

func TestCommandThatCannotBeTakenNowIsTriedAgainInOrder(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		k := &taker{answer: func(n int, _ message.Message) error {
			switch n {
			case 0:
				return fmt.Errorf("queue: %w", message.ErrBusy)
			case 1:
				return errors.New("something unknown")
			}
			return nil
		}}
		h := run(t, v, withCommands, k.handle, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		for _, p := range []string{"a", "b", "c"} {
			peer.Send(testpeer.Command{Topic: "cmd/gw/x", Payload: []byte(p), QoS: 1})
		}
		eventually(t, "all are acknowledged", func() bool { return len(peer.CommandAcks()) == 3 })
		if got := k.payloads(); got != "a a a b c" {
			t.Errorf("offered %q, want the first three times, then the others", got)
		}
		for i, a := range peer.CommandAcks() {
			if want := string("abc"[i]); string(a.Command.Payload) != want {
				t.Errorf("acknowledgement %d is for %s, want %s [MQTT-4.6.0-2]", i, a.Command.Payload, want)
			}
		}
		if n := len(peer.Connects()); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// TestWaitingCommandHoldsUpOnlyItsTopic: a command that cannot be taken now, and those of its topic behind it, wait; others are
// handed over at once. The cloud gets its acknowledgements in the order in which the commands came.
func TestWaitingCommandHoldsUpOnlyItsTopic(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		var ready atomic.Bool
		k := &taker{}
		h := run(t, v, withCommands, func(ctx context.Context, m message.Message) error {
			if m.Topic == "cmd/gw/away" && !ready.Load() {
				return message.ErrBusy
			}
			return k.handle(ctx, m)
		}, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		for i, topic := range []string{"away", "here", "away", "here"} {
			peer.Send(testpeer.Command{Topic: "cmd/gw/" + topic, Payload: fmt.Append(nil, i), QoS: 1})
		}
		eventually(t, "the others are taken", func() bool { return k.payloads() == "1 3" })
		if n := len(peer.CommandAcks()); n != 0 {
			t.Errorf("%d commands were acknowledged before the first one", n)
		}
		ready.Store(true)
		eventually(t, "all are taken, in order of their topic", func() bool { return k.payloads() == "1 3 0 2" })
		eventually(t, "all are acknowledged", func() bool { return len(peer.CommandAcks()) == 4 })
		for i, a := range peer.CommandAcks() {
			if want := fmt.Sprint(i); string(a.Command.Payload) != want {
				t.Errorf("acknowledgement %d is for %s [MQTT-4.6.0-2]", i, a.Command.Payload)
			}
		}
	})
}

func TestCommandsRefusedForGoodAreAcknowledged(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		errs := []error{message.ErrNoMatch, message.ErrNotAllowed, message.ErrInvalid, message.ErrTooLarge, nil}
		codes := []byte{0, 0x87, 0x90, 0x83, 0}
		peer := cloud(t, testpeer.Options{})
		k := &taker{answer: func(n int, _ message.Message) error { return errs[n] }}
		h := run(t, v, withCommands, k.handle, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		for range errs {
			peer.Send(testpeer.Command{Topic: "cmd/gw/x", QoS: 1})
		}
		eventually(t, "all are acknowledged", func() bool { return len(peer.CommandAcks()) == len(errs) })
		for i, a := range peer.CommandAcks() {
			if want := codes[i]; v.is5() && a.Code != want || !v.is5() && a.Code != 0 {
				t.Errorf("%v is answered with %#x, want %#x", errs[i], a.Code, want)
			}
		}
		if n := testutil.ToFloat64(h.metrics.commands.WithLabelValues("refused")); n != 4 {
			t.Errorf("%v counted as refused, want 4", n)
		}
	})
}

func TestUnacknowledgedCommandComesAgain(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		entered := make(chan struct{}, 1)
		k := &taker{}
		h := run(t, v, withCommands, func(ctx context.Context, m message.Message) error {
			_ = k.handle(ctx, m)
			if len(peer.Connects()) == 1 {
				signal(entered)
				<-ctx.Done() // the connection goes while the command is in hand
				return ctx.Err()
			}
			return nil
		}, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		for _, p := range []string{"a", "b"} {
			peer.Send(testpeer.Command{Topic: "cmd/gw/x", Payload: []byte(p), QoS: 1})
		}
		<-entered
		peer.DropAll()
		eventually(t, "both are acknowledged", func() bool { return len(peer.CommandAcks()) == 2 })
		if got := k.payloads(); got != "a a b" {
			t.Fatalf("offered %q", got)
		}
		if k.got[0].Dup || !k.got[1].Dup { // b came for the first time as well, whatever the cloud says of it
			t.Errorf("the first one is handed over as a repetition: %v, the second one: %v", k.got[0].Dup, k.got[1].Dup)
		}
	})
}

func TestManyCommandsWithQoS0DoNotStopTheUplink(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		release := make(chan struct{})
		h := run(t, v, withCommands, func(ctx context.Context, _ message.Message) error {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		}, peer.URL())
		connected(t, h)
		eventually(t, "subscribed", func() bool { return peer.Subscribed("cmd/gw/#") })
		for range 3 * commandWindow {
			peer.Send(testpeer.Command{Topic: "cmd/gw/x", QoS: 0})
		}
		l := newLedger(100)
		err := l.drain(within(t, 5*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
		if err != nil {
			t.Fatal(err)
		}
		close(release)
		if n := testutil.ToFloat64(h.metrics.commands.WithLabelValues("lost")); n < commandWindow {
			t.Errorf("%v counted as lost", n)
		}
	})
}

// A broker takes a QoS 2 message under an identifier that it holds for a retransmission and drops it [MQTT-4.3.3-10]. On a
// resumed session identifiers of an earlier connection, even of an earlier process, are still held.
func TestResumedSessionDoesNotSwallowQoS2(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		swallow := testpeer.Script{
			Release: func(uint16) testpeer.Answer { return testpeer.Answer{Drop: true} },
			Publish: func(r testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: r.Topic == "stuck"} },
		}
		peer.SetScript(swallow)
		first := run(t, v, withCommands, nil, peer.URL())
		link := connected(t, first)
		for i := range 150 { // some in each state: PUBREC lost, PUBREL sent
			m := reading(i, 2)
			if i%2 == 0 {
				m.Topic = "stuck"
			}
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			err := link.Send(ctx, m, Identity{}, func(error) {})
			cancel()
			if err != nil {
				break
			}
		}
		eventually(t, "the window is full", func() bool { return len(telemetry(peer)) >= exactlyOnceWindow311 })
		link.Close(errors.New("power cut"))
		<-link.Lost()
		first.stop()

		before := len(telemetry(peer))
		peer.SetScript(testpeer.Script{})
		second := run(t, v, withCommands, nil, peer.URL())
		l := newLedger(500)
		err := l.drain(within(t, 10*time.Second), second.Client, func(i int) message.Message { return reading(i, 2) })
		if err != nil {
			t.Fatal(err)
		}
		l.once(t, success)
		seen := map[string]bool{}
		for _, r := range telemetry(peer)[before:] {
			if !r.Resent {
				seen[string(r.Payload)] = true
			}
		}
		if len(seen) != 500 {
			t.Errorf("%d of 500 messages were taken by the broker, all of them acknowledged", len(seen))
		}
	})
}

// A broker without QoS 2 may end the connection over a PUBREL. An uplink that sends QoS 1 must not need one.
func TestResumedSessionOfABrokerThatKnowsNoPubrel(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{
			Release: func(uint16) testpeer.Answer { return testpeer.Answer{Then: testpeer.Fault{Kind: testpeer.Cut}} },
			Publish: func(r testpeer.Received) testpeer.Answer { // two resumed connections end for another reason
				if r.Conn == 2 || r.Conn == 3 {
					return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
				}
				return testpeer.Answer{}
			},
		})
		h := run(t, v, withCommands, nil, peer.URL())
		eventually(t, "connected", connected(t, h).Proven)
		peer.DropAll()
		l := newLedger(100)
		err := l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
		if err != nil {
			t.Fatalf("%v, %+v", err, h.Status())
		}
		l.once(t, success)
		arrivals(t, peer, 100)
	})
}
