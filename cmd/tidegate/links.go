package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"tidegate/config"
	"tidegate/forwarder"
	"tidegate/forwarder/uplink"
	"tidegate/message"
)

// The forwarder declares what it needs of an uplink and knows no client; package uplink knows no forwarder. What follows
// makes one into the other.

// uplinkPort is an uplink as the forwarder sees it.
type uplinkPort struct{ client *uplink.Client }

func (u uplinkPort) Run(ctx context.Context, commands message.Handler) error {
	return u.client.Run(ctx, commands)
}

func (u uplinkPort) Connected(ctx context.Context) (forwarder.Link, error) {
	l, err := u.client.Connected(ctx)
	if err != nil {
		return nil, err
	}
	return linkPort{l}, nil
}

func (u uplinkPort) Status() forwarder.LinkStatus {
	s := u.client.Status()
	return forwarder.LinkStatus{Connected: s.Connected, Server: s.Server, Window: s.Window, Granted: s.Granted, LastError: s.LastError, Note: s.Note}
}

// uplinks are the connections to the clouds, by name, with what is told over each of them. A new one begins with what the
// others were told.
type uplinks struct {
	mu      sync.Mutex
	clients map[string]*uplink.Client
	told    map[string]message.Message // by topic
}

// tell tells every cloud, and those that come later.
func (u *uplinks) tell(m message.Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.told == nil {
		u.told = map[string]message.Message{}
	}
	u.told[m.Topic] = m
	for _, c := range u.clients {
		c.Tell(m)
	}
}

// set puts fresh connections in place of those of the same name, and lets go of those of which keep has no name.
func (u *uplinks) set(fresh map[string]*uplink.Client, keep map[string]config.Uplink) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.clients == nil {
		u.clients = map[string]*uplink.Client{}
	}
	for name, c := range fresh {
		u.clients[name] = c
		for _, m := range u.told {
			c.Tell(m)
		}
	}
	for name, c := range u.clients {
		if _, ok := keep[name]; !ok {
			c.Forget()
			delete(u.clients, name)
		}
	}
}

// newUplinks makes the connections of the named uplinks of c. They connect when they are run.
func (g *gateway) newUplinks(c *config.Config, names []string) (map[string]*uplink.Client, map[string]forwarder.Uplink, error) {
	clients, ports := map[string]*uplink.Client{}, map[string]forwarder.Uplink{}
	for _, name := range names {
		client, err := uplink.New(name, c.Uplinks[name], c.Gateway.ID, g.log, g.reg)
		if err != nil {
			return nil, nil, err
		}
		client.SetVersion(buildVersion())
		clients[name], ports[name] = client, uplinkPort{client}
	}
	return clients, ports, nil
}

// linkPort is one connection as the forwarder sees it.
type linkPort struct{ uplink.Link }

func (l linkPort) Send(ctx context.Context, m message.Message, id forwarder.Identity, done func(error)) error {
	return l.Link.Send(ctx, m, uplink.Identity{ID: id.ID, Seq: id.Seq, Src: id.Source, Up: id.Uplink, Exactly: id.Exactly}, func(err error) {
		done(asForwarderError(err))
	})
}

// asForwarderError says in the forwarder's words what the cloud answered. Its other errors mean "no answer", as they do
// here.
func asForwarderError(err error) error {
	var refused *uplink.RefusedError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, uplink.ErrQuota):
		return fmt.Errorf("%w: %w", forwarder.ErrQuota, err)
	case errors.Is(err, uplink.ErrNotAuthorized):
		return fmt.Errorf("%w: %w", forwarder.ErrNotAuthorized, err)
	case errors.As(err, &refused):
		return refusal{refused}
	}
	return err
}

// refusal is a refusal with a reason code.
type refusal struct{ *uplink.RefusedError }

// Code is the reason code of MQTT 5.
func (r refusal) Code() byte { return r.RefusedError.Code }

// Local says that the uplink refused it, without sending it.
func (r refusal) Local() bool { return r.RefusedError.Local }
