package coap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/prometheus/client_golang/prometheus"

	"tidegate/bridges"
	"tidegate/config"
)

// gateway is a running bridge on a bus in memory.
type gateway struct {
	*Bridge
	bus  *bus
	reg  *prometheus.Registry
	end  context.CancelFunc
	done chan error
}

// start runs a bridge on free ports of addresses, by default one on IPv4 loopback.
func start(t testing.TB, change func(*Options), listen ...string) *gateway {
	t.Helper()
	g := &gateway{bus: newBus(), reg: prometheus.NewRegistry(), done: make(chan error, 1)}
	o := Options{
		Bus: g.bus, ACL: rules{"secret"}, Anonymous: true, MaxPayload: 60_000, Metrics: g.reg, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	if len(listen) == 0 {
		listen = []string{"coap://127.0.0.1:0"}
	}
	var err error
	if g.Bridge, err = New(config.CoAP{Listen: listen}, o); err != nil {
		t.Fatal(err)
	}
	g.run(t)
	return g
}

func (g *gateway) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	go func() { g.done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-g.done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("the bridge does not stop")
		}
	})
}

// url is where a resource of the gateway is.
func (g *gateway) url(path string) string { return "coap://" + g.Addrs()[0].String() + path }

// client is a peer that sends what the test says.
type client struct {
	t    testing.TB
	conn net.Conn
	mid  uint16
}

func dial(t testing.TB, to net.Addr) *client {
	t.Helper()
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, mid: uint16(time.Now().UnixNano())}
}

// patience is how long an answer may take.
const patience = 60 * time.Second

func (c *client) send(m option.Message) {
	c.t.Helper()
	b := make([]byte, 65535)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.conn.Write(b[:n]); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next message, or false when none comes in time.
func (c *client) receive(within time.Duration) (option.Message, bool) {
	c.t.Helper()
	b := make([]byte, 65535)
	_ = c.conn.SetReadDeadline(time.Now().Add(within))
	n, err := c.conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return option.Message{}, false
	}
	if err != nil {
		c.t.Fatal(err)
	}
	m := option.Message{Options: make(option.Options, 0, 16)}
	if _, err := coder.DefaultCoder.Decode(b[:n], &m); err != nil {
		c.t.Fatalf("decode %x: %v", b[:n], err)
	}
	return m, true
}

// request makes a confirmable request for a path such as /ps/a?qos=1.
func (c *client) request(method codes.Code, path string, payload string, extra ...option.Option) option.Message {
	c.mid++
	m := option.Message{
		Type: option.Confirmable, Code: method, MessageID: int32(c.mid), Token: option.Token{byte(c.mid >> 8), byte(c.mid), 7},
		Options: pathOptions(path, extra...),
	}
	if payload != "" {
		m.Payload = []byte(payload)
	}
	return m
}

func pathOptions(path string, extra ...option.Option) option.Options {
	path, query, _ := strings.Cut(path, "?")
	var options option.Options
	for i, s := range strings.Split(path, "/") {
		if i > 0 {
			options = options.Add(option.Option{ID: option.URIPath, Value: []byte(s)})
		}
	}
	for _, q := range strings.Split(query, "&") {
		if q != "" {
			options = options.Add(option.Option{ID: option.URIQuery, Value: []byte(q)})
		}
	}
	for _, o := range extra {
		options = options.Add(o)
	}
	return options
}

// exchange sends a request and returns what it is answered with.
func (c *client) exchange(m option.Message) option.Message {
	c.t.Helper()
	c.send(m)
	got, ok := c.receive(patience)
	if !ok {
		c.t.Fatalf("no answer to %v", m.Code)
	}
	return got
}

func (c *client) do(method codes.Code, path string, payload string, extra ...option.Option) option.Message {
	c.t.Helper()
	m := c.request(method, path, payload, extra...)
	got := c.exchange(m)
	if got.Type != option.Acknowledgement || got.MessageID != m.MessageID || string(got.Token) != string(m.Token) {
		c.t.Fatalf("%v %s: the answer %v does not belong to it", method, path, got)
	}
	return got
}

// want fails unless the request is answered with that code.
func (c *client) want(code codes.Code, method codes.Code, path string, payload string, extra ...option.Option) option.Message {
	c.t.Helper()
	got := c.do(method, path, payload, extra...)
	if got.Code != code {
		c.t.Errorf("%s %s %q %v: answered %s %q, want %s", methodName(method), path, clip(payload), extra, codeText(got.Code), got.Payload, codeText(code))
	}
	return got
}

func clip(s string) string { return s[:min(len(s), 40)] }

// number returns the value of an option of the format uint.
func optionOf(m option.Message, id option.OptionID) number {
	for _, o := range m.Options {
		if o.ID == id {
			return number{uintOf(o.Value), true}
		}
	}
	return number{}
}

// statuses collects what OnStatus is told.
type statuses chan bridges.Status

func (s statuses) next(t testing.TB) bridges.Status {
	t.Helper()
	select {
	case st := <-s:
		return st
	case <-time.After(patience):
		t.Fatal("no status")
		return bridges.Status{}
	}
}
