package external

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges"
	"tidegate/config"
	"tidegate/message"
)

// Name is the name of the one bridge of this kind.
const Name = "broker"

// Options are what a Bridge is made of, beside its section of the configuration.
type Options struct {
	// Bus takes what comes from the broker.
	Bus bridges.Publisher
	// Take is as Bus.Publish, without the local subscribers.
	Take message.Ingest
	// Local gives a message to local subscribers alone.
	Local message.Handler
	// Dir is where the bridge remembers what its session at the broker subscribes to; empty: nowhere.
	Dir string
	// MaxPacket bounds a packet from the broker, in bytes; a larger message is refused. 0 means 1 MiB.
	MaxPacket int
	// QueueBytes bounds what waits for the broker. 0 means 64 MiB.
	QueueBytes int64
	// State makes the retained message that says whether the gateway is "online" or "offline"; nil: nothing says so.
	State func(state string) message.Message
	// OnRefuse is told of every message that is refused here, before the bus sees it. It must not block. nil: nobody is told.
	OnRefuse func(error)
	// OnStatus is told when the status changes. It must not block, and may call Tell and Status. nil: nobody is told.
	OnStatus func(bridges.Status)
	Log      *slog.Logger
	// Metrics is where the bridge's metrics are registered; nil: nowhere.
	Metrics prometheus.Registerer
}

// Bridge is the member of the group. New makes it, Run runs it once.
type Bridge struct {
	c       config.External
	o       Options
	log     *slog.Logger
	servers []server
	out     *outbox
	held    held
	memory  *memory
	figures figures
	pace    pace
	// noRetain leaves the retain flag off the will, for a broker that refused it. Only Run uses it.
	noRetain bool
	// last is the server of the last connection. Only Run uses it.
	last string

	// telling is held while the status changes and OnStatus hears of it, so that it hears changes in their order.
	telling sync.Mutex
	status  atomic.Pointer[bridges.Status]
	logged  string // the last failure that was logged; only Run uses it
}

var _ bridges.Bridge = (*Bridge)(nil)

// New checks c; it opens nothing and starts nothing.
func New(c config.External, o Options) (*Bridge, error) {
	if o.MaxPacket == 0 {
		o.MaxPacket = 1 << 20
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bridge{c: c, o: o, log: o.Log, pace: defaultPace(), memory: newMemory(o.Dir, c)}
	b.out = newOutbox(o.QueueBytes, b.settled)
	b.status.Store(&bridges.Status{LastError: "not connected yet"})
	for _, text := range c.Servers {
		s, err := parseServer(text, c.ServerName)
		if err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
		b.servers = append(b.servers, s)
	}
	if len(b.servers) == 0 {
		return nil, errors.New("broker: no server")
	}
	if _, err := tlsConfig(c, b.servers[0]); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if err := b.register(); err != nil {
		return nil, fmt.Errorf("broker: register metrics: %w", err)
	}
	return b, nil
}

// Name is "broker".
func (b *Bridge) Name() string { return Name }

// Addrs is empty: the bridge only dials.
func (b *Bridge) Addrs() []net.Addr { return nil }

// Close has nothing to free.
func (b *Bridge) Close() error { return nil }

// Status is how the bridge is now. It is up while it is connected and every subscription is granted.
func (b *Bridge) Status() bridges.Status { return *b.status.Load() }

func (b *Bridge) setStatus(s bridges.Status) {
	b.telling.Lock()
	defer b.telling.Unlock()
	if *b.status.Load() == s {
		return
	}
	b.status.Store(&s)
	if b.o.OnStatus != nil {
		b.o.OnStatus(s)
	}
}

// pace says how long to wait before the next attempt.
type pace struct {
	base, limit time.Duration // full jitter between 0 and base doubled with every failure, at most limit
	slow        time.Duration // where the same attempt would fail again: between slow and twice slow
	stable      time.Duration // a connection that lived that long was a success
}

// defaultPace is quick, because the broker is near, and one that restarts may drop what is published for a group before the first
// member is back.
func defaultPace() pace {
	return pace{base: 250 * time.Millisecond, limit: 2 * time.Second, slow: 30 * time.Second, stable: 10 * time.Second}
}

// wait is how long to wait after that many failures in a row, the last of them err.
func (p pace) wait(failures int, err error) time.Duration {
	if r := (*refusal)(nil); errors.As(err, &r) && r.lasting() {
		return p.slow + rand.N(p.slow) //nolint:gosec // jitter is no secret
	}
	return rand.N(min(p.limit, p.base<<min(failures, 20))) //nolint:gosec // jitter is no secret
}

// Run keeps the gateway attached until ctx ends. Then it takes nothing more, acknowledges what reaches the disk within two
// seconds, says "offline" and disconnects; its session stays with the broker. It returns when every goroutine that it started
// has ended.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.out.end()
	failures := 0
	for next := 0; ctx.Err() == nil; {
		s := b.servers[next]
		started := time.Now()
		made, err := b.once(ctx, s)
		if ctx.Err() != nil {
			break
		}
		b.failed(made, s, err)
		if r := (*refusal)(nil); errors.As(err, &r) && r.code == codeRetain {
			b.noRetain = true
		}
		switch {
		case made && time.Since(started) >= b.pace.stable:
			failures, next = 0, 0
		default:
			next = (next + 1) % len(b.servers)
			if next != 0 && !made {
				continue // the next server is tried at once
			}
		}
		if !sleep(ctx, b.pace.wait(failures, err)) {
			break
		}
		failures++
	}
	b.setStatus(bridges.Status{LastError: b.Status().LastError})
	return nil
}

// connectTimeout bounds one attempt: name look-up, TCP, TLS and CONNACK.
const connectTimeout = 10 * time.Second

// once makes one connection to s and lives with it until it ends; made says whether there was one.
func (b *Bridge) once(ctx context.Context, s server) (made bool, err error) {
	dialing, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %s", connectTimeout))
	defer cancel()
	l, err := b.connect(dialing, s)
	if err != nil {
		return false, err
	}
	if s.url != b.last { // its identifiers may be those of other messages
		b.held.forget()
		b.last = s.url
	}
	b.logged = ""
	b.figures.connects.Add(1)
	b.log.Info("attached to the broker", "server", s.url, "session_present", l.grant.present, "window", l.grant.window)
	return true, b.serve(ctx, l)
}

// failed records why a connection ended or was not made. It is logged when it differs from the last failure.
func (b *Bridge) failed(made bool, s server, err error) {
	what := "connect to "
	if made {
		what = "connection to "
	}
	text := what + s.url + ": " + err.Error()
	b.setStatus(bridges.Status{LastError: text})
	if text != b.logged {
		b.logged = text
		b.log.Warn("not attached to the broker, trying on", "server", s.url, "error", err)
	}
}

// sleep waits; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
