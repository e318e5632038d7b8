package simple

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"

	"tidegate/message"
)

// firstError is the lowest reason code that means failure.
const firstError = 0x80

// mqtt5 speaks MQTT 5.
type mqtt5 struct {
	c    *paho.Client
	acks *acks
	lost *signal
}

func dial5(ctx context.Context, o Options, lost *signal) (driver, error) {
	conn, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	d := &mqtt5{acks: &acks{SessionManager: state.NewInMemory()}, lost: lost}
	d.c = paho.NewClient(paho.ClientConfig{
		Conn:               locked(conn),
		Session:            d.acks,
		PacketTimeout:      time.Hour, // every call has a context of its own, and this bound counts waiting for a slot as well
		OnClientError:      func(error) { lost.fire() },
		OnServerDisconnect: func(*paho.Disconnect) { lost.fire() },
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			o.OnMessage(received(p.Packet))
			return true, nil
		}},
	})
	ack, err := d.c.Connect(ctx, &paho.Connect{
		ClientID:     o.ClientID,
		CleanStart:   true,
		KeepAlive:    uint16(min(o.KeepAlive/time.Second, 1<<16-1)),
		Username:     o.Username,
		UsernameFlag: o.Username != "",
		Password:     []byte(o.Password),
		PasswordFlag: o.Password != "",
	})
	if err != nil {
		_ = d.acks.Close()
		if ack != nil && ack.ReasonCode >= firstError {
			text := ""
			if ack.Properties != nil {
				text = ack.Properties.ReasonString
			}
			return nil, &RefusedError{What: "connection", Code: ack.ReasonCode, Reason: reason(ack.ReasonCode, text)}
		}
		return nil, fmt.Errorf("simple: connect: %w", err)
	}
	return d, nil
}

// locked returns conn as the client wants it: it holds the lock while it writes a packet, as a ping can be due in the
// middle of a message. The embedded type keeps the way in which net writes many buffers at once.
func locked(conn net.Conn) net.Conn {
	last := &lingering{Conn: conn}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &lockedTCP{TCPConn: tcp, last: last}
	}
	return packets.NewThreadSafeConn(last)
}

type lockedTCP struct {
	*net.TCPConn
	sync.Mutex
	last *lingering
}

// Close ends the connection in order.
func (c *lockedTCP) Close() error { return c.last.Close() }

func received(p *paho.Publish) message.Message {
	m := message.Message{Topic: p.Topic, Payload: p.Payload, QoS: message.QoS(p.QoS), Retain: p.Retain}
	if p.Properties != nil {
		m.ContentType = p.Properties.ContentType
		m.ResponseTopic = p.Properties.ResponseTopic
		m.CorrelationData = p.Properties.CorrelationData
		for _, u := range p.Properties.User {
			m.Properties = append(m.Properties, message.Property{Key: u.Key, Value: u.Value})
		}
	}
	return m
}

func (d *mqtt5) publish(ctx context.Context, m message.Message) (func(context.Context) error, error) {
	p := &paho.Publish{Topic: m.Topic, Payload: m.Payload, QoS: byte(m.QoS), Retain: m.Retain, Properties: properties(m)}
	answer := d.acks.expect()
	_, err := d.c.PublishWithOptions(ctx, p, paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
	switch {
	case errors.Is(err, paho.ErrInvalidArguments):
		return nil, &RefusedError{What: "message to " + m.Topic, Reason: err.Error()}
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	case m.QoS == 0:
		return func(context.Context) error { return nil }, nil
	}
	return func(ctx context.Context) error {
		select {
		case a := <-answer:
			return acknowledged(m.Topic, a)
		case <-d.lost.c:
			return ErrLost
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}

func properties(m message.Message) *paho.PublishProperties {
	p := &paho.PublishProperties{
		ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData,
	}
	for _, u := range m.Properties {
		p.User = append(p.User, paho.UserProperty{Key: u.Key, Value: u.Value})
	}
	return p
}

// acknowledged reads the packet that ended an exchange: PUBACK, PUBCOMP, or a PUBREC that refused [MQTT-4.3.3-4].
func acknowledged(topic string, a packets.ControlPacket) error {
	var code byte
	var props *packets.Properties
	switch p := a.Content.(type) {
	case *packets.Puback:
		code, props = p.ReasonCode, p.Properties
	case *packets.Pubrec:
		code, props = p.ReasonCode, p.Properties
	case *packets.Pubcomp:
		code, props = p.ReasonCode, p.Properties
	default:
		return ErrLost
	}
	if code < firstError {
		return nil
	}
	text := ""
	if props != nil {
		text = props.ReasonString
	}
	return &RefusedError{What: "message to " + topic, Code: code, Reason: reason(code, text)}
}

func (d *mqtt5) subscribe(ctx context.Context, filters []string, qos message.QoS) error {
	s := &paho.Subscribe{}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: byte(qos)})
	}
	ack, err := d.c.Subscribe(ctx, s)
	if ack != nil {
		for i, code := range ack.Reasons {
			if code >= firstError && i < len(filters) {
				return &RefusedError{What: "subscription to " + filters[i], Code: code, Reason: reason(code, "")}
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

func (d *mqtt5) disconnect() {
	_ = d.c.Disconnect(&paho.Disconnect{})
	_ = d.acks.Close()
}

// acks is the client's session with one change: the answer to a PUBLISH goes to the channel that expect handed out, so
// that many can be in flight in the order they were written. The client's own Publish waits for each one.
type acks struct {
	session.SessionManager
	mu   sync.Mutex
	next chan packets.ControlPacket
}

// expect returns the channel on which the answer to the next PUBLISH comes. Publishes are made one at a time.
func (a *acks) expect() <-chan packets.ControlPacket {
	c := make(chan packets.ControlPacket, 1)
	a.mu.Lock()
	a.next = c
	a.mu.Unlock()
	return c
}

// AddToSession is called with every packet that wants an answer, before it is written.
func (a *acks) AddToSession(ctx context.Context, p session.Packet, resp chan<- packets.ControlPacket) error {
	if p.Type() == packets.PUBLISH {
		a.mu.Lock()
		resp = a.next
		a.mu.Unlock()
	}
	return a.SessionManager.AddToSession(ctx, p, resp)
}

// reason gives a reason code in words; text is what the broker said itself.
func reason(code byte, text string) string {
	if text != "" {
		return text
	}
	words := map[byte]string{
		0x80: "unspecified error",
		0x83: "implementation specific error",
		0x84: "the broker does not speak MQTT 5",
		0x85: "client identifier not valid",
		0x86: "bad user name or password",
		0x87: "not authorized",
		0x88: "server unavailable",
		0x89: "server busy",
		0x8a: "banned",
		0x8f: "topic filter invalid",
		0x90: "topic name invalid",
		0x91: "packet identifier in use",
		0x95: "packet too large",
		0x97: "quota exceeded: the broker cannot take the message now",
		0x99: "payload format invalid",
		0x9a: "retained messages not supported",
		0x9b: "QoS not supported",
		0x9e: "shared subscriptions not supported",
		0xa2: "wildcard subscriptions not supported",
	}
	if w, ok := words[code]; ok {
		return w
	}
	return "reason code " + strconv.Itoa(int(code))
}
