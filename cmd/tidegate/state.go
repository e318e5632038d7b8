package main

import (
	"errors"
	"fmt"
	"time"

	"tidegate/admin"
	"tidegate/admin/metrics"
	"tidegate/message"
)

// gateway is the admin.Source.

// Ready returns why devices cannot hand over messages; nil when they can.
func (g *gateway) Ready() error {
	if !g.up.Load() {
		return errors.New("the listeners are not up")
	}
	if err := g.buffer.Stats().LastError; err != nil {
		return fmt.Errorf("the disk fails: %w", err)
	}
	if g.external.attached() {
		if s := g.external.Status(); !s.Up {
			return fmt.Errorf("the broker of the devices: %s", s.LastError)
		}
	}
	return nil
}

// Warnings are what somebody has to look at though the gateway works.
func (g *gateway) Warnings() []string {
	var list []string
	for _, c := range g.certificates() {
		list = append(list, c.CertificateWarnings(time.Now())...)
	}
	return list
}

// certificates are those of all who listen with TLS.
func (g *gateway) certificates() []certificates {
	all := []certificates{g.broker}
	if g.admin != nil {
		all = append(all, g.admin)
	}
	return all
}

// leastPayload is how much of records has to be on disk before it is said how much was written for each byte: files are made in their
// full size.
const leastPayload = 1 << 20

// Status is what `tidegate status` shows.
func (g *gateway) Status() admin.Status {
	disk := g.buffer.Stats()
	s := admin.Status{
		Gateway: g.config.Gateway.ID, Version: buildVersion(), UptimeS: int64(time.Since(g.started).Seconds()),
		Uplinks: []admin.UplinkStatus{}, Bridges: g.bridgeStatus(),
		Clients: g.broker.Clients(), Sessions: g.broker.Sessions(), Warnings: g.Warnings(), Reload: g.lastReload(),
		Buffer: admin.BufferStatus{Writable: disk.LastError == nil, NoSpace: disk.NoSpace, DiskBytes: disk.Bytes},
	}
	if disk.PayloadBytes >= leastPayload {
		s.Buffer.WrittenPerByte = float64(disk.WrittenBytes) / float64(disk.PayloadBytes)
	}
	if disk.LastError != nil {
		s.Buffer.LastError = disk.LastError.Error()
	}
	if err := g.Ready(); err != nil {
		s.LastError = err.Error()
	}
	s.Ready = s.LastError == ""
	dead := map[string]uint64{}
	for _, q := range g.buffer.Queues() {
		s.Buffer.Damaged += q.Damaged
		if uplink, _, kind := metrics.SplitQueue(q.Name); kind == metrics.DeadLetters {
			dead[uplink] = q.Records
		}
	}
	for _, u := range g.forwarder.Status() {
		s.Uplinks = append(s.Uplinks, admin.UplinkStatus{
			Name: u.Name, Connected: u.Connected, Server: u.Server, InFlight: u.InFlight, Window: u.Window,
			Granted: u.Granted, Records: u.Records, Bytes: u.Bytes,
			OldestS: u.OldestS, Delivered: u.Delivered, Evicted: u.Evicted, Dead: dead[u.Name], LastError: u.LastError, Note: u.Note,
		})
	}
	return s
}

// announce publishes the state of the gateway, retained, on the local side. The uplinks tell the cloud themselves.
func (g *gateway) announce(state string) {
	g.deliverState(g.gatewayState(state))
}

// gatewayState is the message that says so.
func (g *gateway) gatewayState(state string) message.Message {
	return g.stateMessage("tidegate/"+g.config.Gateway.ID+"/status", state)
}
