package demo

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"tidegate/message"
)

// What the devices are, and how often each sends.
const (
	mqttDevices = 3
	mqttEvery   = 20 * time.Millisecond
	coapDevices = 2
	coapEvery   = 40 * time.Millisecond
)

// mqttDevice publishes the numbers from 1 on until sending ends, and waits for the last acknowledgements. ctx ends the demo.
func (d *demo) mqttDevice(ctx, sending context.Context, addr string, i int) error {
	name := fmt.Sprintf("sensor%d", i+1)
	topic := topic(message.MQTT, name)
	client, err := d.MQTT(ctx, addr, name)
	if err != nil {
		return fmt.Errorf("connect the MQTT device %s: %w", name, err)
	}
	defer client.Close()
	for pause(sending, mqttEvery) {
		n := d.tally.sent(topic)
		err := client.Publish(ctx, topic, []byte(strconv.Itoa(n)), func(err error) { d.tally.answered(topic, n, err == nil) })
		if err != nil {
			d.tally.answered(topic, n, false)
			return fmt.Errorf("publish as MQTT device %s: %w", name, err)
		}
	}
	d.tally.await(ctx, settleFor, func() bool { return d.tally.settledFor(topic) })
	return nil
}

// coapDevice is the same over CoAP: one confirmable POST after the other.
func (d *demo) coapDevice(ctx, sending context.Context, addr string, i int) error {
	name := fmt.Sprintf("meter%d", i+1)
	topic := topic(message.CoAP, name)
	client, err := dialCoAP(addr)
	if err != nil {
		return fmt.Errorf("connect the CoAP device %s: %w", name, err)
	}
	defer client.close()
	for pause(sending, coapEvery) {
		n := d.tally.sent(topic)
		err := client.post(ctx, topic, []byte(strconv.Itoa(n)))
		d.tally.answered(topic, n, err == nil)
		if err != nil {
			return fmt.Errorf("post as CoAP device %s: %w", name, err)
		}
	}
	return nil
}
