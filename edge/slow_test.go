package edge

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"tidegate/config"
)

// TestSlowPeers: TLS, a WebSocket request or a CONNECT that never ends is cut off in time on every kind of listener, whatever
// trickles in, and others come in meanwhile.
func TestSlowPeers(t *testing.T) {
	p := newPKI(t)
	yes := true
	b := startBroker(t, func(o *Options) {
		o.ConnectTimeout = 2 * time.Second
		o.Listeners["tls"] = p.listener("mqtts://127.0.0.1:0", config.ClientAuthNone)
		o.Listeners["web"] = config.Listener{Listen: "ws://127.0.0.1:0", Anonymous: &yes}
		o.Listeners["webtls"] = p.listener("wss://127.0.0.1:0", config.ClientAuthNone)
	})
	by := newBystander(t, b)
	secure := func(c net.Conn) net.Conn { return tls.Client(c, p.device("", "")) }
	plain := func(c net.Conn) net.Conn { return c }
	type peer struct {
		name, listener string
		on             func(net.Conn) net.Conn
		begin          string // sent at once
		drip           string // sent again and again
	}
	const upgrade = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\n"
	const head = upgrade + "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
	results := make(chan error)
	peers := []peer{
		{"a CONNECT", "test", plain, "\x10\xff\x01\x00\x04MQTT\x04\x02\x00\x00\x00\xe0", "x"},
		{"a handshake", "tls", plain, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "x"},
		{"nothing in a handshake", "tls", plain, "", ""},
		{"a CONNECT over TLS", "tls", secure, "\x10\xff\x01\x00\x04MQTT\x04\x02\x00\x00\x00\xe0", "x"},
		{"a request", "web", plain, upgrade, "X: y\r\n"},
		{"no request", "web", plain, "", ""},
		{"a request over TLS", "webtls", secure, upgrade, "X: y\r\n"},
		{"nothing over WebSocket", "web", plain, head, ""},
		{"pings over WebSocket", "web", plain, head, "\x89\x80\x01\x02\x03\x04"},
		{"a message over WebSocket that never ends", "webtls", secure, head + "\x82\xfe\x40\x00\x00\x00\x00\x00\x10\xff\x01", "\x00"},
	}
	for _, s := range peers {
		raw, err := net.Dial("tcp", b.Addrs()[s.listener].String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		go func() { // ends with the connection, at the latest with the test
			c := s.on(raw)
			_, err := c.Write([]byte(s.begin))
			for err == nil {
				_ = raw.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err = raw.Read(make([]byte, 4096)); errors.Is(err, os.ErrDeadlineExceeded) {
					_, err = c.Write([]byte(s.drip))
				}
			}
			results <- err
		}()
	}
	limit := time.After(60 * time.Second)
	for range peers {
		by.works()
		select {
		case <-results:
		case <-limit:
			t.Fatal("some connections stay open")
		}
	}
	by.works()
	if n := b.Clients(); n != 1 {
		t.Errorf("%d clients", n)
	}
}
