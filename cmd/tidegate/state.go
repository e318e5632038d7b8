package main

import (
	"errors"
	"fmt"
	"time"

	"tidegate/admin"
	"tidegate/admin/metrics"
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
	return nil
}

// Warnings are what somebody has to look at though the gateway works.
func (g *gateway) Warnings() []string { return g.broker.CertificateWarnings(time.Now()) }

// Status is what `tidegate status` shows.
func (g *gateway) Status() admin.Status {
	disk := g.buffer.Stats()
	s := admin.Status{
		Gateway: g.config.Gateway.ID, Version: buildVersion(), UptimeS: int64(time.Since(g.started).Seconds()),
		Uplinks: []admin.UplinkStatus{}, Bridges: g.bridgeStatus(),
		Clients: g.broker.Clients(), Sessions: g.broker.Sessions(), Warnings: g.Warnings(), Reload: g.lastReload(),
		Buffer: admin.BufferStatus{Writable: disk.LastError == nil, NoSpace: disk.NoSpace, DiskBytes: disk.Bytes},
	}
	if disk.PayloadBytes > 0 {
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
	g.deliverState(g.stateMessage("tidegate/"+g.config.Gateway.ID+"/status", state))
}
