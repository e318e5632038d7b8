package coap

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/bridges"
	"tidegate/bridges/coap/wire"
	"tidegate/config"
)

// ACL decides what clients may do. *access.Checker is one.
type ACL interface {
	Allow(id access.Identity, action access.Action, topic string) bool
}

// Options are what a Bridge is made of, beside its section of the configuration.
type Options struct {
	Bus bridges.Bus
	// ACL is asked who may read a topic. Who may publish is asked by the bus.
	ACL ACL
	// Anonymous admits clients without a name, which all clients of coap:// are. Without it every request is refused.
	Anonymous bool
	// MaxPayload bounds the payload of a request, in bytes. 0 means 1 MiB. A datagram has no room for more than 64 KiB anyway.
	MaxPayload int
	Log        *slog.Logger
	// Metrics is where the bridge's metrics are registered.
	Metrics prometheus.Registerer
	// OnRefuse is told of every message that is refused here, before the bus sees it, with one of the errors of package message.
	// It must not block. nil: nobody is told.
	OnRefuse func(error)
	// OnStatus is told when the status changes. It must not block, and may call Status. nil: nobody is told.
	OnStatus func(bridges.Status)
}

// defaultMaxPayload is the default of max_packet.
const defaultMaxPayload = 1 << 20

// Bridge is a CoAP server. New makes it, Run runs it once.
type Bridge struct {
	o       Options
	log     *slog.Logger
	conns   []wire.Conn
	server  *wire.Server
	metrics *metrics
	formats formatTable
	seed    maphash.Seed // of ETags
	listing listing

	anonymous atomic.Bool // see Options.Anonymous

	// telling is held while the status changes and OnStatus hears of it, so that it hears changes in their order. mu is taken
	// after it.
	telling  sync.Mutex
	troubled map[wire.Conn]error // sockets that cannot be read; guarded by telling
	mu       sync.Mutex          // guards status
	status   bridges.Status
}

var _ bridges.Bridge = (*Bridge)(nil)

// New binds a socket, or two, for each of c's addresses. It starts no goroutine; a Bridge that is not going to run must be
// closed with Close.
func New(c config.CoAP, o Options) (*Bridge, error) {
	if len(c.Listen) == 0 {
		return nil, errors.New("coap: no address to listen on")
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = defaultMaxPayload
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bridge{o: o, log: o.Log.With("part", "coap"), troubled: map[wire.Conn]error{}, formats: newFormatTable(), seed: maphash.MakeSeed()}
	b.listing.init()
	b.anonymous.Store(o.Anonymous)
	for _, address := range c.Listen {
		conns, err := wire.Listen(config.HostPort(address))
		b.conns = append(b.conns, conns...)
		if err != nil {
			_ = closeAll(b.conns)
			return nil, fmt.Errorf("coap: %s: %w", address, err)
		}
	}
	b.server = b.newServer(b.conns)
	var err error
	if b.metrics, err = newMetrics(o.Metrics, b.server); err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("coap: register metrics: %w", err)
	}
	return b, nil
}

func (b *Bridge) newServer(conns []wire.Conn) *wire.Server {
	return wire.New(wire.Options{Handler: b.serve, OnTrouble: b.trouble}, conns...)
}

func closeAll(conns []wire.Conn) error {
	errs := make([]error, 0, len(conns))
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Name is "coap": a gateway has one CoAP server, on any number of addresses.
func (b *Bridge) Name() string { return "coap" }

// Addrs returns the address of every socket, in the order of the configuration. An entry that means IPv4 and IPv6 has two.
func (b *Bridge) Addrs() []net.Addr {
	addrs := make([]net.Addr, 0, len(b.conns))
	for _, c := range b.conns {
		addrs = append(addrs, c.Addr())
	}
	return addrs
}

// SetAnonymous is Options.Anonymous from the next request on.
func (b *Bridge) SetAnonymous(admitted bool) { b.anonymous.Store(admitted) }

// Status is how the bridge is now.
func (b *Bridge) Status() bridges.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// setStatus changes the status. The caller holds telling.
func (b *Bridge) setStatus(s bridges.Status) {
	b.mu.Lock()
	changed := b.status != s
	b.status = s
	b.mu.Unlock()
	if changed && b.o.OnStatus != nil {
		b.o.OnStatus(s)
	}
}

// trouble hears from the message layer that a socket cannot be read, or can be again. The bridge is up when all can be.
func (b *Bridge) trouble(c wire.Conn, err error) {
	b.telling.Lock()
	defer b.telling.Unlock()
	s := bridges.Status{LastError: b.Status().LastError}
	if err == nil {
		delete(b.troubled, c)
		b.log.Info("reading again", "listen", c.Addr().String())
	} else {
		b.troubled[c] = err
		s.LastError = fmt.Sprintf("read from %s: %v", c.Addr(), err)
		b.log.Warn("cannot read, trying on", "listen", c.Addr().String(), "error", err)
	}
	s.Up = len(b.troubled) == 0
	b.setStatus(s)
}

// running says that the bridge is up, or that it has ended.
func (b *Bridge) running(up bool) {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.setStatus(bridges.Status{Up: up, LastError: b.Status().LastError})
}

// Close frees the sockets of a bridge that is not run. It may be called after Run as well.
func (b *Bridge) Close() error { return b.server.Close() }

// Run serves until ctx ends. Then it reads no more; requests whose records reach the disk within two seconds are still
// answered.
func (b *Bridge) Run(ctx context.Context) error {
	b.logSockets()
	b.running(true)
	listing, end := context.WithCancel(context.WithoutCancel(ctx))
	var lister sync.WaitGroup
	lister.Go(func() { b.list(listing) }) // ends with listing, after the server, which it answers to
	err := b.server.Run(ctx)
	end()
	lister.Wait()
	b.running(false)
	if err != nil {
		return fmt.Errorf("coap: %w", err)
	}
	return nil
}

// wantedBuffer is what a burst of a few thousand datagrams needs.
const wantedBuffer = 1 << 20

// logSockets says so when a burst is likely to be lost in a socket's buffer.
func (b *Bridge) logSockets() {
	for _, c := range b.conns {
		sized, ok := c.(interface{ Buffer() int })
		if !ok {
			continue
		}
		if size := sized.Buffer(); size > 0 && size < wantedBuffer {
			b.log.Warn("the socket's receive buffer is small: raise net.core.rmem_max, or a burst of datagrams is lost",
				"listen", c.Addr().String(), "bytes", size)
		}
	}
}
