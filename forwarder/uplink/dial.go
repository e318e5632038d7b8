package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"tidegate/config"
)

// dial opens the connection to a server: through the proxy if there is one, with TLS and WebSocket where the server asks for
// them. It returns the connection to speak MQTT on and the TCP connection under it, whose closing never waits.
func dial(ctx context.Context, s *settings, sv server) (nc, tcp net.Conn, err error) {
	nc, tcp, err = s.proxy.dial(ctx, sv.addr)
	if err != nil {
		return nil, nil, err
	}
	if sv.secure {
		conf, err := s.tlsConfig(sv)
		if err != nil {
			_ = tcp.Close()
			return nil, nil, &endError{label: endNetwork, err: err}
		}
		t := tls.Client(nc, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = tcp.Close()
			return nil, nil, ended(endNetwork, "tls with %s: %w", sv.addr, hintClock(timedOut(ctx, err), time.Now()))
		}
		nc = t
	}
	if sv.path != "" {
		ws, err := openWebSocket(ctx, nc, tcp, sv)
		if err != nil {
			_ = tcp.Close()
			return nil, nil, err
		}
		nc = ws
	}
	return nc, tcp, nil
}

// hintClock says what the clock of this machine shows where a certificate is outside its time: a small machine without a
// battery starts in the past until it has heard the time.
func hintClock(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired && !plausible(now) {
		return fmt.Errorf("%w; the clock of this machine says %s, which is wrong: set it, or wait for NTP", err, now.UTC().Format(time.RFC3339))
	}
	return err
}

// plausible reports whether the clock can be right: this program is younger than any earlier time.
func plausible(now time.Time) bool { return now.Year() >= 2026 }

// Reach opens a connection to the i-th server of c as its uplink would, up to where MQTT begins, and closes it: the name, the
// proxy, TLS and WebSocket are tried, the login is not.
func Reach(ctx context.Context, name string, c config.Uplink, gatewayID string, i int) error {
	s, err := newSettings(name, c, gatewayID)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", name, err)
	}
	_, tcp, err := reach(ctx, &s, s.servers[i])
	if err != nil {
		return told{err}
	}
	return tcp.Close()
}

// listenLeast and listenMost bound how long a server is listened to after the handshake.
const (
	listenLeast = time.Second
	listenMost  = 3 * time.Second
)

// reach is dial for somebody who says no CONNECT. With TLS 1.3 the word that a server does not take the client's certificate,
// or wants one, comes only after the handshake (RFC 8446, 4.4.2.4), so it is listened for a moment; a server of MQTT says
// nothing by itself. WebSocket has had an answer by then.
func reach(ctx context.Context, s *settings, sv server) (nc, tcp net.Conn, err error) {
	started := time.Now()
	nc, tcp, err = dial(ctx, s, sv)
	if err != nil {
		return nil, nil, err
	}
	if t, ok := nc.(*tls.Conn); ok && t.ConnectionState().Version >= tls.VersionTLS13 {
		wait := min(max(2*time.Since(started), listenLeast), listenMost)
		if end, bounded := ctx.Deadline(); bounded {
			wait = min(wait, time.Until(end)*3/4)
		}
		if err = listen(ctx, t, wait); err != nil {
			_ = tcp.Close()
			return nil, nil, ended(endNetwork, "tls with %s: %w", sv.addr, err)
		}
	}
	return nc, tcp, nil
}

// listen reads from a server that has nothing to say, and returns why the connection ended meanwhile, nil if it has not.
func listen(ctx context.Context, t *tls.Conn, wait time.Duration) error {
	_ = t.SetReadDeadline(time.Now().Add(wait))
	stop := context.AfterFunc(ctx, func() { _ = t.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := t.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		return nil
	}
	if err != nil {
		return timedOut(ctx, err)
	}
	return nil
}

// maxHead bounds what a server or a proxy answers in HTTP before the connection is ours.
const maxHead = 64 << 10

// headConn bounds what is read of a connection until opened is called.
type headConn struct {
	net.Conn
	left int // bytes, less than 0: no bound any more
}

var errHeadTooLong = fmt.Errorf("an answer of more than %d bytes", maxHead)

func newHeadConn(nc net.Conn) *headConn { return &headConn{Conn: nc, left: maxHead} }

// opened ends the bound. It is called before the connection has other users.
func (c *headConn) opened() { c.left = -1 }

func (c *headConn) Read(b []byte) (int, error) {
	switch {
	case c.left < 0:
		return c.Conn.Read(b)
	case c.left == 0:
		return 0, errHeadTooLong
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
