// Package uplink is the connection to a cloud MQTT broker: it connects, reconnects, sends messages with many in flight,
// reports the acknowledgement of each of them exactly once, and receives commands.
//
// It keeps no message. What is in flight when a connection ends is given back with ErrDisconnected and sent again by
// the user of the package, from the log on disk, over the next connection. Nothing of one connection can touch another:
// messages are sent over a Link, and a Link is one connection.
//
// The driver is our own pipelined writer for both versions (pipelined.go, reader.go, wire.go, window.go). In the tests
// paho.mqtt.golang passes the same suite of behaviour beside it, as an oracle that shares no code with it. Start reading
// at Client and Run; link.go is what the forwarder sees, dial.go how a connection is opened, leave.go how one that works is
// left.
//
// Limits: delivery is at least once, also with QoS 2, because a message in flight on a lost connection is sent again
// under another packet identifier. Enhanced authentication, topic aliases and AWS signatures (Signature Version 4, for WebSocket
// without a custom authorizer) are not spoken; of a proxy's ways of logging in, only Basic and that of SOCKS5. Commands that
// wait in the session at a server are fetched when the uplink is connected to that very server.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/config"
	"tidegate/message"
)

// Client keeps one uplink connected. New makes it, Run works, Connected hands out its connections.
type Client struct {
	settings settings
	version  string // for the status topic
	driver   driver
	pace     pace
	log      *slog.Logger
	metrics  *metrics

	// noRetain leaves the retain flag off the will, for each of the servers that refused it. Only Run uses it.
	noRetain []bool
	// release is hello.release of the next connection. Only Run uses it.
	release bool
	// quiet is how long an earlier server has to answer before a return to it; 0: there is none. returned is when the last
	// return was made, zero once it is known whether it lasted. Only Run uses them.
	quiet    time.Duration
	returned time.Time
	earlier  earlier
	// probe asks a server whether it is back; look, but in tests of the waiting alone.
	probe func(context.Context, server) error
	// useful says that the last connection took more than the status. Only Run uses it.
	useful bool

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when link changes
	link    *link         // nil: no connection
	leaving *link         // its connection is being ended in order
	ended   bool          // Run has returned
	status  Status
	outage  outage
	// told is what Tell keeps, by topic; toldChanged is closed and replaced when it changes.
	told        map[string]message.Message
	toldChanged chan struct{}
}

// Status is a look at an uplink.
type Status struct {
	Connected bool
	Server    string    // the server in use, or the last one tried
	Since     time.Time // when it was connected or lost
	InFlight  int       // messages without an acknowledgement
	// Window is how many messages may be in flight. It bounds the rate on a long line: Window / round trip.
	Window int
	// Granted is the Receive Maximum that the broker announced on MQTT 5, 0 if it did not. It is often smaller than
	// max_in_flight: mosquitto grants 20 unless told otherwise.
	Granted     int
	LastError   string // the last failure, kept when it has passed
	LastErrorAt time.Time
	// Note says how it stands with the servers in front of the one in use; empty: there are none, or nothing is known.
	Note string
}

// New prepares an uplink; it opens nothing and starts nothing. gatewayID is the [gateway] id; it stands in the status
// topic. c has its defaults filled in and its templates expanded.
func New(name string, c config.Uplink, gatewayID string, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	s, err := newSettings(name, c, gatewayID)
	if err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	m, err := newMetrics(reg, name)
	if err != nil {
		return nil, fmt.Errorf("uplink %s: register metrics: %w", name, err)
	}
	client := &Client{
		settings: s, version: builtVersion(), driver: pipelinedDriver{}, pace: defaultPace(), metrics: m,
		log: log.With("part", "uplink", "uplink", name), changed: make(chan struct{}),
		toldChanged: make(chan struct{}), noRetain: make([]bool, len(s.servers)),
	}
	client.settings.hooks = hooks{
		subscribed: client.subscribed,
		overflow:   func() { m.commands.WithLabelValues("lost").Inc() },
		stripped:   func(what string, n int) { m.stripped.WithLabelValues(what).Add(float64(n)) },
	}
	client.quiet, client.probe = s.failback, client.look
	client.status.Since = time.Now()
	return client, nil
}

// SetVersion sets the version that the status topic tells, in place of the one that the Go tools put into the program. It is
// called before Run.
func (c *Client) SetVersion(version string) { c.version = version }

// Forget takes the uplink out of the metrics that say how uplinks are now. It is called after Run, when the uplink is removed.
func (c *Client) Forget() { c.metrics.forget() }

// Connected waits for a connection and returns it. A Link that was lost is never returned; the one in use is returned
// again to everybody who asks. It fails when ctx ends, and with ErrDisconnected when Run has ended.
func (c *Client) Connected(ctx context.Context) (Link, error) {
	for {
		c.mu.Lock()
		l, changed, over := c.link, c.changed, c.ended
		c.mu.Unlock()
		if over {
			return nil, ErrDisconnected
		}
		if l != nil {
			select {
			case <-l.Lost():
			default:
				return l, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Status looks at the uplink.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	for _, l := range []*link{c.link, c.leaving} {
		if l != nil {
			s.InFlight += l.conn.inFlight()
		}
	}
	return s
}

// link is a Link.
type link struct {
	conn  conn
	users atomic.Int64 // see leave.go
}

func (l *link) Send(ctx context.Context, m message.Message, id Identity, done func(error)) error {
	if !l.enter() {
		return ErrDisconnected
	}
	defer l.users.Add(-1)
	return l.conn.send(ctx, m, id, done)
}

func (l *link) Proven() bool { return l.conn.info().answered > 0 }

func (l *link) Lost() <-chan struct{} { return l.conn.lost() }

func (l *link) Close(reason error) {
	if l.users.Load()&sealed != 0 {
		return // it is being ended in order, and takes nothing more
	}
	if reason == nil {
		reason = errors.New("no reason given")
	}
	l.conn.drop(ended(endClosed, "closed here: %w", reason))
}

// up makes l the connection that Connected returns.
func (c *Client) up(sv server, l *link) {
	info := l.conn.info()
	c.metrics.connected().Set(1)
	c.mu.Lock()
	c.link = l
	c.status.Connected, c.status.Server, c.status.Since = true, sv.url, time.Now()
	c.status.Window, c.status.Granted = info.window, info.granted
	c.outage = outage{}
	c.note()
	c.mu.Unlock()
	c.log.Info("uplink connected", "server", sv.url, "window", info.window, "session_present", info.present)
}

// down takes back what up gave.
func (c *Client) down() {
	c.metrics.connected().Set(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link, c.leaving = nil, nil
	c.status.Connected, c.status.Since = false, time.Now()
	c.note()
}

// over marks the end of Run.
func (c *Client) over() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.note()
}

// note wakes up Connected; the caller holds mu.
func (c *Client) note() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// failed records why a connection ended or was not made. It is logged where it is news.
func (c *Client) failed(what string, sv server, err error) {
	c.metrics.reconnects.WithLabelValues(endLabel(err)).Inc()
	why, now := told{err}.Error(), time.Now()
	c.mu.Lock()
	c.status.Server, c.status.LastErrorAt = sv.url, now
	c.status.LastError = fmt.Sprintf("%s %s: %s", what, sv.url, why)
	fresh := c.outage.news(sv.url, why, now)
	c.mu.Unlock()
	if !fresh {
		return
	}
	level := slog.LevelInfo
	label := endLabel(err)
	if label == endRefused || label == endTakenOver || label == endProtocol {
		level = slog.LevelWarn
	}
	c.log.Log(context.Background(), level, "uplink not connected", "server", sv.url, "reason", label, "error", why)
}

// subscribed hears what the broker answered to the subscription of the commands. A refused filter leaves the rest
// of the uplink working.
func (c *Client) subscribed(codes []byte) {
	for i, code := range codes {
		if code < 0x80 || i >= len(c.settings.filters) {
			continue
		}
		text := fmt.Sprintf("subscribe %s: the broker refuses it (%#x)", c.settings.filters[i], code)
		c.mu.Lock()
		fresh := c.status.LastError != text
		c.status.LastError, c.status.LastErrorAt = text, time.Now()
		c.mu.Unlock()
		if fresh {
			c.log.Warn("command subscription refused", "filter", c.settings.filters[i], "code", code)
		}
	}
}
