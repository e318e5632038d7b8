package uplink

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"tidegate/config"
)

// proxySettings is the way to the servers. Nothing it says, in errors or elsewhere, names a user or a password.
type proxySettings struct {
	env      bool
	url      string // scheme://host:port; empty without env: there is no proxy
	username string
	password config.Secret
	ca       string
}

func newProxySettings(p config.Proxy) proxySettings {
	return proxySettings{env: p.Env, url: p.URL, username: p.Username, password: p.Password, ca: p.CA}
}

func (p proxySettings) check() error {
	_, err := p.authorities()
	return err
}

func (p proxySettings) authorities() (*x509.CertPool, error) {
	if p.ca == "" {
		return nil, nil //nolint:nilnil // no pool means that of the system
	}
	pem, err := os.ReadFile(p.ca)
	if err != nil {
		return nil, fmt.Errorf("read the ca of the proxy: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the ca of the proxy: %s holds no certificate", p.ca)
	}
	return pool, nil
}

// dial opens a connection to addr, through the proxy if there is one. It returns the connection to go on with and the TCP
// connection under it.
func (p proxySettings) dial(ctx context.Context, addr string) (nc, tcp net.Conn, err error) {
	if p.env {
		if p, err = p.fromEnvironment(addr); err != nil {
			return nil, nil, err
		}
	}
	if p.url == "" {
		var d net.Dialer
		tcp, err = d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, nil, &endError{label: endNetwork, err: timedOut(ctx, err)}
		}
		return tcp, tcp, nil
	}
	u, err := url.Parse(p.url)
	if err != nil { // config has parsed it before
		return nil, nil, ended(endProxy, "proxy: the address cannot be read")
	}
	var d net.Dialer
	tcp, err = d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, nil, ended(endProxy, "proxy %s cannot be reached: %w", p.url, timedOut(ctx, err))
	}
	if u.Scheme == "socks5" {
		nc, err = p.socks(ctx, tcp, u.Host, addr)
	} else {
		nc, err = p.connect(ctx, tcp, u, addr)
	}
	if err != nil {
		_ = tcp.Close()
		return nil, nil, err
	}
	return nc, tcp, nil
}

// fromEnvironment reads the variables that other programs read, in capitals or not: HTTPS_PROXY, else ALL_PROXY, and the
// exceptions of NO_PROXY. Servers on this machine are always connected to directly.
func (p proxySettings) fromEnvironment(addr string) (proxySettings, error) {
	env := func(name string) string { return cmp.Or(os.Getenv(name), os.Getenv(strings.ToLower(name))) }
	value := cmp.Or(env("HTTPS_PROXY"), env("ALL_PROXY"))
	c := httpproxy.Config{HTTPSProxy: value, NoProxy: env("NO_PROXY")}
	u, err := c.ProxyFunc()(&url.URL{Scheme: "https", Host: addr})
	if err == nil && strings.Contains(value, "://") { // the library makes "no proxy" of what it cannot read
		_, err = url.Parse(value)
	}
	if err != nil {
		return proxySettings{}, ended(endProxy, "proxy: what HTTPS_PROXY or ALL_PROXY of the environment says is no URL")
	}
	if u == nil {
		return proxySettings{}, nil
	}
	port, ok := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	if !ok {
		return proxySettings{}, ended(endProxy, "proxy: HTTPS_PROXY or ALL_PROXY of the environment has the scheme %s://; http://, https:// and socks5:// can be used", u.Scheme)
	}
	found := proxySettings{
		url: strings.TrimSuffix(u.Scheme, "h") + "://" + net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)),
	}
	if u.User != nil {
		password, _ := u.User.Password()
		found.username, found.password = u.User.Username(), config.NewSecret(password)
	}
	return found, nil
}

// connect asks an HTTP proxy for a tunnel (RFC 9110, 9.3.6), over TLS where its address says https.
func (p proxySettings) connect(ctx context.Context, tcp net.Conn, u *url.URL, addr string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer stop()
	nc := tcp
	if u.Scheme == "https" {
		pool, err := p.authorities()
		if err != nil {
			return nil, &endError{label: endProxy, err: err}
		}
		t := tls.Client(tcp, &tls.Config{
			MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), RootCAs: pool, NextProtos: []string{"http/1.1"},
		})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, ended(endProxy, "proxy %s: tls: %w", p.url, timedOut(ctx, err))
		}
		nc = t
	}
	request := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: tidegate\r\n"
	if p.username != "" {
		login := base64.StdEncoding.EncodeToString([]byte(p.username + ":" + p.password.Reveal()))
		request += "Proxy-Authorization: Basic " + login + "\r\n"
	}
	if _, err := nc.Write([]byte(request + "\r\n")); err != nil {
		return nil, ended(endProxy, "proxy %s: ask for a connection to %s: %w", p.url, addr, timedOut(ctx, err))
	}
	head := newHeadConn(nc)
	r := bufio.NewReader(head)
	resp, err := finalResponse(r)
	if err != nil {
		return nil, ended(endProxy, "proxy %s: wait for its answer about %s: %w", p.url, addr, told{timedOut(ctx, err)})
	}
	if resp.StatusCode/100 != 2 {
		return nil, p.refusal(resp, addr)
	}
	if !stop() {
		return nil, ended(endProxy, "proxy %s: %w", p.url, context.Cause(ctx))
	}
	head.opened()
	if r.Buffered() > 0 { // the server spoke first
		return &readerConn{Conn: head, r: r}, nil
	}
	return nc, nil
}

// finalResponse reads the answer to CONNECT; interim ones may come before it (RFC 9110, 15.2). All of them are bounded together.
func finalResponse(r *bufio.Reader) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil || resp.StatusCode/100 != 1 {
			return resp, err
		}
	}
}

// refusal says what a proxy did not do, and what to do about it.
func (p proxySettings) refusal(resp *http.Response, addr string) error {
	advice := "look into its log"
	switch resp.StatusCode {
	case http.StatusProxyAuthRequired:
		schemes := authSchemes(resp.Header.Values("Proxy-Authenticate"))
		switch {
		case len(schemes) > 0 && !slices.Contains(schemes, "basic"):
			advice = fmt.Sprintf("it wants a login by %q, which this build does not speak: let it take Basic, or this machine without a login",
				strings.Join(schemes, ", "))
		case p.username == "":
			advice = "it wants a user name and a password: set username and password of proxy"
		default:
			advice = "it does not take this user name and password: correct username and password of proxy"
		}
	case http.StatusForbidden, http.StatusMethodNotAllowed:
		advice = "allow CONNECT to this address in its rules"
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		advice = "it cannot reach the server itself"
	}
	return ended(endProxy, "proxy %s does not connect to %s (%s): %s", p.url, addr, said(resp.Status), advice)
}

// authSchemes are the names of the ways of logging in that a proxy offers (RFC 9110, 11.7.1), in small letters.
func authSchemes(challenges []string) []string {
	var out []string
	for _, c := range challenges {
		scheme, _, _ := strings.Cut(strings.TrimSpace(c), " ")
		if scheme = strings.ToLower(scheme); scheme != "" && len(scheme) <= 20 {
			out = append(out, scheme)
		}
	}
	return out
}

// socks asks a SOCKS5 proxy for a connection (RFC 1928); the proxy resolves the name.
func (p proxySettings) socks(ctx context.Context, tcp net.Conn, host, addr string) (net.Conn, error) {
	var auth *proxy.Auth
	if p.username != "" {
		auth = &proxy.Auth{User: p.username, Password: p.password.Reveal()}
	}
	d, err := proxy.SOCKS5("tcp", host, auth, opened{tcp})
	if err != nil {
		return nil, ended(endProxy, "proxy %s: %w", p.url, err)
	}
	dialer, ok := d.(proxy.ContextDialer)
	if !ok {
		return nil, ended(endProxy, "proxy %s: the dialer has no context", p.url)
	}
	nc, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		if _, bounded := ctx.Deadline(); bounded && errors.Is(err, os.ErrDeadlineExceeded) {
			<-ctx.Done() // whose deadline it was, a moment earlier
		}
		return nil, ended(endProxy, "proxy %s does not connect to %s: %w%s", p.url, addr, told{timedOut(ctx, socksReason(err))}, p.socksAdvice(err))
	}
	return nc, nil
}

// socksReason takes the addresses off an error, which are named already.
func socksReason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// socksAdvice says what to do. The library tells its reasons by their words only.
func (p proxySettings) socksAdvice(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "no acceptable authentication methods") && p.username == "":
		return "; it wants a user name and a password: set username and password of proxy"
	case strings.Contains(text, "authentication failed"), strings.Contains(text, "no acceptable authentication methods"):
		return "; correct username and password of proxy"
	case strings.Contains(text, "not allowed by ruleset"):
		return "; allow this address in its rules"
	}
	return ""
}

// opened hands out a connection that is there already.
type opened struct{ nc net.Conn }

func (o opened) Dial(string, string) (net.Conn, error) { return o.nc, nil }

func (o opened) DialContext(context.Context, string, string) (net.Conn, error) { return o.nc, nil }

// readerConn is a connection of which something has been read ahead.
type readerConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *readerConn) Read(b []byte) (int, error) { return c.r.Read(b) }
