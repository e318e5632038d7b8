package opcua

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges"
	"tidegate/bridges/opcua/link"
	"tidegate/config"
	"tidegate/message"
)

// Options are what a bridge needs of the gateway.
type Options struct {
	Bus bridges.Bus
	// Dir is the folder of certificates and saved sessions, one for all OPC UA bridges.
	Dir string
	// GatewayID names the gateway in the certificate and to the servers.
	GatewayID string
	Log       *slog.Logger
	// Metrics may be nil. Several bridges share one.
	Metrics prometheus.Registerer
	// TokenLifetime is how long the keys of a secure channel are used before they are renewed. 0: an hour.
	TokenLifetime time.Duration
	// MayReply says whether whoever sent a message to be written may have its outcome published under a topic. nil: everybody.
	MayReply func(from message.Source, topic string) bool
	// OnStatus is told of every change. It must not block. nil: nobody is.
	OnStatus func(bridges.Status)
}

// Bridge is one connection to an OPC UA server.
type Bridge struct {
	name    string
	c       config.OPCUA
	o       Options
	log     *slog.Logger
	link    *link.Link
	pki     *link.PKI // nil: nothing is secured
	nodes   []node
	writes  []write
	figures figures

	// mu guards status and topics.
	mu     sync.Mutex
	status bridges.Status
	topics map[string]int // topic -> index of the node that has it
}

// node is a [[opcua.NAME.node]].
type node struct {
	id       string
	template template
	topic    string // filled in by Resolve, before the first value
}

// New checks c and makes what is missing in o.Dir: an own certificate, if c needs one. It connects to nothing.
func New(name string, c config.OPCUA, o Options) (*Bridge, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bridge{name: name, c: c, o: o, log: o.Log.With("bridge", name), topics: map[string]int{}}
	lo, err := linkOptions(name, c, o.Dir, o.GatewayID)
	if err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		ref, err := link.ParseRef(n.ID)
		if err != nil {
			return nil, fmt.Errorf("opcua: %s: node: %w", name, err)
		}
		t := template(n.Topic)
		if t == "" {
			t = template(c.Topic)
		}
		b.nodes = append(b.nodes, node{id: n.ID, template: t})
		lo.Items = append(lo.Items, link.Item{
			Ref: ref, Describe: t.describes(), Deadband: n.Deadband.By, Percent: n.Deadband.Percent,
		})
	}
	if err := b.parseWrites(); err != nil {
		return nil, err
	}
	if c.OutageBudget > 0 && o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("opcua: %s: make the folder of sessions: %w", name, err)
		}
		lo.State = filepath.Join(o.Dir, name+".session")
	}
	lo.Sink, lo.Log, lo.OnChange, lo.TokenLifetime = b, b.log, b.changed, o.TokenLifetime
	if b.link, err = link.New(lo); err != nil {
		return nil, err
	}
	b.pki = lo.PKI
	return b, nil
}

// linkOptions are the options that a bridge and the commands have in common.
func linkOptions(name string, c config.OPCUA, dir, gatewayID string) (link.Options, error) {
	security, err := link.ParseSecurity(c.Security)
	if err != nil {
		return link.Options{}, fmt.Errorf("opcua: %s: %w", name, err)
	}
	lo := link.Options{
		Name: name, Endpoint: c.Endpoint, Security: security, User: c.Username, Password: c.Password.Reveal(),
		Publishing: time.Duration(c.PublishingInterval), Sampling: time.Duration(c.SamplingInterval),
		Budget: time.Duration(c.OutageBudget), URI: "urn:tidegate:" + gatewayID,
	}
	if c.Security != "None" || c.Username != "" {
		if lo.PKI, err = link.OpenPKI(dir, gatewayID); err != nil {
			return link.Options{}, err
		}
	}
	return lo, nil
}

// Name is the name in the configuration.
func (b *Bridge) Name() string { return b.name }

// Addrs is empty: the bridge only dials.
func (b *Bridge) Addrs() []net.Addr { return nil }

// Close has nothing to free.
func (b *Bridge) Close() error { return nil }

// Status is how the bridge is now.
func (b *Bridge) Status() bridges.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// changed is told by the link that the server was reached or lost.
func (b *Bridge) changed(up bool, err error) {
	now := bridges.Status{Up: up}
	if err != nil {
		now.LastError = err.Error()
	}
	b.mu.Lock()
	same := b.status == now
	b.status = now
	b.mu.Unlock()
	if !same && b.o.OnStatus != nil {
		b.o.OnStatus(now)
	}
}

// Run keeps the session with the server and takes messages to write until ctx ends. It is called once.
func (b *Bridge) Run(ctx context.Context) error {
	unregister, err := b.register()
	if err != nil {
		return err
	}
	defer unregister()
	for i := range b.writes {
		w := &b.writes[i]
		cancel, err := b.o.Bus.Subscribe(w.topic, w.handle)
		if err != nil {
			return fmt.Errorf("opcua: %s: %w", b.name, err)
		}
		defer cancel()
	}
	err = b.link.Run(ctx)
	b.changed(false, nil)
	return err
}

// errCollision is wrapped by the error of a node whose topic another one has.
var errCollision = errors.New("two nodes have one topic, and their values could not be told apart")

// Resolve gives a node its topic when the server has said what it calls it.
func (b *Bridge) Resolve(item int, d link.Description) error {
	n := &b.nodes[item]
	topic, err := n.template.topic(d)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if other, taken := b.topics[topic]; taken && other != item {
		return fmt.Errorf("%w: %q is the topic of %s already; give %s a topic of its own", errCollision, topic, b.nodes[other].id, n.id)
	}
	if n.topic != topic {
		delete(b.topics, n.topic)
	}
	b.topics[topic] = item
	n.topic = topic
	return nil
}
