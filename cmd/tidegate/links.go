package main

import (
	"context"
	"errors"
	"fmt"

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
