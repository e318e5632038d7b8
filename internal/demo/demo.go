// Package demo is the main job in one process, for `tidegate demo`: simulated MQTT, CoAP and OPC UA devices, the gateway, and
// a cloud broker behind a line that is taken away and brought back. It counts every message by its number and says what
// became of it.
//
// It knows no part of the gateway: that, the cloud broker and the MQTT client are handed in by cmd/tidegate, and everything
// meets over sockets of 127.0.0.1. The CoAP devices (coap.go) and the OPC UA server (plc.go) are made here from the codecs of
// the libraries; line.go is the line, tally.go the counting. Start reading at Run.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidegate/message"
)

// How long the parts of the story take. All of it stays below 30 s, also on a small machine.
const (
	onlineFor  = 2500 * time.Millisecond
	offlineFor = 3500 * time.Millisecond
	backFor    = 1500 * time.Millisecond
	// settleFor bounds the wait for the acknowledgements of what the devices sent last, drainFor that for the cloud to get
	// everything after the line is back.
	settleFor = 3 * time.Second
	drainFor  = 15 * time.Second
)

// Gateway is a gateway that runs.
type Gateway interface {
	// Addr returns the bound address of listener.NAME or of a bridge, HOST:PORT.
	Addr(name string) string
	// Stop ends it in order.
	Stop() error
}

// Broker is a cloud broker that runs.
type Broker interface {
	// Addr is HOST:PORT.
	Addr() string
	Stop() error
}

// Client is an MQTT device that is connected.
type Client interface {
	// Publish sends with QoS 1; acked is called once, with nil when the broker acknowledged.
	Publish(ctx context.Context, topic string, payload []byte, acked func(error)) error
	Close()
}

// Options are what a demo is made of.
type Options struct {
	// Gateway starts a gateway from a configuration file and returns when it is ready.
	Gateway func(ctx context.Context, file string) (Gateway, error)
	// Cloud starts an MQTT broker on a free port of 127.0.0.1 and calls got for every message that reaches it, before it
	// acknowledges the message.
	Cloud func(ctx context.Context, got func(topic string, payload []byte)) (Broker, error)
	// MQTT connects a device to a broker.
	MQTT func(ctx context.Context, addr, client string) (Client, error)
	// Dir is the folder for the configuration and the data of the gateway; it must exist.
	Dir string
	// Say gets the story, a line at a time.
	Say io.Writer
	Log *slog.Logger
}

// Report is what a demo counted.
type Report struct {
	Protocols map[message.Protocol]Count `json:"protocols"`
	// Lost counts messages that a device was told were safe and that never arrived.
	Lost int `json:"lost"`
}

// configuration is that of the gateway; what is open are the addresses of the OPC UA server and of the line.
const configuration = `version = 1

[gateway]
  id       = "demo"
  data_dir = "data"

[log]
  level = "warn"

[listener.devices]
  listen = "mqtt://127.0.0.1:0"

[coap]
  listen = ["coap://127.0.0.1:0"]

[opcua.plc]
  endpoint            = "opc.tcp://%s"
  publishing_interval = "100ms"
  sampling_interval   = "50ms"
%s
[route.all]
  from = ["demo/#"]

[uplink.cloud]
  servers = ["mqtt://%s"]
`

// parts are what runs during a demo, with what ends them.
type parts struct {
	cloud   Broker
	line    *line
	plc     *plc
	gateway Gateway
}

// Run plays the story and returns what was counted. An error means that the story could not be played to its end; what was
// counted until then is returned all the same, but nothing as lost: what had not arrived yet was on disk.
func Run(ctx context.Context, o Options) (Report, error) {
	d := &demo{Options: o, tally: newTally(), began: time.Now()}
	p, err := d.start(ctx)
	if err == nil {
		err = d.play(ctx, p)
	}
	r := d.tally.report()
	if err != nil {
		r.forgive()
	}
	return r, errors.Join(err, d.stop(p))
}

type demo struct {
	Options
	tally *tally
	began time.Time
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Say, "%5.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// start starts everything but the devices that send by themselves. What it started before an error is in parts.
func (d *demo) start(ctx context.Context) (p parts, err error) {
	if p.cloud, err = d.Cloud(ctx, d.tally.arrived); err != nil {
		return p, fmt.Errorf("start the cloud broker: %w", err)
	}
	if p.line, err = newLine(p.cloud.Addr()); err != nil {
		return p, fmt.Errorf("start the line to the cloud: %w", err)
	}
	if p.plc, err = newPLC(ctx, d.tally, d.Log); err != nil {
		return p, fmt.Errorf("start the OPC UA server: %w", err)
	}
	file := filepath.Join(d.Dir, "tidegate.toml")
	text := fmt.Sprintf(configuration, p.plc.addr(), p.plc.nodesTOML(), p.line.addr())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return p, fmt.Errorf("write the configuration of the gateway: %w", err)
	}
	d.say("an MQTT cloud broker, an OPC UA server, and a gateway with the configuration %s", file)
	if p.gateway, err = d.Gateway(ctx, file); err != nil {
		return p, fmt.Errorf("start the gateway: %w", err)
	}
	return p, nil
}

// stop ends what start started.
func (d *demo) stop(p parts) error {
	var errs []error
	if p.gateway != nil {
		errs = append(errs, p.gateway.Stop())
	}
	if p.plc != nil {
		p.plc.close()
	}
	if p.line != nil {
		p.line.close()
	}
	if p.cloud != nil {
		errs = append(errs, p.cloud.Stop())
	}
	return errors.Join(errs...)
}

// play lets the devices send while the line goes away and comes back, and waits until the cloud has everything.
func (d *demo) play(ctx context.Context, p parts) error {
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	var devices sync.WaitGroup
	defer devices.Wait()
	defer stopSending()
	mqtt, coap, failed := p.gateway.Addr("listener.devices"), p.gateway.Addr("coap"), make(chan error, mqttDevices+coapDevices)
	for i := range mqttDevices {
		devices.Go(func() { failed <- d.mqttDevice(ctx, sending, mqtt, i) }) // ends with sending
	}
	for i := range coapDevices {
		devices.Go(func() { failed <- d.coapDevice(ctx, sending, coap, i) }) // ends with sending
	}
	devices.Go(func() { p.plc.count(sending) }) // ends with sending

	d.say("devices send: %d over MQTT, %d over CoAP, %d values over OPC UA", mqttDevices, coapDevices, plcNodes)
	if !pause(ctx, onlineFor) {
		return context.Cause(ctx)
	}
	d.progress()
	p.line.cut()
	d.say("the line to the cloud is cut; devices go on")
	if !pause(ctx, offlineFor) {
		return context.Cause(ctx)
	}
	d.progress()
	p.line.mend()
	d.say("the line is back")
	if !pause(ctx, backFor) {
		return context.Cause(ctx)
	}
	stopSending()
	devices.Wait()
	for range mqttDevices + coapDevices {
		if err := <-failed; err != nil {
			return err
		}
	}
	d.tally.await(ctx, settleFor, func() bool { return d.tally.settled() && p.plc.idle() })
	d.say("devices have stopped")
	d.tally.await(ctx, drainFor, d.tally.complete)
	d.progress()
	return context.Cause(ctx)
}

// progress says how far the cloud is behind the devices.
func (d *demo) progress() {
	r := d.tally.report()
	acked, delivered := 0, 0
	for _, c := range r.Protocols {
		acked += c.Acked
		delivered += c.Delivered
	}
	d.say("       acknowledged to devices %6d, arrived at the cloud %6d", acked, delivered)
}

// pause waits; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
