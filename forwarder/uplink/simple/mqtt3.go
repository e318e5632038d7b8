package simple

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"tidegate/message"
)

// subackFailure is the only refusal a 3.1.1 SUBACK knows [MQTT-3.9.3-2].
const subackFailure = 0x80

// writeTimeout: a broker that takes no byte for that long counts as lost. The client also blocks for so long at most when
// the connection ends while a message is handed to it.
const writeTimeout = 10 * time.Second

// mqtt3 speaks MQTT 3.1.1.
type mqtt3 struct {
	c    mqtt.Client
	lost *signal
}

func dial3(ctx context.Context, o Options, lost *signal) (driver, error) {
	conn, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	opts := mqtt.NewClientOptions().
		AddBroker("tcp://" + o.Address).
		SetCustomOpenConnectionFn(dialled(conn)).
		SetProtocolVersion(4).
		SetClientID(o.ClientID).
		SetUsername(o.Username).
		SetPassword(o.Password).
		SetKeepAlive(o.KeepAlive).
		SetConnectTimeout(timeout(ctx)).
		SetWriteTimeout(writeTimeout).
		SetAutoReconnect(false).
		SetOrderMatters(true).
		SetConnectionLostHandler(func(mqtt.Client, error) { lost.fire() }).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			o.OnMessage(message.Message{
				Topic: m.Topic(), Payload: m.Payload(), QoS: message.QoS(m.Qos()), Retain: m.Retained(),
			})
		})
	d := &mqtt3{c: mqtt.NewClient(opts), lost: lost}
	if err := d.await(ctx, d.c.Connect()); err != nil {
		_ = conn.Close() // ends the handshake that may still be waiting
		return nil, connectError(err)
	}
	return d, nil
}

// dialled hands the connection that was dialled with the caller's context to the client, which has no context.
func dialled(conn net.Conn) mqtt.OpenConnectionFunc {
	return func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return &lingering{Conn: conn}, nil }
}

// connectError turns the refusals of a 3.1.1 CONNACK [MQTT-3.2.2-5] into a *RefusedError.
func connectError(err error) error {
	for code, refusal := range packets.ConnErrors {
		if code != packets.Accepted && code <= packets.ErrRefusedNotAuthorised && errors.Is(err, refusal) {
			return &RefusedError{What: "connection", Code: code, Reason: refusal.Error()}
		}
	}
	return fmt.Errorf("simple: connect: %w", err)
}

func (d *mqtt3) publish(_ context.Context, m message.Message) (func(context.Context) error, error) {
	payload := m.Payload
	if payload == nil {
		payload = []byte{}
	}
	token := d.c.Publish(m.Topic, byte(m.QoS), m.Retain, payload)
	return func(ctx context.Context) error { return asLost(d.await(ctx, token)) }, nil
}

func (d *mqtt3) subscribe(ctx context.Context, filters []string, qos message.QoS) error {
	wanted := make(map[string]byte, len(filters))
	for _, f := range filters {
		wanted[f] = byte(qos)
	}
	token := d.c.SubscribeMultiple(wanted, nil)
	err := d.await(ctx, token)
	if t, ok := token.(*mqtt.SubscribeToken); ok {
		for _, f := range filters {
			if code, answered := t.Result()[f]; answered && code >= subackFailure {
				return &RefusedError{What: "subscription to " + f, Code: code, Reason: "the broker does not allow it"}
			}
		}
	}
	return asLost(err)
}

// asLost tells what a token that failed after the handshake means: 3.1.1 has no refusals but SUBACK's, so the connection
// is gone. The context's errors stay what they are.
func asLost(err error) error {
	if err == nil || errors.Is(err, ErrLost) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// await waits for a token, the end of the connection or of ctx.
func (d *mqtt3) await(ctx context.Context, t mqtt.Token) error {
	select {
	case <-t.Done():
	case <-d.lost.c:
		return ErrLost
	case <-ctx.Done():
		return ctx.Err()
	}
	return t.Error()
}

// disconnect lets what was written leave for at most a second; it does not wait for acknowledgements.
func (d *mqtt3) disconnect() { d.c.Disconnect(1000) }

// timeout is what ctx leaves for the handshake; the client wants a duration.
func timeout(ctx context.Context) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return max(time.Until(end), time.Millisecond)
	}
	return 30 * time.Second
}
