package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// variant is one driver and protocol that the behaviour suite runs against.
type variant struct {
	name     string
	protocol string
	driver   driver
	commands bool // the driver takes commands
	ws       bool // over WebSocket
}

func (v variant) is5() bool { return v.protocol == "5" }

func variants() []variant {
	return []variant{
		{name: "mqtt5", protocol: "5", driver: pipelinedDriver{}, commands: true},
		{name: "mqtt5-websocket", protocol: "5", driver: pipelinedDriver{}, commands: true, ws: true},
		{name: "mqtt311-pipelined", protocol: "3.1.1", driver: pipelinedDriver{}, commands: true},
		{name: "mqtt311-paho", protocol: "3.1.1", driver: pahoDriver{}},
	}
}

// each runs f against every variant, at the same time, and checks that nothing of it is left running.
func each(t *testing.T, f func(t *testing.T, v variant)) {
	t.Helper()
	t.Cleanup(func() { noGoroutinesLeft(t) })
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}

// noGoroutinesLeft waits until no goroutine of this package, of paho or of the peer is left.
func noGoroutinesLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	var left string
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		left = ""
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")[1:] {
			if strings.Contains(g, "testing.(*T).Run") || strings.Contains(g, "noGoroutinesLeft") {
				continue
			}
			if strings.Contains(g, "tidegate/") || strings.Contains(g, "eclipse/paho") {
				left = g
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("a goroutine is left:\n%s", left)
}

// harness is a running client with what a test wants to know about it.
type harness struct {
	*Client
	reg  *prometheus.Registry
	urls []string // of the servers, as they are configured
	stop func()   // ends Run and waits for it
	log  *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// fastPace makes tests quick.
func fastPace() pace {
	return pace{base: 5 * time.Millisecond, limit: 20 * time.Millisecond, slow: 300 * time.Millisecond, stable: time.Hour}
}

// open makes a client for v without running it.
func open(t *testing.T, v variant, edit func(*config.Uplink), servers ...string) *harness {
	t.Helper()
	if v.ws {
		for i, s := range servers {
			servers[i] = overWebSocket(t, s)
		}
	}
	c := config.Uplink{
		Servers: servers, Protocol: v.protocol, ClientID: "gw-cloud", KeepAlive: config.Duration(30 * time.Second),
		AckTimeout: config.Duration(5 * time.Second),
	}
	if edit != nil {
		edit(&c)
	}
	h := &harness{reg: prometheus.NewRegistry(), log: &safeBuffer{}, urls: servers}
	var err error
	h.Client, err = New("cloud", c, "gw", slog.New(slog.NewTextHandler(h.log, nil)), h.reg)
	if err != nil {
		t.Fatal(err)
	}
	h.driver, h.pace = v.driver, fastPace()
	return h
}

// run makes a client for v and runs it until the test ends or stop is called.
func run(t *testing.T, v variant, edit func(*config.Uplink), commands message.Handler, servers ...string) *harness {
	t.Helper()
	h := open(t, v, edit, servers...)
	h.start(t, commands)
	return h
}

func (h *harness) start(t *testing.T, commands message.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx, commands) }()
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(h.stop)
}

// reconnects is the counter for one reason.
func (h *harness) reconnects(reason string) float64 {
	return testutil.ToFloat64(h.metrics.reconnects.WithLabelValues(reason))
}

func cloud(t *testing.T, o testpeer.Options) *testpeer.Cloud {
	t.Helper()
	c, err := testpeer.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

func connected(t *testing.T, h *harness) Link {
	t.Helper()
	l, err := h.Connected(within(t, 10*time.Second))
	if err != nil {
		t.Fatalf("connect: %v\n%s", err, h.log)
	}
	return l
}

// reading is the n-th message of a test; its topic says which of ten sources it is from.
func reading(n int, qos message.QoS) message.Message {
	return message.Message{
		Topic: fmt.Sprintf("plant/press%d/temperature", n%10), Payload: []byte(strconv.Itoa(n)), QoS: qos,
	}
}

func identity(n int) Identity {
	return Identity{ID: fmt.Sprintf("id-%d", n), Seq: fmt.Sprintf("e-normal-%d", n), Src: fmt.Sprintf("press%d", n%10), Up: "gw/cloud"}
}

// ledger keeps what became of messages 0 to n-1, as the forwarder's log does.
type ledger struct {
	mu      sync.Mutex
	results []error
	calls   []int  // how often done was called in the end: with anything but ErrDisconnected
	settled []bool // the cloud answered
	left    int
	changed chan struct{}
}

func newLedger(n int) *ledger {
	return &ledger{
		results: make([]error, n), calls: make([]int, n), settled: make([]bool, n), left: n, changed: make(chan struct{}, 1),
	}
}

func (l *ledger) done(n int) func(error) {
	called := false
	return func(err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if called {
			l.calls[n] += 1000 // done of one Send was called twice
		}
		called = true
		if errors.Is(err, ErrDisconnected) {
			return
		}
		l.calls[n]++
		l.results[n] = err
		if !l.settled[n] {
			l.settled[n] = true
			l.left--
		}
		signal(l.changed)
	}
}

func (l *ledger) open(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.settled[n]
}

func (l *ledger) remaining() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

// drain sends all messages in order and sends what is open again, in order, over every new connection.
func (l *ledger) drain(ctx context.Context, c *Client, make func(n int) message.Message) error {
	for {
		link, err := c.Connected(ctx)
		if err != nil {
			return err
		}
		for n := range l.results {
			if !l.open(n) {
				continue
			}
			if err := link.Send(ctx, make(n), identity(n), l.done(n)); err != nil {
				if !errors.Is(err, ErrDisconnected) {
					return err
				}
				break
			}
		}
		for up := true; up; {
			if l.remaining() == 0 {
				return nil
			}
			select {
			case <-l.changed:
			case <-link.Lost():
				up = false
			case <-ctx.Done():
				return fmt.Errorf("%d open: %w", l.remaining(), ctx.Err())
			}
		}
	}
}

// once fails the test unless every message was completed exactly once, with the error that want names.
func (l *ledger) once(t *testing.T, want func(n int) error) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong := 0
	for n, calls := range l.calls {
		if calls != 1 || !sameError(l.results[n], want(n)) {
			if wrong++; wrong < 5 {
				t.Errorf("message %d was completed %d times, last with %v; want once with %v", n, calls, l.results[n], want(n))
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d messages were completed wrongly", wrong, len(l.calls))
	}
}

func sameError(got, want error) bool {
	var g, w *RefusedError
	if errors.As(want, &w) {
		return errors.As(got, &g) && g.Code == w.Code
	}
	return errors.Is(got, want)
}

func success(int) error { return nil }

// arrivals fails the test unless all n messages arrived, the first arrivals of each topic in order. A QoS 2 packet that
// a broker has to take for a retransmission does not count. It returns how many more arrived.
func arrivals(t *testing.T, c *testpeer.Cloud, n int) (extra int) {
	t.Helper()
	seen := make([]bool, n)
	last := map[string]int{}
	missing := n
	for _, r := range c.Received() {
		if strings.HasPrefix(r.Topic, "tidegate/") || r.Resent {
			continue
		}
		i, err := strconv.Atoi(string(r.Payload))
		if err != nil || i >= n {
			t.Fatalf("unexpected payload %q", r.Payload)
		}
		if r.Dup {
			t.Fatalf("message %d has DUP set on its first way over a connection [MQTT-3.3.1-1]", i)
		}
		if seen[i] {
			extra++
			continue
		}
		seen[i] = true
		missing--
		if before, ok := last[r.Topic]; ok && before > i {
			t.Errorf("topic %s: %d arrived first after %d", r.Topic, i, before)
		}
		last[r.Topic] = i
	}
	if missing > 0 {
		t.Errorf("%d of %d messages never arrived", missing, n)
	}
	return extra
}

// telemetry are the arrivals that are no status messages.
func telemetry(c *testpeer.Cloud) []testpeer.Received {
	var out []testpeer.Received
	for _, r := range c.Received() {
		if !strings.HasPrefix(r.Topic, "tidegate/") {
			out = append(out, r)
		}
	}
	return out
}
