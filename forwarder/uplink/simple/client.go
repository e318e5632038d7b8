// Package simple is a small MQTT client for the commands pub and sub: connect once, publish, subscribe, close.
//
// It never reconnects and keeps nothing on disk; what an uplink needs lives one folder up. MQTT 3.1.1 and 5 stand behind
// one driver interface (mqtt3.go, mqtt5.go), both on the paho clients. Start reading here.
package simple

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"tidegate/message"
)

// window bounds the messages of one client that wait for their acknowledgement; Publish blocks beyond it. It is what
// mosquitto_pub uses: a 3.1.1 broker cannot say how many it takes, and Mosquitto closes a client that has more QoS 2
// messages in flight than that.
const window = 20

// Versions of the protocol, as the configuration writes them.
const (
	V311 = "3.1.1"
	V5   = "5"
)

// ErrLost: the connection ended before the answer came; whether the broker took the message is not known.
var ErrLost = errors.New("the connection was lost")

// RefusedError: the broker was reached and said no.
type RefusedError struct {
	What   string // what was asked: "connection", "subscription to a/#", "message to a/b"
	Code   byte   // reason code of MQTT 5, return code of 3.1.1; 0 where there was none
	Reason string // in words
}

func (e *RefusedError) Error() string {
	if e.Code == 0 {
		return fmt.Sprintf("%s refused: %s", e.What, e.Reason)
	}
	return fmt.Sprintf("%s refused: %s (0x%02x)", e.What, e.Reason, e.Code)
}

// Options say whom to reach and as whom.
type Options struct {
	Address  string // HOST:PORT
	Version  string // V311 or V5; empty means V311
	ClientID string // empty: a random one
	Username string
	Password string
	TLS      *tls.Config // nil: not encrypted
	// KeepAlive between control packets; 0 means 60 s, at most 18 h.
	KeepAlive time.Duration
	// OnMessage gets what the broker sends, one at a time and in order; nil drops it. It must not call the Client.
	OnMessage func(message.Message)
}

// driver is one connection in one version of the protocol.
type driver interface {
	// publish writes m and returns a function that waits for the acknowledgement. Calls come from one goroutine at a time.
	publish(ctx context.Context, m message.Message) (wait func(context.Context) error, err error)
	subscribe(ctx context.Context, filters []string, qos message.QoS) error
	disconnect()
}

// Client is one connection to a broker, for good or until it is lost. Its methods may be called from any goroutine.
type Client struct {
	d       driver
	slots   chan struct{}  // one for every message in flight
	waiters sync.WaitGroup // goroutines that wait for an acknowledgement
	write   sync.Mutex     // keeps the order of Publish calls on the wire; held while a message is written
	lost    *signal
}

// Dial connects with a clean session. A *RefusedError means that the broker answered with a refusal; any other error that
// it could not be reached.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if o.ClientID == "" {
		o.ClientID = randomID()
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = time.Minute
	}
	if o.OnMessage == nil {
		o.OnMessage = func(message.Message) {}
	}
	c := &Client{slots: make(chan struct{}, window), lost: newSignal()}
	var err error
	switch o.Version {
	case "", V311:
		c.d, err = dial3(ctx, o, c.lost)
	case V5:
		c.d, err = dial5(ctx, o, c.lost)
	default:
		err = fmt.Errorf("simple: protocol version %q: want %s or %s", o.Version, V311, V5)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Publish writes m and returns; done is called exactly once, from another goroutine, with nil when the broker
// acknowledged it (PUBACK, PUBCOMP; QoS 0: when it was written), a *RefusedError, ErrLost or the error of ctx. Messages
// leave in the order of the calls. Publish blocks while 20 messages are in flight; when it returns an error, done is not
// called.
func (c *Client) Publish(ctx context.Context, m message.Message, done func(error)) error {
	select {
	case c.slots <- struct{}{}:
	case <-c.lost.c:
		return ErrLost
	case <-ctx.Done():
		return ctx.Err()
	}
	c.write.Lock()
	wait, err := c.send(ctx, m)
	c.write.Unlock()
	if err != nil {
		<-c.slots
		return err
	}
	c.waiters.Add(1)
	go func() { // ends with the acknowledgement, the connection or ctx, whichever is first
		defer c.waiters.Done()
		err := wait(ctx)
		<-c.slots
		done(err)
	}()
	return nil
}

// send writes m unless the connection is known to be gone: a select may pick a free slot even then.
func (c *Client) send(ctx context.Context, m message.Message) (func(context.Context) error, error) {
	select {
	case <-c.lost.c:
		return nil, ErrLost
	default:
		return c.d.publish(ctx, m)
	}
}

// Subscribe asks for every filter with at most qos and waits for the answer.
func (c *Client) Subscribe(ctx context.Context, filters []string, qos message.QoS) error {
	return c.d.subscribe(ctx, filters, qos)
}

// Lost is closed when the connection has ended without Close.
func (c *Client) Lost() <-chan struct{} { return c.lost.c }

// Close says goodbye and returns when every done was called; what is still in flight gets ErrLost.
func (c *Client) Close() {
	c.d.disconnect()
	c.lost.fire()
	c.waiters.Wait()
}

// connect makes the connection to the broker, within the bounds of ctx.
func connect(ctx context.Context, o Options) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("simple: connect: %w", err)
	}
	if o.TLS == nil {
		return conn, nil
	}
	t := tls.Client(conn, o.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("simple: tls with %s: %w", o.Address, err)
	}
	return t, nil
}

// signal is a channel that is closed once.
type signal struct {
	once sync.Once
	c    chan struct{}
}

func newSignal() *signal { return &signal{c: make(chan struct{})} }

func (s *signal) fire() { s.once.Do(func() { close(s.c) }) }

// randomID returns a client identifier that every server must allow: at most 23 of 0-9a-zA-Z [MQTT-3.1.3-5].
func randomID() string {
	var b [7]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return "tidegate" + hex.EncodeToString(b[:])
}
