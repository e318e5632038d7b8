package main

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges"
	"tidegate/bridges/external"
	"tidegate/config"
	"tidegate/message"
)

// home is the broker of the user's own, in place of the embedded one. It is a bridge, and a part by itself that stops after the bridges
// that publish to it. It does not change while the gateway runs. The zero value is that of a gateway without one.
type home struct {
	*external.Bridge
	open *openBridge // the same, for its status and metrics
}

// attached says whether there is one.
func (h home) attached() bool { return h.Bridge != nil }

// openHome makes it where the configuration asks for one, before the other bridges.
func (g *gateway) openHome(ctx context.Context, s seams) error {
	if g.config.Broker.Mode != config.ModeExternal {
		return nil
	}
	reg := prometheus.NewRegistry()
	b, err := external.New(*g.config.Broker.External, external.Options{
		Bus: g.broker, Take: g.broker.Take, Local: g.broker.Deliver, Dir: g.config.Gateway.DataDir,
		MaxPacket: int(g.config.Broker.MaxPacket), QueueBytes: int64(g.config.Broker.SessionQueue), State: g.gatewayState,
		Log: g.log.With("part", "broker"), Metrics: reg, OnStatus: g.bridgeChanged(external.Name),
		OnRefuse: func(err error) { g.broker.Refused(message.MQTT, err) },
	})
	if err != nil {
		return &startError{exitFailed, "correct [broker.external]", err}
	}
	g.external = home{b, &openBridge{kind: "broker.external", bridge: b, reg: reg}}
	return nil
}

// everyBridge returns the bridges there are, the broker of the user's own among them.
func (g *gateway) everyBridge() []*openBridge {
	all := g.bridges.all()
	if g.external.attached() {
		all = append(all, g.external.open)
	}
	return all
}

// bus is what the other bridges publish to.
func (g *gateway) bus() bridges.Bus {
	if g.external.attached() {
		return g.external.Share(g.broker)
	}
	return g.broker
}

// deliver hands a command to the local side. The broker of the user's own comes first: while it is away the cloud offers the
// command again and again, and a bridge must not carry it out each time.
func (g *gateway) deliver(ctx context.Context, m message.Message) (message.Ticket, error) {
	if !g.external.attached() {
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
