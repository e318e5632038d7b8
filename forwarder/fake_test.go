package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/message"
)

var errFakeGone = errors.New("connection gone")

// refusedError is a refusal with a reason code, as an uplink makes them.
type refusedError byte

func (e refusedError) Error() string { return fmt.Sprintf("refused %#x", byte(e)) }
func (e refusedError) Code() byte    { return byte(e) }

// arrivalAt is one message as the cloud got it.
type arrivalAt struct {
	topic, payload string
	id             Identity
	msg            message.Message
	link           int
}

// act is what the fake cloud does with a message.
type act struct {
	take   bool          // the cloud has it
	err    error         // the answer, when answer
	silent bool          // no answer as long as the connection lives
	delay  time.Duration // before the answer
	cut    bool          // the connection is lost instead of an answer
	byPeer bool          // ... because the peer closed it
}

var ack = act{take: true}

// fakeCloud is an Uplink whose peer does what decide says. The zero value of its other fields is a peer that is there.
type fakeCloud struct {
	decide func(c *fakeCloud, link int, m message.Message, id Identity) act
	window int // 0: 100

	mu       sync.Mutex
	got      []arrivalAt
	links    int
	current  *fakeLink
	changed  chan struct{}
	offline  bool
	unproven bool
	servers  int // in turn, one for each connection; 0: one
	handler  message.Handler
}

func newFakeCloud(decide func(c *fakeCloud, link int, m message.Message, id Identity) act) *fakeCloud {
	return &fakeCloud{decide: decide, changed: make(chan struct{})}
}

func takeAll(*fakeCloud, int, message.Message, Identity) act { return ack }

type fakeLink struct {
	c      *fakeCloud
	n      int
	window chan struct{}
	lost   chan struct{}
	down   chan struct{} // no more answers but "gone"

	mu      sync.Mutex
	dead    bool
	byPeer  bool
	pending sync.WaitGroup
}

func (c *fakeCloud) Run(ctx context.Context, h message.Handler) error {
	c.mu.Lock()
	c.handler = h
	c.mu.Unlock()
	<-ctx.Done()
	c.drop(false)
	return nil
}

func (c *fakeCloud) Connected(ctx context.Context) (Link, error) {
	for {
		c.mu.Lock()
		if c.current == nil && !c.offline {
			c.connect()
		}
		l, changed := c.current, c.changed
		c.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *fakeCloud) connect() {
	w := c.window
	if w == 0 {
		w = 100
	}
	c.links++
	c.current = &fakeLink{c: c, n: c.links, window: make(chan struct{}, w), lost: make(chan struct{}), down: make(chan struct{})}
}

func (c *fakeCloud) Status() LinkStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return LinkStatus{Connected: c.current != nil, Server: fmt.Sprintf("fake %d", c.links%max(c.servers, 1))}
}

// setServers makes it n servers, which are connected to in turn.
func (c *fakeCloud) setServers(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = n
}

// setOffline takes the cloud away or brings it back.
func (c *fakeCloud) setOffline(off bool) {
	c.mu.Lock()
	c.offline = off
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	if off {
		c.drop(false)
	}
}

func (c *fakeCloud) drop(byPeer bool) {
	c.mu.Lock()
	l := c.current
	c.mu.Unlock()
	if l != nil {
		l.end(byPeer)
	}
}

func (c *fakeCloud) arrivals() []arrivalAt {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]arrivalAt(nil), c.got...)
}

// records are the arrivals without reports.
func (c *fakeCloud) records() []arrivalAt {
	var out []arrivalAt
	for _, a := range c.arrivals() {
		if !strings.HasPrefix(a.topic, "tidegate/") {
			out = append(out, a)
		}
	}
	return out
}

func (l *fakeLink) end(byPeer bool) {
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return
	}
	l.dead, l.byPeer = true, byPeer
	l.mu.Unlock()
	close(l.down)
	l.c.mu.Lock()
	if l.c.current == l {
		l.c.current = nil
	}
	l.c.mu.Unlock()
	go func() {
		l.pending.Wait()
		close(l.lost)
	}()
}

func (l *fakeLink) Send(ctx context.Context, m message.Message, id Identity, done func(error)) error {
	select {
	case l.window <- struct{}{}:
	case <-l.down:
		return errFakeGone
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return errFakeGone
	}
	l.pending.Add(1)
	l.mu.Unlock()
	l.c.mu.Lock()
	decide := l.c.decide
	l.c.mu.Unlock()
	a := decide(l.c, l.n, m, id)
	if a.take {
		l.c.mu.Lock()
		l.c.got = append(l.c.got, arrivalAt{m.Topic, string(m.Payload), id, m, l.n})
		l.c.mu.Unlock()
	}
	answer := func(err error) {
		<-l.window
		done(err)
		l.pending.Done()
	}
	switch {
	case a.cut:
		go func() { <-l.down; answer(errFakeGone) }()
		l.end(a.byPeer)
	case a.silent:
		go func() { <-l.down; answer(errFakeGone) }()
	case a.delay > 0:
		go func() {
			t := time.NewTimer(a.delay)
			defer t.Stop()
			select {
			case <-t.C:
				answer(a.err)
			case <-l.down:
				answer(errFakeGone)
			}
		}()
	default:
		answer(a.err)
	}
	return nil
}

func (l *fakeLink) Lost() <-chan struct{} { return l.lost }
func (l *fakeLink) Close(error)           { l.end(false) }
func (l *fakeLink) Proven() bool {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return !l.c.unproven
}

func (l *fakeLink) ClosedByPeer() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byPeer
}

// rig is a forwarder on a real buffer with fake clouds.
type rig struct {
	t      testing.TB
	dir    string
	cfg    *config.Config
	log    *buffer.Log
	f      *Forwarder
	clouds map[string]*fakeCloud
	reg    *prometheus.Registry

	stop func()
}

func testConfig(routes map[string]config.Route, uplinks ...string) *config.Config {
	c := &config.Config{Gateway: config.Gateway{ID: "gw"}, Routes: routes, Uplinks: map[string]config.Uplink{}}
	if routes == nil {
		c.Routes = map[string]config.Route{"all": {From: []string{"#"}}}
	}
	for _, u := range uplinks {
		c.Uplinks[u] = config.Uplink{Buffer: config.Buffer{MaxBytes: 64 << 20}}
	}
	return c
}

// open makes a forwarder on the folder; it is not running yet.
func open(t testing.TB, dir string, cfg *config.Config, clouds map[string]*fakeCloud) *rig {
	t.Helper()
	return openWith(t, dir, cfg, clouds, buffer.Options{})
}

func openWith(t testing.TB, dir string, cfg *config.Config, clouds map[string]*fakeCloud, o buffer.Options) *rig {
	t.Helper()
	if o.Bounds == 0 {
		o.Bounds = Bounds(cfg)
	}
	log, err := buffer.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]Uplink{}
	for name, c := range clouds {
		links[name] = c
	}
	r := &rig{t: t, dir: dir, cfg: cfg, log: log, clouds: clouds, reg: prometheus.NewRegistry()}
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("TEST_LOG") != "" {
		logger = slog.Default()
	}
	r.f, err = New(cfg, log, links, logger, r.reg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs the forwarder until close.
func (r *rig) start() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.f.Run(ctx, Kept(func(context.Context, message.Message) error { return message.ErrNoMatch }))
	}()
	r.stop = func() {
		r.stop = nil
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
	return r
}

func (r *rig) close() {
	r.t.Helper()
	if r.stop != nil {
		r.stop()
	}
	if err := r.log.Close(); err != nil {
		r.t.Errorf("close the log: %v", err)
	}
}

// send ingests one message and waits until it is durable.
func (r *rig) send(topic, payload string) {
	r.t.Helper()
	r.sendFrom("dev", topic, payload)
}

func (r *rig) sendFrom(client, topic, payload string) {
	r.t.Helper()
	tk, err := r.f.Ingest(message.Message{
		Topic: topic, Payload: []byte(payload), Source: message.Source{Protocol: message.MQTT, Client: client},
	})
	if err != nil {
		r.t.Fatalf("ingest %s: %v", topic, err)
	}
	if err := tk.Wait(context.Background()); err != nil {
		r.t.Fatalf("wait for %s: %v", topic, err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *rig) queued() uint64 {
	var n uint64
	for _, o := range r.f.outs {
		for _, q := range o.queues {
			n += q.Stats().Records
		}
	}
	return n
}

// entry returns the ledger's line of a route and uplink.
func (r *rig) entry(route, uplink string) Entry {
	for _, e := range r.f.Ledger().Entries {
		if e.Route == route && e.Uplink == uplink {
			return e
		}
	}
	return Entry{Places: map[string]uint64{}}
}

// balance checks that the ledger adds up, line by line, and that what it calls buffered is what is in the queues.
func (r *rig) balance() {
	r.t.Helper()
	if err := r.unbalanced(); err != nil {
		r.t.Error(err)
	}
}

// eventuallyBalanced waits for a quiet moment.
func (r *rig) eventuallyBalanced() {
	r.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := r.unbalanced()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *rig) unbalanced() error {
	var buffered uint64
	for _, e := range r.f.Ledger().Entries {
		var sum uint64
		for _, n := range e.Places {
			sum += n
		}
		if sum != e.Taken+e.Recovered {
			return fmt.Errorf("ledger of %s to %s: taken %d + recovered %d, places %v", e.Route, e.Uplink, e.Taken, e.Recovered, e.Places)
		}
		buffered += e.Places["buffered"]
	}
	if q := r.queued(); buffered != q {
		return fmt.Errorf("the ledger has %d buffered copies, the queues %d", buffered, q)
	}
	return nil
}

// order checks what a cloud got: per source and topic the first arrivals rise from 1 to want. It returns the number of
// duplicates.
func checkOrder(t testing.TB, got []arrivalAt, want map[string]int) (duplicates int) {
	t.Helper()
	next := map[string]int{}
	ids := map[string]string{}
	for _, a := range got {
		key := a.id.Source + " " + a.topic
		var n int
		if _, err := fmt.Sscan(a.payload, &n); err != nil {
			t.Fatalf("payload %q: %v", a.payload, err)
		}
		record := key + " " + a.payload
		if id, seen := ids[record]; seen {
			duplicates++
			if id != a.id.ID+a.id.Seq {
				t.Errorf("%s came again with identity %s, first %s", record, a.id.ID+a.id.Seq, id)
			}
			continue
		}
		ids[record] = a.id.ID + a.id.Seq
		if n != next[key]+1 {
			t.Errorf("%s: first arrival of %d after that of %d", key, n, next[key])
		}
		next[key] = max(next[key], n)
	}
	for key, n := range want {
		if next[key] != n {
			t.Errorf("%s: got %d of %d", key, next[key], n)
		}
	}
	return duplicates
}

// copyDir copies a folder as a crash would leave it: while its owner still writes.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// inspect calls f with every record of every lane in a folder that nobody has open.
func inspect(t testing.TB, dir string, f func(Stored)) {
	t.Helper()
	log, err := buffer.Open(dir, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range log.Queues() {
		if !strings.HasPrefix(st.Name, "uplink/") {
			continue
		}
		err := log.Lookup(st.Name).Scan(0, func(r buffer.Rec) bool {
			s, err := ReadRecord(r.Data)
			if err != nil {
				t.Error(err)
				return false
			}
			f(s)
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}
