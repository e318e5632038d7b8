package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"tidegate/config"
)

const (
	// sessionExpiry is how long the cloud keeps commands for a gateway that is away.
	sessionExpiry = 7 * 24 * time.Hour
	// commandWindow is how many commands the cloud may send before the first of them is acknowledged (5), and how many
	// are kept waiting for the handler.
	commandWindow = 64
)

// settings is what New makes of the configuration of one uplink. It does not change.
type settings struct {
	name, gateway string
	servers       []server
	version       byte
	clientID      string
	username      string
	password      config.Secret
	ca, cert, key string
	proxy         proxySettings
	failback      time.Duration // 0: off
	limits        config.Limits
	tokens        tokens
	keepAlive     time.Duration
	maxInFlight   int // 0: auto
	ackTimeout    time.Duration
	filters       []string // of commands; none: a clean session on every connection
	hooks         hooks
}

// hooks are told of what happens on a connection, by its reader; they must not block.
type hooks struct {
	subscribed func(codes []byte) // the answers to the subscription, one for each filter
	overflow   func()             // a command with QoS 0 was lost because too many wait
	// stripped: that many messages were sent without their retain flag, or with a lower QoS.
	stripped func(what string, n int)
}

// server is one address of the cloud broker.
type server struct {
	url    string // as configured but for the query, for logs and status
	addr   string // host:port
	host   string // the name it is known by: in its certificate, SNI, the request for WebSocket, tokens
	secure bool
	// path is where MQTT is spoken over WebSocket, with the query behind it; empty: no WebSocket.
	path string
	alpn []string // offered in the TLS handshake; none: what the scheme needs
}

func newSettings(name string, c config.Uplink, gateway string) (settings, error) {
	expand := strings.NewReplacer("{gateway}", gateway, "{uplink}", name)
	s := settings{
		name: name, gateway: gateway, clientID: expand.Replace(c.ClientID),
		username: c.Username, password: c.Password, ca: c.CA, cert: c.Cert, key: c.Key,
		proxy: newProxySettings(c.Proxy), failback: c.Failback.D(), limits: c.Limits,
		keepAlive: c.KeepAlive.D(), maxInFlight: int(c.MaxInFlight), ackTimeout: c.AckTimeout.D(),
	}
	s.limits.NoRetain = s.limits.NoRetain || c.Retain == "strip"
	switch c.Protocol {
	case "5", "":
		s.version = version5
	case "3.1.1":
		s.version = version311
	default:
		return s, fmt.Errorf("protocol %q is neither 5 nor 3.1.1", c.Protocol)
	}
	if s.clientID == "" {
		s.clientID = gateway + "-" + name
	}
	if s.keepAlive == 0 {
		s.keepAlive = 30 * time.Second
	}
	if s.ackTimeout == 0 {
		s.ackTimeout = 30 * time.Second
	}
	if len(c.Servers) == 0 {
		return s, fmt.Errorf("no servers")
	}
	for i, u := range c.Servers {
		sv, err := parseServer(u)
		if err != nil {
			return s, err
		}
		if sv.secure && c.ServerName != "" {
			sv.host = c.ServerName
		}
		if sv.alpn = c.ALPN; i < len(c.ServerALPN) {
			sv.alpn = c.ServerALPN[i]
		}
		s.servers = append(s.servers, sv)
	}
	for _, cmd := range c.Commands {
		s.filters = append(s.filters, expand.Replace(cmd.From))
	}
	if err := s.proxy.check(); err != nil {
		return s, err
	}
	var err error
	if s.tokens, err = newTokens(c); err != nil {
		return s, err
	}
	_, err = s.tlsConfig(server{})
	return s, err
}

func parseServer(text string) (server, error) {
	shown := config.WithoutQuery(text)
	u, err := url.Parse(text)
	if err != nil { // which repeats the query
		return server{}, fmt.Errorf("server %q is no URL", shown)
	}
	sv := server{url: shown}
	sv.host, _, _ = strings.Cut(u.Hostname(), "%") // the zone of an address is this machine's affair
	port := u.Port()
	switch u.Scheme {
	case "mqtt":
		if port == "" {
			port = "1883"
		}
	case "mqtts":
		sv.secure = true
		if port == "" {
			port = "8883"
		}
	case "ws", "wss":
		sv.secure = u.Scheme == "wss"
		if port == "" {
			port = map[bool]string{false: "80", true: "443"}[sv.secure]
		}
		if sv.path = u.RequestURI(); u.Path == "" {
			sv.path = "/mqtt" + strings.TrimPrefix(sv.path, "/")
		}
	default:
		return server{}, fmt.Errorf("server %q: want mqtt://, mqtts://, ws:// or wss://", shown)
	}
	if sv.host == "" {
		return server{}, fmt.Errorf("server %q has no host", shown)
	}
	sv.addr = net.JoinHostPort(u.Hostname(), port)
	return sv, nil
}

// tlsConfig reads the certificate files; it is called for every connection, so that replaced files are used without a
// restart.
func (s *settings) tlsConfig(sv server) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: sv.host, NextProtos: sv.alpn}
	if sv.path != "" && len(sv.alpn) == 0 {
		t.NextProtos = []string{"http/1.1"} // the upgrade to WebSocket is one of HTTP/1.1 (RFC 6455, 4.1)
	}
	if s.ca != "" {
		pem, err := os.ReadFile(s.ca)
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ca: %s holds no certificate", s.ca)
		}
	}
	if s.cert != "" || s.key != "" {
		pair, err := tls.LoadX509KeyPair(s.cert, s.key)
		if err != nil {
			return nil, fmt.Errorf("read cert and key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// resumes reports whether the broker keeps a session for this client.
func (s *settings) resumes() bool { return len(s.filters) > 0 }

// inFlight is how many messages may be unacknowledged, given what the broker grants (0: it does not say).
func (s *settings) inFlight(granted int) int {
	n := s.maxInFlight
	if n <= 0 {
		n = autoWindow
		if s.version == version311 {
			n = autoWindow311
		}
	}
	if granted > 0 {
		n = min(n, granted)
	}
	return min(n, maxWindow)
}

// exactlyOnce is how many of them may have QoS 2.
func (s *settings) exactlyOnce() int {
	if s.version == version311 {
		return exactlyOnceWindow311
	}
	return exactlyOnceWindow
}
