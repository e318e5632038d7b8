package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// endpoint is a URL of the form SCHEME://HOST:PORT, and for WebSocket a path behind it.
type endpoint struct {
	scheme string
	host   string // empty: every address
	port   int
	path   string // ws and wss: path and query, as they are sent
}

// String returns the URL with its port spelt out.
func (e endpoint) String() string {
	host := strings.ReplaceAll(net.JoinHostPort(e.host, strconv.Itoa(e.port)), "%", "%25") // of a zone (RFC 6874, 2)
	return e.scheme + "://" + host + e.path
}

// WithoutQuery is a URL for people to see: its query may hold a token.
func WithoutQuery(address string) string {
	if before, _, found := strings.Cut(address, "?"); found {
		return before + "?..."
	}
	return address
}

// defaultPorts of the schemes the agreed file knows.
func defaultPorts() map[string]int {
	return map[string]int{"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443, "http": 8080, "https": 8443, "coap": 5683, "opc.tcp": 4840}
}

// parseEndpoint reads a URL with one of the schemes; those of later are known but not built yet.
func parseEndpoint(text string, schemes, later []string) (endpoint, error) {
	example, shown := schemes[0]+"://HOST:PORT", WithoutQuery(text)
	if !strings.Contains(text, "://") {
		return endpoint{}, fmt.Errorf("%q is no address of the form %s", shown, example)
	}
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("%q is no address of the form %s", shown, example)
	}
	switch {
	case slices.Contains(later, u.Scheme):
		return endpoint{}, fmt.Errorf("%s:// is not built yet here; this build has %s://", u.Scheme, strings.Join(schemes, "://, "))
	case !slices.Contains(schemes, u.Scheme):
		return endpoint{}, &schemeError{u.Scheme, schemes}
	case u.User != nil:
		return endpoint{}, errors.New("an address holds no user or password; they have keys of their own")
	case strings.HasSuffix(u.Host, ":"):
		return endpoint{}, fmt.Errorf("%q has a colon and no port behind it; the form is %s", shown, example)
	case u.Fragment != "", !webSocket(u.Scheme) && (u.Path != "" && u.Path != "/" || u.RawQuery != ""):
		return endpoint{}, fmt.Errorf("%q has something behind the port; the form is %s", shown, example)
	}
	e := endpoint{scheme: u.Scheme, host: u.Hostname(), port: defaultPorts()[u.Scheme]}
	if webSocket(u.Scheme) {
		e.path = webSocketPath(u)
	}
	if p := u.Port(); p != "" {
		if e.port, err = strconv.Atoi(p); err != nil || e.port > 65535 {
			return endpoint{}, fmt.Errorf("the port %s is not from 0 to 65535", p)
		}
	}
	return e, nil
}

// defaultPath is where brokers speak MQTT over WebSocket by convention.
const defaultPath = "/mqtt"

func webSocket(scheme string) bool { return scheme == "ws" || scheme == "wss" }

// webSocketPath returns what is asked for: the path and query of u, the conventional path where there is none.
func webSocketPath(u *url.URL) string {
	path := u.EscapedPath()
	if path == "" {
		path = defaultPath
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path
}

// same reports whether o is the same address.
func (e endpoint) same(o endpoint) bool {
	e.host, o.host = strings.ToLower(e.host), strings.ToLower(o.host)
	return e == o
}

// encrypted reports whether the scheme is one with TLS.
func (e endpoint) encrypted() bool {
	return e.scheme == "mqtts" || e.scheme == "wss" || e.scheme == "https"
}

// schemeError is the error for a scheme that is not known where it stands.
type schemeError struct {
	scheme  string
	schemes []string
}

func (e *schemeError) Error() string {
	return fmt.Sprintf("unknown scheme %s://, known here are %s://", e.scheme, strings.Join(e.schemes, "://, "))
}

// suggestion returns the scheme that was probably meant: other programs have other words for the same.
func (e *schemeError) suggestion() string {
	alias := map[string]string{"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts", "tcps": "mqtts", "http": "ws", "https": "wss"}[e.scheme]
	if !slices.Contains(e.schemes, alias) {
		alias = nearest(e.scheme, slices.Clone(e.schemes))
	}
	if alias == "" {
		return ""
	}
	return alias + "://"
}

// loopback reports whether only this machine can reach the endpoint.
func (e endpoint) loopback() bool {
	ip, err := netip.ParseAddr(e.host)
	return strings.EqualFold(e.host, "localhost") || err == nil && ip.IsLoopback()
}

// udp reports whether the endpoint is bound as a UDP socket.
func (e endpoint) udp() bool { return e.scheme == "coap" }

// conflicts reports whether e and o cannot both be bound. Port 0 is free whenever it is bound.
func (e endpoint) conflicts(o endpoint) bool {
	if e.port != o.port || e.port == 0 || e.udp() != o.udp() {
		return false
	}
	a, b := hostAddrs(e.host), hostAddrs(o.host)
	if a == nil || b == nil {
		return strings.EqualFold(e.host, o.host)
	}
	for _, x := range a {
		for _, y := range b {
			if x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// hostAddrs returns the addresses that listening on host binds; nil for a name that only a resolver knows.
func hostAddrs(host string) []netip.Addr {
	both := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	switch {
	case host == "" || host == "::":
		return both
	case strings.EqualFold(host, "localhost"):
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return []netip.Addr{ip.Unmap()}
}

// HostPort returns what a URL of this configuration says behind its scheme, for net.Listen and net.Dial. After loading
// every URL has its port spelt out.
func HostPort(address string) string {
	_, rest, _ := strings.Cut(address, "://")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	return strings.ReplaceAll(rest, "%25", "%") // of a zone
}
