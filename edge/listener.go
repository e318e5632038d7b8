package edge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/certs"
	"tidegate/config"
	"tidegate/edge/gate"
	"tidegate/edge/ws"
)

// listener is one address on which devices speak MQTT.
type listener struct {
	name      string
	anonymous atomic.Bool
	identity  string        // which part of a client certificate is the user
	required  bool          // no client comes in without a certificate
	certs     *certs.Server // nil: no TLS
	config    config.Listener
	port      *port
	done      chan struct{} // closed when nothing more is accepted; only of a listener that runs
	*gate.Listener
}

// messageRoom is by how much a WebSocket message may be larger than a packet: clients gather small packets in one.
const messageRoom = 64 << 10

// connectionLimits bounds the connections of all listeners together: twice the clients, as those that are being closed and
// those that have not said who they are count too. No source address can take more than three quarters of them, so that one
// that opens connections and says nothing keeps nobody else out.
func connectionLimits(o Options) *gate.Limits {
	c := o.Broker
	all := 2*c.MaxClients + 64
	if o.MaxConns > 0 {
		all = min(all, o.MaxConns)
	}
	perSource := all - all/4
	if c.MaxClientsPerSource > 0 {
		perSource = min(perSource, 2*c.MaxClientsPerSource+16)
	}
	return gate.NewLimits(all, perSource, c.MaxConnectRate.PerSecond(), 0)
}

// bind makes the listener of that name.
func (b *Broker) bind(name string, c config.Listener) error {
	address, err := addressOf(c)
	if err != nil {
		return fmt.Errorf("edge: listener %s: %w", name, err)
	}
	p, err := openPort(address)
	if err != nil {
		return fmt.Errorf("edge: listener %s: %w", name, err)
	}
	l, err := b.newListener(name, c, p)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	b.listeners = append(b.listeners, l)
	return nil
}

// newListener makes a listener on p, which is its own once it runs. It reads its certificates.
func (b *Broker) newListener(name string, c config.Listener, p *port) (*listener, error) {
	u, err := url.Parse(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("edge: listener %s: %w", name, err)
	}
	l := &listener{
		name: name, config: c, port: p, identity: c.Identity, done: make(chan struct{}),
		required: c.ClientAuth == config.ClientAuthRequire,
	}
	l.anonymous.Store(c.Anonymous == nil || *c.Anonymous)
	o := gate.ListenerOptions{
		Conn:     gate.Options{MaxPacket: int(b.o.Broker.MaxPacket), ConnectTimeout: b.o.ConnectTimeout},
		Limits:   b.limits,
		OnRefuse: func(from net.Addr, why gate.Reason) { b.turnedAway(name, from, why) },
		Logger:   b.log.With("listener", name),
	}
	if u.Scheme == "mqtts" || u.Scheme == "wss" {
		t, _ := c.TLS()
		if l.certs, err = certs.NewServer(t); err != nil {
			return nil, fmt.Errorf("edge: listener %s: %w", name, err)
		}
		o.TLS = l.certs.Config()
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		web := &ws.Options{Path: u.Path, Origins: c.Origins, MaxMessage: int64(b.o.Broker.MaxPacket) + messageRoom}
		if web.Path == "" {
			web.Path = "/mqtt"
		}
		o.Layer = func(inner net.Conn) net.Conn { return ws.New(inner, web) }
	}
	l.Listener = gate.NewListener(p, o)
	return l, nil
}

// addressOf returns HOST:PORT of a listener.
func addressOf(c config.Listener) (string, error) {
	u, err := url.Parse(c.Listen)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(u.Hostname(), portOf(u)), nil
}

// portOf returns the port of a listener's URL. Configurations spell it out.
func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"mqtts": "8883", "ws": "80", "wss": "443"}[u.Scheme]
}

// turnedAway follows when a connection was closed for a bound.
func (b *Broker) turnedAway(listener string, from net.Addr, why gate.Reason) {
	b.metrics.refusedConns.Inc()
	if why != gate.ReasonShutdown {
		b.audit.refused(&b.refusals, "connection refused", string(why), "", "listener", listener, "remote", from.String())
	}
}

// ReloadCertificates reads the files of every TLS listener again that changed. Clients that are connected stay, but for those
// whose certificate a new revocation list names. It returns what is in use from now on, as LISTENER.KEY, and what is wrong with
// the rest, of which the earlier files stay in use.
func (b *Broker) ReloadCertificates() (changed []string, problems []error) {
	for _, l := range b.every() {
		if l.certs == nil {
			continue
		}
		keys, err := l.certs.Reload()
		for _, k := range keys {
			changed = append(changed, l.name+"."+k)
		}
		if len(keys) > 0 {
			b.endRevoked(l)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("listener %s: %w", l.name, err))
		}
	}
	return changed, problems
}

// CertificateWarnings says what somebody has to look at: files that cannot be used, certificates and revocation lists that
// have expired or soon will.
func (b *Broker) CertificateWarnings(now time.Time) []string {
	var list []string
	for _, l := range b.every() {
		if l.certs != nil {
			for _, w := range l.certs.Warnings(now) {
				list = append(list, "listener "+l.name+": "+w)
			}
		}
	}
	return list
}

// revoked is why a connection ends whose client has a certificate that is not good any more.
const revoked gate.Reason = "revoked"

// endRevoked ends the connections of clients whose certificates were revoked. One whose CONNECT is being read right now is
// judged by admit.
func (b *Broker) endRevoked(l *listener) {
	for _, c := range l.Conns() {
		cs, ok := c.ConnectionState()
		if !ok {
			continue
		}
		if err := l.certs.Check(cs); err != nil {
			b.audit.event("client disconnected", "reason", string(revoked), "listener", l.name, "remote", c.RemoteAddr().String(), "error", err)
			c.Disconnect(codeNotAuthorized, revoked)
		}
	}
}

// sources counts the clients of each source address.
type sources struct {
	mu sync.Mutex
	n  map[netip.Addr]int
}

// enter counts a client in and returns how many there are now.
func (s *sources) enter(a netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = make(map[netip.Addr]int)
	}
	s.n[a]++
	return s.n[a]
}

func (s *sources) leave(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n[a]--; s.n[a] <= 0 {
		delete(s.n, a)
	}
}

// addrOf returns the address of a without its port; the zero value where it has none.
func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
