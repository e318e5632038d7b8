package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/admin"
	"tidegate/bridges"
	"tidegate/bridges/coap"
	"tidegate/bridges/opcua"
	"tidegate/config"
	"tidegate/message"
)

// bridgeEntry is one kind of bridge: what of it a configuration asks for, and what makes it.
type bridgeEntry struct {
	kind string
	// sections returns the sections of c that ask for a bridge each, by the name of the bridge.
	sections func(c *config.Config) map[string]any
	// make makes the bridge of that name. What a failed call bound is freed again.
	make func(g *gateway, c *config.Config, name string, reg prometheus.Registerer) (bridges.Bridge, error)
	// try finds out whether make can be expected to work beside the bridges of running, which is nil at the start.
	try func(g *gateway, running, c *config.Config, name string) error
}

// bridgeTable lists every kind of bridge, in the order in which they are made.
func bridgeTable() []bridgeEntry {
	return []bridgeEntry{
		{"coap", coapSections, makeCoAP, tryCoAP},
		{"opcua", opcuaSections, makeOPCUA, tryOPCUA},
	}
}

func coapSections(c *config.Config) map[string]any {
	if c.CoAP == nil {
		return nil
	}
	return map[string]any{"coap": *c.CoAP}
}

func makeCoAP(g *gateway, c *config.Config, name string, reg prometheus.Registerer) (bridges.Bridge, error) {
	return coap.New(*c.CoAP, coap.Options{
		Bus: g.bus(), ACL: g.users, Anonymous: *c.Auth.Anonymous, MaxPayload: int(c.Broker.MaxPacket),
		Log: g.log.With("part", "coap"), Metrics: reg, OnStatus: g.bridgeChanged(name),
		OnRefuse: func(err error) { g.broker.Refused(message.CoAP, err) },
	})
}

// tryCoAP binds, for a moment, the addresses that the running bridge does not have. One whose port it has on another address may be
// free only when it has stopped.
func tryCoAP(g *gateway, running, c *config.Config, _ string) error {
	var has config.CoAP
	if running.CoAP != nil {
		has = *running.CoAP
	}
	ports := map[string]bool{}
	for _, address := range has.Listen {
		ports[portOf(address)] = true
	}
	for _, address := range c.CoAP.Listen {
		if slices.Contains(has.Listen, address) {
			continue
		}
		b, err := coap.New(config.CoAP{Listen: []string{address}}, coap.Options{Bus: g.broker, ACL: g.users, Metrics: prometheus.NewRegistry()})
		switch {
		case err == nil:
			_ = b.Close()
		case !errors.Is(err, syscall.EADDRINUSE) || !ports[portOf(address)]:
			return err
		}
	}
	return nil
}

// portOf returns the port of a coap URL.
func portOf(address string) string {
	_, port, _ := net.SplitHostPort(config.HostPort(address))
	return port
}

func opcuaSections(c *config.Config) map[string]any {
	all := make(map[string]any, len(c.OPCUA))
	for name, section := range c.OPCUA {
		all[name] = section
	}
	return all
}

func makeOPCUA(g *gateway, c *config.Config, name string, reg prometheus.Registerer) (bridges.Bridge, error) {
	b, err := opcua.New(name, c.OPCUA[name], opcua.Options{
		Bus: g.bus(), Dir: opcuaDir(c), GatewayID: c.Gateway.ID,
		Log: g.log.With("part", "opcua"), Metrics: reg, OnStatus: g.bridgeChanged(name), MayReply: g.mayReply,
	})
	if err != nil {
		return nil, fmt.Errorf("opcua.%s: %w", name, err)
	}
	return b, nil
}

// tryOPCUA makes a bridge that never runs; it binds nothing and connects to nothing.
func tryOPCUA(g *gateway, _, c *config.Config, name string) error {
	_, err := makeOPCUA(g, c, name, nil)
	return err
}

// mayReply reports whether whoever sent a message may have an answer published under topic: the cloud may, a device where it
// may publish itself.
func (g *gateway) mayReply(from message.Source, topic string) bool {
	return from.Protocol == message.Uplink || g.users.Allow(access.Identity{User: from.User, Client: from.Client}, access.Publish, topic)
}

// opcuaDir is where certificates of OPC UA live: the gateway's own and those of the servers it trusts.
func opcuaDir(c *config.Config) string { return filepath.Join(c.Gateway.DataDir, "opcua") }

// openBridge is one bridge with what it needs to run.
type openBridge struct {
	kind   string
	bridge bridges.Bridge
	reg    *prometheus.Registry // its own metrics, which go with it
	cancel context.CancelFunc
	ended  chan struct{} // closed when Run has returned; nil: it was not run
}

// spans are the bridges there are. They come and go one by one.
type spans struct {
	mu     sync.Mutex
	list   []*openBridge
	life   context.Context // nil: they do not run yet
	failed chan error      // capacity 1: one cannot go on
}

// all returns the bridges.
func (s *spans) all() []*openBridge {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// openBridges makes every bridge that the configuration asks for.
func (g *gateway) openBridges(ctx context.Context, s seams) error {
	g.bridges.failed = make(chan error, 1)
	for _, e := range bridgeTable() {
		for _, name := range slices.Sorted(maps.Keys(e.sections(g.config))) {
			b, err := g.makeBridge(ctx, e, g.config, name, s.patience)
			if err != nil {
				return &startError{exitFailed, "correct [" + e.kind + "], choose another address, or stop what uses it", err}
			}
			g.bridges.list = append(g.bridges.list, b)
		}
	}
	return nil
}

// makeBridge makes a bridge. It waits for addresses that are about to be free; each try has a registry of its own.
func (g *gateway) makeBridge(ctx context.Context, e bridgeEntry, c *config.Config, name string, patience time.Duration) (*openBridge, error) {
	made := &openBridge{kind: e.kind}
	err := handOver(ctx, patience, g.log, "the addresses of ["+e.kind+"]", func() (err error) {
		made.reg = prometheus.NewRegistry()
		made.bridge, err = e.make(g, c, name, made.reg)
		return err
	})
	return made, err
}

// runBridges runs every bridge until ctx ends, and tells that they are offline when they have ended. They are independent:
// their peers may take their time to be let go, so they stop together. One that cannot go on takes the gateway with it, and a
// service manager starts that again.
func (g *gateway) runBridges(ctx context.Context) error {
	s := &g.bridges
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.life = life
	for _, b := range s.list {
		g.startBridge(b)
	}
	s.mu.Unlock()
	var err error
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	cancel()
	for _, b := range s.all() {
		<-b.ended
	}
	return err
}

// startBridge runs b until the bridges end or stopBridge is called. The caller holds their lock.
func (g *gateway) startBridge(b *openBridge) {
	s := &g.bridges
	if s.life == nil {
		return // runBridges does it
	}
	ctx, cancel := context.WithCancel(s.life)
	b.cancel, b.ended = cancel, make(chan struct{})
	go func() { // ends with ctx; stopBridge and runBridges wait for it
		defer close(b.ended)
		err := b.bridge.Run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("ended by itself")
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			select {
			case s.failed <- fmt.Errorf("bridge %s: %w", b.bridge.Name(), err):
			default:
			}
		}
		g.tellBridge(b.bridge.Name(), false)
	}()
}

// swapBridge stops the bridge of that kind and name, if there is one, and starts the one that c asks for, if it does. On an
// error the one of before runs again.
func (g *gateway) swapBridge(e bridgeEntry, before, c *config.Config, name string) error {
	const patience = 2 * time.Second // with an address that the old one is just leaving
	s := &g.bridges
	s.mu.Lock()
	i := slices.IndexFunc(s.list, func(b *openBridge) bool { return b.kind == e.kind && b.bridge.Name() == name })
	var old *openBridge
	if i >= 0 {
		old = s.list[i]
	}
	s.mu.Unlock()
	if old != nil {
		if err := stopBridge(old); err != nil {
			return err
		}
		s.mu.Lock()
		s.list = slices.DeleteFunc(s.list, func(b *openBridge) bool { return b == old })
		s.mu.Unlock()
	}
	if _, wanted := e.sections(c)[name]; !wanted {
		return nil
	}
	b, err := g.makeBridge(context.Background(), e, c, name, patience)
	if err != nil && old != nil {
		var again error
		if b, again = g.makeBridge(context.Background(), e, before, name, patience); again != nil {
			return errors.Join(err, fmt.Errorf("the bridge of before cannot be started again: %w", again))
		}
	} else if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, b)
	g.startBridge(b)
	return err
}

// stopBridge ends a bridge and frees what it bound.
func stopBridge(b *openBridge) error {
	if b.ended != nil {
		b.cancel()
		limit := time.NewTimer(2 * bridgesPatience)
		defer limit.Stop()
		select {
		case <-b.ended:
		case <-limit.C:
			return fmt.Errorf("bridge %s does not stop; restart the gateway", b.bridge.Name())
		}
	}
	_ = b.bridge.Close() // after Run there is nothing left to free
	return nil
}

// bridgeChanged returns what a bridge calls when its status changed: whether it is up is told on its status topic.
func (g *gateway) bridgeChanged(name string) func(bridges.Status) {
	var mu sync.Mutex
	told, up := false, false
	return func(s bridges.Status) {
		mu.Lock()
		defer mu.Unlock()
		if told && s.Up == up {
			return
		}
		told, up = true, s.Up
		g.tellBridge(name, up)
	}
}

// tellBridge publishes the state of a bridge, retained, on the local side and at every cloud.
func (g *gateway) tellBridge(name string, up bool) {
	state := "offline"
	if up {
		state = "online"
	}
	m := g.stateMessage("tidegate/"+g.config.Gateway.ID+"/bridge/"+name+"/status", state)
	g.deliverState(m)
	g.uplinks.tell(m)
}

// stateMessage is a retained message about the gateway or a part of it.
func (g *gateway) stateMessage(topic, state string) message.Message {
	// A struct of three strings cannot fail to encode.
	payload, _ := json.Marshal(struct {
		State   string `json:"state"`
		Since   string `json:"since"`
		Version string `json:"version"`
	}{state, time.Now().UTC().Format(time.RFC3339), buildVersion()})
	return message.Message{
		ID: message.NewID(), Topic: topic, Payload: payload, QoS: 1, Retain: true, ContentType: "application/json", PayloadUTF8: true,
		Source: message.Source{Protocol: message.Self, Client: g.config.Gateway.ID}, Received: time.Now(),
	}
}

func (g *gateway) deliverState(m message.Message) {
	if g.external.attached() {
		g.external.Tell(m)
	}
	if err := g.broker.Deliver(context.Background(), m); err != nil && !errors.Is(err, message.ErrNoMatch) {
		g.log.Warn("publishing the gateway's own status failed", "topic", m.Topic, "err", err)
	}
}

// bridgeStatus is what the admin surface shows of the bridges.
func (g *gateway) bridgeStatus() []admin.BridgeStatus {
	list := []admin.BridgeStatus{}
	for _, b := range g.everyBridge() {
		s := b.bridge.Status()
		list = append(list, admin.BridgeStatus{Name: b.bridge.Name(), Up: s.Up, LastError: s.LastError})
	}
	slices.SortFunc(list, func(a, b admin.BridgeStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// bridgeAddrs are the bound addresses for the ready line: a bridge with several has them numbered from the second on.
func (g *gateway) bridgeAddrs() []any {
	var bound []any
	for _, b := range g.everyBridge() {
		for i, a := range b.bridge.Addrs() {
			key := b.bridge.Name()
			if i > 0 {
				key = fmt.Sprintf("%s.%d", key, i+1)
			}
			bound = append(bound, key, a.String())
		}
	}
	return bound
}

// closeBridges frees what bridges bound that are not run.
func (g *gateway) closeBridges() error {
	var errs []error
	for _, b := range g.everyBridge() {
		errs = append(errs, b.bridge.Close())
	}
	return errors.Join(errs...)
}

// bridgeMetrics shows the metrics of the bridges that there are, tidegate_bridge_up among them.
type bridgeMetrics struct{ every func() []*openBridge }

var bridgeUp = prometheus.NewDesc("tidegate_bridge_up", "1 while the bridge can do its work.", []string{"bridge"}, nil)

// Describe says nothing: bridges come and go.
func (bridgeMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m bridgeMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, b := range m.every() {
		up := 0.0
		if b.bridge.Status().Up {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(bridgeUp, prometheus.GaugeValue, up, b.bridge.Name())
		b.reg.Collect(ch)
	}
}
