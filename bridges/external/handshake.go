package external

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// server is one address of the broker.
type server struct {
	url    string // as configured, for logs and status
	addr   string // host:port
	name   string // for the certificate and SNI
	secure bool
}

func parseServer(text, name string) (server, error) {
	u, err := url.Parse(text)
	if err != nil {
		return server{}, fmt.Errorf("server %q: %w", text, err)
	}
	port := map[string]string{"mqtt": "1883", "mqtts": "8883"}[u.Scheme]
	if port == "" || u.Hostname() == "" {
		return server{}, fmt.Errorf("server %q: want mqtt://HOST:PORT or mqtts://HOST:PORT", text)
	}
	return server{
		url: text, addr: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)),
		name: cmp.Or(name, u.Hostname()), secure: u.Scheme == "mqtts",
	}, nil
}

// tlsConfig reads the certificate files; it is called for every connection, so that replaced files are used without a
// restart.
func tlsConfig(c config.External, s server) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.name}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ca: %s holds no certificate", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("read cert and key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// dial opens the connection to s, with TLS where it asks for that. tcp is what lies below: its closing never waits.
func dial(ctx context.Context, c config.External, s server) (nc net.Conn, tcp *net.TCPConn, err error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, nil, fmt.Errorf("dial: %w", orCause(ctx, err))
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		return nil, nil, errors.Join(errors.New("dial: no TCP connection"), raw.Close())
	}
	if !s.secure {
		return tcp, tcp, nil
	}
	conf, err := tlsConfig(c, s)
	if err != nil {
		return nil, nil, errors.Join(err, tcp.Close())
	}
	t := tls.Client(tcp, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = tcp.Close()
		return nil, nil, fmt.Errorf("tls: %w", orCause(ctx, err))
	}
	return t, tcp, nil
}

// orCause prefers the end of ctx, which made the deadline pass, over the error it caused.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Reach opens a connection to the i-th server as the bridge would, up to where MQTT begins, and closes it.
func Reach(ctx context.Context, c config.External, i int) error {
	s, err := parseServer(c.Servers[i], c.ServerName)
	if err != nil {
		return err
	}
	_, tcp, err := dial(ctx, c, s)
	if err != nil {
		return err
	}
	return tcp.Close()
}

// codeRetain is the reason code of a CONNACK that refuses a retained will.
const codeRetain = 0x9A

// refusal is a CONNACK with a reason code other than success, or one without which the bridge cannot do its work.
type refusal struct {
	code byte // 0: it grants too little
	text string
}

func (r *refusal) Error() string {
	if r.code == 0 {
		return r.text
	}
	return fmt.Sprintf("the broker refuses the connection (%#x, %s)", r.code, r.text)
}

// lasting reports whether the same CONNECT is likely to be refused again.
func (r *refusal) lasting() bool {
	switch r.code {
	case 0x88, 0x89, 0x97, 0x9F, codeRetain: // unavailable, busy, quota, rate; and what is asked for otherwise next time
		return false
	}
	return true
}

// codeText names the reason codes of CONNACK, DISCONNECT and SUBACK that a person can do something about (MQTT 5.0, 2.4).
func codeText(code byte) string {
	texts := map[byte]string{
		0x00: "normal", 0x80: "unspecified error", 0x82: "protocol error", 0x83: "implementation specific error",
		0x84: "protocol version not accepted", 0x85: "client identifier not valid", 0x86: "bad user name or password",
		0x87: "not authorized", 0x88: "server unavailable", 0x89: "server busy", 0x8A: "banned", 0x8B: "shutting down",
		0x8D: "keep alive timeout", 0x8E: "another client came with the same client identifier", 0x8F: "topic filter invalid",
		0x93: "receive maximum exceeded", 0x95: "packet too large", 0x96: "message rate too high", 0x97: "quota exceeded",
		0x98: "administrative action", 0x9D: "server moved", 0x9E: "shared subscriptions not supported", 0x9F: "connection rate exceeded",
		0xA1: "subscription identifiers not supported", 0xA2: "wildcard subscriptions not supported",
	}
	return cmp.Or(texts[code], "see MQTT 5.0, 2.4")
}

// grant is what a CONNACK grants.
type grant struct {
	present   bool // the broker has a session of this client
	window    int  // messages from us that it takes before it has acknowledged the first
	maxPacket uint32
	retain    bool
	ids       bool // subscription identifiers
	keepAlive time.Duration
}

// sendWindow bounds the messages in flight to the broker where it grants more.
const sendWindow = 512

// connect opens a connection to s and returns after the CONNACK. ctx bounds only that.
func (b *Bridge) connect(ctx context.Context, s server) (*link, error) {
	nc, tcp, err := dial(ctx, b.c, s)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = tcp.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r := bufio.NewReaderSize(nc, readBuffer)
	g, err := b.shakeHands(nc, r)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = tcp.Close()
		return nil, orCause(ctx, err)
	}
	return b.newLink(nc, tcp, r, g), nil
}

func (b *Bridge) shakeHands(nc net.Conn, r *bufio.Reader) (grant, error) {
	if _, err := nc.Write(b.connectPacket()); err != nil {
		return grant{}, fmt.Errorf("send connect: %w", err)
	}
	head, err := readHead(r)
	if err != nil {
		return grant{}, fmt.Errorf("wait for connack: %w", err)
	}
	if head.first != packets.Connack<<4 || head.length > maxCold {
		return grant{}, fmt.Errorf("want connack, got packet type %d of %d bytes", head.first>>4, head.length)
	}
	body := make([]byte, head.length)
	if _, err := io.ReadFull(r, body); err != nil {
		return grant{}, fmt.Errorf("read connack: %w", err)
	}
	return b.granted(body)
}

func (b *Bridge) connectPacket() []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: version5,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: b.c.ClientID, Keepalive: uint16(b.c.KeepAlive.D() / time.Second),
		},
	}
	pk.Properties.ReceiveMaximum = uint16(b.c.ReceiveMaximum)
	pk.Properties.SessionExpiryIntervalFlag = true
	pk.Properties.SessionExpiryInterval = uint32(b.c.SessionExpiry.D() / time.Second)
	if b.o.State != nil {
		will := b.o.State("offline")
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, will.Topic, will.Payload
		pk.Connect.WillQos, pk.Connect.WillRetain = 1, !b.noRetain
		if b.c.Group != "" {
			pk.Connect.WillProperties.User = []packets.UserProperty{{Key: propertyVia, Val: b.c.Group}}
		}
	}
	if b.c.Username != "" {
		pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(b.c.Username)
	}
	if b.c.Password.IsSet() {
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(b.c.Password.Reveal())
	}
	var buf bytes.Buffer
	_ = pk.ConnectEncode(&buf) // it has no error to report
	return buf.Bytes()
}

// granted reads the body of a CONNACK.
func (b *Bridge) granted(body []byte) (grant, error) {
	if len(body) == 2 { // the broker answers in the words of MQTT 3.1.1
		return grant{}, &refusal{text: "the broker does not speak MQTT 5"}
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connack, Remaining: len(body)}, ProtocolVersion: version5,
	}
	if err := decode(pk.ConnackDecode, body); err != nil {
		return grant{}, fmt.Errorf("read connack: %w", err)
	}
	p := &pk.Properties
	switch {
	case pk.ReasonCode != 0:
		text := codeText(pk.ReasonCode)
		if p.ReasonString != "" {
			text += ": " + p.ReasonString
		}
		return grant{}, &refusal{code: pk.ReasonCode, text: text}
	case p.SharedSubAvailableFlag && p.SharedSubAvailable == 0 && b.c.Group != "":
		return grant{}, &refusal{text: "the broker has no shared subscriptions; write group = \"off\" if no other gateway is to share the work"}
	case p.MaximumQosFlag && p.MaximumQos == 0:
		return grant{}, &refusal{text: "the broker knows no QoS above 0, so it waits for no acknowledgement"}
	}
	g := grant{
		present: pk.SessionPresent, window: sendWindow, maxPacket: p.MaximumPacketSize, retain: true, ids: true, keepAlive: b.c.KeepAlive.D(),
	}
	if p.ReceiveMaximum > 0 {
		g.window = min(g.window, int(p.ReceiveMaximum))
	}
	if p.RetainAvailableFlag {
		g.retain = p.RetainAvailable == 1
	}
	if p.SubIDAvailableFlag {
		g.ids = p.SubIDAvailable == 1
	}
	if p.ServerKeepAliveFlag && p.ServerKeepAlive > 0 {
		g.keepAlive = min(g.keepAlive, time.Duration(p.ServerKeepAlive)*time.Second)
	}
	return g, nil
}
