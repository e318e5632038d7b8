package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/admin"
	"tidegate/bridges"
	"tidegate/bridges/coap"
	"tidegate/bridges/external"
	"tidegate/bridges/opcua"
	"tidegate/config"
	"tidegate/message"
)

// bridgeEntry is one section of the configuration and what makes the bridges that it asks for; none when it is absent. What
// a failed call bound is freed again.
type bridgeEntry struct {
	section string
	make    func(g *gateway, reg prometheus.Registerer) ([]bridges.Bridge, error)
}

// bridgeTable lists every kind of bridge, in the order in which they are made. The broker of the user's own comes first: what
// the others publish goes there as well.
func bridgeTable() []bridgeEntry {
	return []bridgeEntry{{"broker.external", makeExternal}, {"coap", makeCoAP}, {"opcua", makeOPCUA}}
}

func makeExternal(g *gateway, reg prometheus.Registerer) ([]bridges.Bridge, error) {
	if g.config.Broker.Mode != config.ModeExternal {
		return nil, nil
	}
	b, err := external.New(*g.config.Broker.External, external.Options{
		Bus: g.broker, Take: g.broker.Take, Local: g.broker.Deliver, Dir: g.config.Gateway.DataDir,
		MaxPacket: int(g.config.Broker.MaxPacket), QueueBytes: int64(g.config.Broker.SessionQueue), State: g.gatewayState,
		Log: g.log.With("part", "broker"), Metrics: reg, OnStatus: g.bridgeChanged(external.Name),
		OnRefuse: func(err error) { g.broker.Refused(message.MQTT, err) },
	})
	if err != nil {
		return nil, err
	}
	g.external = b
	return []bridges.Bridge{b}, nil
}

// bus is what the other bridges publish to.
func (g *gateway) bus() bridges.Bus {
	if g.external != nil {
		return g.external.Share(g.broker)
	}
	return g.broker
}

// deliver hands a command to the local side. The broker of the user's own comes first: while it is away the cloud offers the
// command again and again, and a bridge must not carry it out each time.
func (g *gateway) deliver(ctx context.Context, m message.Message) (message.Ticket, error) {
	if g.external == nil {
		return g.broker.HandOver(ctx, m)
	}
	there := g.external.Deliver(ctx, m)
	if there != nil && !errors.Is(there, message.ErrNoMatch) {
		return message.Ticket{}, there
	}
	t, here := g.broker.HandOver(ctx, m)
	if errors.Is(here, message.ErrNoMatch) {
		return message.Ticket{}, there
	}
	return t, here
}

func makeCoAP(g *gateway, reg prometheus.Registerer) ([]bridges.Bridge, error) {
	if g.config.CoAP == nil {
		return nil, nil
	}
	b, err := coap.New(*g.config.CoAP, coap.Options{
		Bus: g.bus(), ACL: g.users, Anonymous: *g.config.Auth.Anonymous, MaxPayload: int(g.config.Broker.MaxPacket),
		Log: g.log.With("part", "coap"), Metrics: reg, OnStatus: g.bridgeChanged("coap"),
		OnRefuse: func(err error) { g.broker.Refused(message.CoAP, err) },
	})
	if err != nil {
		return nil, err
	}
	return []bridges.Bridge{b}, nil
}

func makeOPCUA(g *gateway, reg prometheus.Registerer) ([]bridges.Bridge, error) {
	var made []bridges.Bridge
	for _, name := range slices.Sorted(maps.Keys(g.config.OPCUA)) {
		b, err := opcua.New(name, g.config.OPCUA[name], opcua.Options{
			Bus: g.bus(), Dir: opcuaDir(g.config), GatewayID: g.config.Gateway.ID,
			Log: g.log.With("part", "opcua", "bridge", name), Metrics: reg, OnStatus: g.bridgeChanged(name), MayReply: g.mayReply,
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opcua.%s: %w", name, err), closeBridges(made))
		}
		made = append(made, b)
	}
	return made, nil
}

// mayReply reports whether whoever sent a message may have an answer published under topic: the cloud may, a device where it
// may publish itself.
func (g *gateway) mayReply(from message.Source, topic string) bool {
	return from.Protocol == message.Uplink || g.users.Allow(access.Identity{User: from.User, Client: from.Client}, access.Publish, topic)
}

// opcuaDir is where certificates of OPC UA live: the gateway's own and those of the servers it trusts.
func opcuaDir(c *config.Config) string { return filepath.Join(c.Gateway.DataDir, "opcua") }

// openBridges makes every bridge. A try that found an address taken registers its metrics in a registry of its own, of which
// only the last one is shown.
func (g *gateway) openBridges(ctx context.Context, reg *prometheus.Registry, s seams) error {
	for _, e := range bridgeTable() {
		var made []bridges.Bridge
		var own *prometheus.Registry
		err := handOver(ctx, s.patience, g.log, "the addresses of ["+e.section+"]", func() (err error) {
			own = prometheus.NewRegistry()
			made, err = e.make(g, own)
			return err
		})
		if err != nil {
			return &startError{exitFailed, "correct [" + e.section + "], choose another address, or stop what uses it", err}
		}
		if err := reg.Register(own); err != nil {
			return err
		}
		g.bridges = append(g.bridges, made...)
	}
	for _, b := range g.bridges {
		up := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tidegate_bridge_up", Help: "1 while the bridge can do its work.", ConstLabels: prometheus.Labels{"bridge": b.Name()},
		}, func() float64 {
			if b.Status().Up {
				return 1
			}
			return 0
		})
		if err := reg.Register(up); err != nil {
			return err
		}
	}
	return nil
}

// ownBridges are the bridges but for the broker of the user's own: that is a part by itself, which stops after those that
// publish to it.
func (g *gateway) ownBridges() []bridges.Bridge {
	return slices.DeleteFunc(slices.Clone(g.bridges), func(b bridges.Bridge) bool { return b.Name() == external.Name })
}

// runBridges runs these bridges until ctx ends, and tells that they are offline when they have ended. They are independent:
// their peers may take their time to be let go, so they stop together.
func (g *gateway) runBridges(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	list := g.ownBridges()
	errs := make([]error, len(list))
	var running sync.WaitGroup
	for i, b := range list {
		running.Go(func() { // ends with ctx
			defer cancel() // one that cannot go on takes the gateway with it, and a service manager starts that again
			if err := b.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				errs[i] = fmt.Errorf("bridge %s: %w", b.Name(), err)
			}
			g.tellBridge(b.Name(), false)
		})
	}
	running.Wait()
	return errors.Join(errs...)
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
	for _, u := range g.uplinks {
		u.Tell(m)
	}
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
	if g.external != nil {
		g.external.Tell(m)
	}
	if err := g.broker.Deliver(context.Background(), m); err != nil && !errors.Is(err, message.ErrNoMatch) {
		g.log.Warn("publishing the gateway's own status failed", "topic", m.Topic, "err", err)
	}
}

// bridgeStatus is what the admin surface shows of the bridges.
func (g *gateway) bridgeStatus() []admin.BridgeStatus {
	list := []admin.BridgeStatus{}
	for _, b := range g.bridges {
		s := b.Status()
		list = append(list, admin.BridgeStatus{Name: b.Name(), Up: s.Up, LastError: s.LastError})
	}
	slices.SortFunc(list, func(a, b admin.BridgeStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// bridgeAddrs are the bound addresses for the ready line: a bridge with several has them numbered from the second on.
func (g *gateway) bridgeAddrs() []any {
	var bound []any
	for _, b := range g.bridges {
		for i, a := range b.Addrs() {
			key := b.Name()
			if i > 0 {
				key = fmt.Sprintf("%s.%d", key, i+1)
			}
			bound = append(bound, key, a.String())
		}
	}
	return bound
}

// closeBridges frees what bridges bound that are not run.
func closeBridges(list []bridges.Bridge) error {
	var errs []error
	for _, b := range list {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
