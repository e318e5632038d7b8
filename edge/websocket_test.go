package edge

import (
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// webConn is a client's WebSocket as a connection.
type webConn struct {
	net.Conn
	ws   *websocket.Conn
	left io.Reader
}

func overWebSocket(c net.Conn, addr string) (net.Conn, error) {
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
	d.NetDial = func(string, string) (net.Conn, error) { return c, nil }
	u := url.URL{Scheme: "ws", Host: addr, Path: "/mqtt"}
	ws, _, err := d.Dial(u.String(), nil)
	return &webConn{Conn: c, ws: ws}, err
}

func (c *webConn) Read(p []byte) (int, error) {
	for {
		if c.left == nil {
			_, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			c.left = r
		}
		n, err := c.left.Read(p)
		if err == io.EOF {
			c.left, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *webConn) Write(p []byte) (int, error) {
	return len(p), c.ws.WriteMessage(websocket.BinaryMessage, p)
}

// TestTakeOverOnEveryListener: what a client sent before it came by another connection is taken, and the old one is told why it
// ends, through TLS and WebSocket as well.
func TestTakeOverOnEveryListener(t *testing.T) {
	p := newPKI(t)
	yes := true
	b := startBroker(t, func(o *Options) {
		o.Listeners = map[string]config.Listener{
			"test": {Listen: "ws://127.0.0.1:0", Anonymous: &yes},
			"tls":  p.listener("mqtts://127.0.0.1:0", config.ClientAuthRequire),
			"wss":  p.listener("wss://127.0.0.1:0", config.ClientAuthRequire),
		}
	})
	device := p.device("x", "x")
	const each = 50
	for _, o := range []rawOptions{{ID: "test", WebSocket: true}, {ID: "tls", TLS: device}, {ID: "wss", TLS: device, WebSocket: true}} {
		o.V, o.Clean = 5, true
		addr := b.Addrs()[o.ID].String()
		before := b.disk.n.Load()
		for i := range each {
			old := connect(t, addr, o)
			_ = old.Publish(0, "a", 0, number(i))
			fresh := connect(t, addr, o)
			if before := closed(t, old); len(before) != 1 || before[0].ReasonCode != codeTakenOver {
				t.Fatalf("%s: the old connection got %v", o.ID, before)
			}
			fresh.Disconnect()
		}
		eventually(t, "every message is taken", func() bool { return b.disk.n.Load()-before == each })
	}
}

// TestOverWebSocket: what ends a connection is told over WebSocket as it is elsewhere.
func TestOverWebSocket(t *testing.T) {
	yes := true
	b := startBroker(t, func(o *Options) {
		o.Listeners["test"] = config.Listener{Listen: "ws://127.0.0.1:0", Anonymous: &yes}
	})
	web := func(o rawOptions) rawOptions {
		o.V, o.Clean, o.WebSocket = 5, true, true
		return o
	}
	c := connect(t, b.addr, web(rawOptions{ID: "alive", KeepAlive: 1}))
	if before := closed(t, c); len(before) > 1 || len(before) == 1 && before[0].FixedHeader.Type != packets.Disconnect {
		t.Errorf("a silent client got %v", before)
	}
	c = connect(t, b.addr, web(rawOptions{ID: "bad"}))
	_ = c.Raw([]byte{0xf0, 2, 0x18, 0})
	if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeProtocolError {
		t.Errorf("got %v", before)
	}
	c = connect(t, b.addr, web(rawOptions{ID: "two in one"}))
	_ = c.Raw([]byte{0xc0, 0, 0xc0, 0, 0xc0})
	_ = c.Raw([]byte{0})
	for range 3 {
		expect(t, c, packets.Pingresp)
	}
	silent(t, c, 10*time.Millisecond)
	connect(t, b.addr, web(rawOptions{ID: "stays"}))
	if err := b.stop(); err != nil {
		t.Error(err)
	}
}
