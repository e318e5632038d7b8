// Package edge is the local MQTT broker that devices speak to, and the bus on which bridges and the cloud's commands meet
// them.
//
// A connection is served by the loop in loop.go: its gate (edge/gate) reads packets, a library (mochi's codec) decodes them, and what
// becomes of them is decided here. A PUBLISH is taken in by capture.go: checked, handed to Ingest, acknowledged through
// the connection's gate when its record is on disk, and given to local subscribers by edge/session, which does
// all delivery. What changes while clients are connected is in rejudge.go and relisten.go. connect.go, login.go, attach.go and will.go are
// the life of a connection, subscribe.go the subscriptions, publish.go what bridges and commands use. Nothing of the library leaves this
// package. Start at New.
package edge

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/config"
	"tidegate/edge/gate"
	"tidegate/edge/session"
	"tidegate/message"
)

const (
	// receiveMaximum bounds the unacknowledged QoS 1 and 2 messages of one MQTT 5 client towards us.
	receiveMaximum = 1024
	// aliasMaximum is how many topic aliases a client may set.
	aliasMaximum = 32
	// sweepEvery is the resolution of session expiry and will delay.
	sweepEvery = time.Second
	// defaultShutdown is how long an orderly stop may take.
	defaultShutdown = 5 * time.Second
)

// Options are what a Broker is made of.
type Options struct {
	// Listeners by name. Without any the Broker is only the bus of the bridges.
	Listeners map[string]config.Listener
	// Broker holds the limits.
	Broker config.Broker
	// Ingest takes over every message that devices and bridges publish.
	Ingest message.Ingest
	// IngestWith does so, and appends what sessions store in the same step; needed where there is a Store.
	IngestWith func(m message.Message, with session.Riders) (message.Ticket, error)
	// ACL admits clients and decides what they may do.
	ACL ACL
	// HideReasons answers what the rules refuse to MQTT 5 clients with 0x80 instead of 0x87, which tells them less.
	HideReasons bool
	// OwnIdentifiers lets a user have only client identifiers that are its name, or that, a slash and anything.
	OwnIdentifiers bool
	// Audit is told who came in and who did not; nil: Log with audit=true. How much it is told is bounded.
	Audit *slog.Logger
	// Store keeps sessions and retained messages over a restart; nil means in memory.
	Store *session.Store
	// MaxConns bounds the connections of all listeners together, where fewer than twice the clients and 64 are possible: for
	// want of file descriptors. 0: no further bound.
	MaxConns int
	// ConnectTimeout is how long TLS, WebSocket and CONNECT together may take. 0 means 10 s.
	ConnectTimeout time.Duration
	// Shutdown is how long Run may take to end after its context did. 0 means 5 s.
	Shutdown time.Duration
	Log      *slog.Logger
	// Metrics is where the broker's metrics are registered.
	Metrics prometheus.Registerer
}

// Broker is the local MQTT broker. New makes it, Run runs it once.
type Broker struct {
	o         Options
	log       *slog.Logger
	metrics   *metrics
	sessions  *session.Manager
	take      func(*message.Message, session.Riders) (message.Ticket, error) // ingest
	listening sync.Mutex                                                     // guards listeners
	listeners []*listener
	accepting sync.WaitGroup // the loops of accept
	begun     chan struct{}  // closed when Run accepts
	wills     wills
	turns     turns
	refusals  sparing
	audit     audit
	limits    *gate.Limits // of all listeners together
	sources   sources
	clients   atomic.Int64
	stopping  atomic.Bool
	hide      atomic.Bool   // see Options.HideReasons
	own       atomic.Bool   // see Options.OwnIdentifiers
	rules     atomic.Uint64 // counts the changes of users and rules, see rejudge.go

	// life is the context of handlers of Subscribe; it ends when Run does.
	life    context.Context
	endLife context.CancelFunc
	// waits is the context of connections that wait for the disk; it ends when the stop begins.
	waits    context.Context
	endWaits context.CancelFunc
	mu       sync.Mutex // guards ended against handlers.Add
	ended    bool
	handlers sync.WaitGroup
	// conns counts the goroutines of connections. They are started by the accept loops only.
	conns sync.WaitGroup
}

// New checks o and binds every listener. It starts no goroutine; a Broker that is not going to run must be closed with
// Close.
func New(o Options) (*Broker, error) {
	if o.Shutdown == 0 {
		o.Shutdown = defaultShutdown
	}
	if o.Audit == nil {
		o.Audit = o.Log.With("audit", true)
	}
	if o.Store != nil && o.IngestWith == nil {
		return nil, errors.New("edge: a store of sessions needs IngestWith")
	}
	b := &Broker{o: o, log: o.Log, audit: newAudit(o.Audit), refusals: newSparing(), limits: connectionLimits(o), begun: make(chan struct{})}
	b.hide.Store(o.HideReasons)
	b.own.Store(o.OwnIdentifiers)
	b.take = b.ingest
	b.metrics = newMetrics(o.Metrics, b)
	b.wills.pending = make(map[string]pendingWill)
	b.turns.seed = maphash.MakeSeed()
	b.life, b.endLife = context.WithCancel(context.Background())
	b.waits, b.endWaits = context.WithCancel(context.Background())
	for _, name := range slices.Sorted(maps.Keys(o.Listeners)) {
		if err := b.bind(name, o.Listeners[name]); err != nil {
			_ = b.Close()
			return nil, err
		}
	}
	b.sessions = session.New(b.sessionOptions())
	b.restoreWills()
	return b, nil
}

func (b *Broker) sessionOptions() session.Options {
	acl := b.o.ACL
	return session.Options{
		QueueBytes: int64(b.o.Broker.SessionQueue), RetainedLimit: b.o.Broker.RetainedLimit, Store: b.o.Store,
		MaxSessions: 2 * b.o.Broker.MaxClients, // as many without a connection as with one
		Drop:        b.drop, Evicted: b.evicted, MaxExpiry: max(b.o.Broker.SessionExpiry.D(), 1), Logger: b.log,
		Allow: func(user, client string) func(string) bool {
			id := access.Identity{User: user, Client: client}
			return func(topic string) bool { return acl.Allow(id, access.Deliver, topic) }
		},
		MaySubscribe: func(user, client, filter string) bool {
			return acl.Allow(access.Identity{User: user, Client: client}, access.Subscribe, filter)
		},
	}
}

// drop counts messages that are not delivered.
func (b *Broker) drop(reason string, n int) {
	b.metrics.drop(reason, n)
	if reason == session.DropRetained {
		b.refusals.log(b.log, "message not retained", reason, "")
	}
}

// evicted follows when a session ended because there are too many. With it the delay of the client's will has ended.
func (b *Broker) evicted(client string) {
	b.wills.hasten(client)
	b.refusals.log(b.log, "session ended", "session_limit", "", "client", client)
}

// Addrs returns the bound address of every listener by its name.
func (b *Broker) Addrs() map[string]net.Addr {
	m := map[string]net.Addr{}
	for _, l := range b.every() {
		m[l.name] = l.Addr()
	}
	return m
}

// Clients returns how many clients are connected.
func (b *Broker) Clients() int { return int(b.clients.Load()) }

// Sessions returns how many sessions there are, connected or not.
func (b *Broker) Sessions() int {
	if b.sessions == nil {
		return 0 // not bound yet
	}
	return b.sessions.Len()
}

// stored returns how many bytes of messages are on disk for sessions.
func (b *Broker) stored() (used int64) {
	if b.o.Store != nil {
		used, _ = b.o.Store.Used()
	}
	return used
}

// lost returns how many records of sessions were lost on the disk.
func (b *Broker) lost() uint64 {
	if b.o.Store == nil {
		return 0
	}
	return b.o.Store.Lost()
}

// Close unbinds the listeners of a Broker that was not run.
func (b *Broker) Close() error {
	var errs []error
	for _, l := range b.every() {
		errs = append(errs, l.Close())
	}
	b.end()
	return errors.Join(errs...)
}

// Run accepts clients until ctx ends. Then it stops accepting, lets acknowledgements leave whose records reach the disk
// within the shutdown time, tells MQTT 5 clients why (0x8B) and closes every connection. Wills are not published then: the
// clients did not fail. It returns nil after an orderly stop and when all its goroutines have ended.
func (b *Broker) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	for _, l := range b.every() {
		b.start(l)
	}
	close(b.begun)
	loops.Go(func() { b.sweep(ctx) }) // ends with ctx
	<-ctx.Done()
	b.stopping.Store(true)
	b.endWaits()
	err := b.shutdown()
	b.accepting.Wait()
	loops.Wait()
	b.end()
	err = errors.Join(err, b.awaitConns())
	b.sessions.Flush()
	return err
}

// shutdown ends the listeners and their connections within the shutdown time.
func (b *Broker) shutdown() error {
	// Half of the time is for the orderly way; a connection that needs more is cut.
	ctx, cancel := context.WithTimeout(context.Background(), b.o.Shutdown/2)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range b.every() {
		wg.Go(func() {
			if err := l.Shutdown(ctx, codeShuttingDown); err != nil && !errors.Is(err, net.ErrClosed) {
				b.log.Warn("some connections had to be cut", "listener", l.name, "error", err)
			}
		})
	}
	wg.Wait()
	return nil
}

// awaitConns waits for the goroutines of connections. They end when their sockets are closed; should one not, that is an
// error rather than a gateway that cannot be stopped.
func (b *Broker) awaitConns() error {
	done := make(chan struct{})
	go func() { // ends when the last connection's goroutine does
		b.conns.Wait()
		b.handlers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(b.o.Shutdown):
		return errors.New("edge: stop: some connections or handlers did not end in time")
	}
}

// end ends the handlers of Subscribe.
func (b *Broker) end() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	b.endWaits()
	b.endLife()
}

// every returns the listeners.
func (b *Broker) every() []*listener {
	b.listening.Lock()
	defer b.listening.Unlock()
	return slices.Clone(b.listeners)
}

// start begins to accept clients on l.
func (b *Broker) start(l *listener) {
	b.accepting.Go(func() { // ends when the listener is closed
		defer close(l.done)
		b.accept(l)
	})
}

// accept serves every connection of l on a goroutine of its own, which ends when the connection does.
func (b *Broker) accept(l *listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if gc, ok := c.(*gate.Conn); ok {
			b.conns.Go(func() { b.serve(l, gc) })
		}
	}
}

// sweep ends sessions and publishes delayed wills when their time has come.
func (b *Broker) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			b.publishDue(now) // before the session ends that keeps the will
			b.sessions.Sweep(now)
		}
	}
}
