package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/config"
)

// site is a folder with an authority and what it made.
type site struct {
	t   *testing.T
	dir string
	ca  *Authority
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.newAuthority("ca")
	s.write("server", s.server())
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) put(name string, data []byte) {
	s.t.Helper()
	// As a careful administrator does: a new file is moved over the old one.
	if err := os.WriteFile(s.path("new"), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.path("new"), s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) write(name string, p Pair) {
	s.put(name+".crt", p.Cert)
	s.put(name+".key", p.Key)
}

func (s *site) newAuthority(name string) {
	s.t.Helper()
	ca, p, err := NewAuthority(name, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	s.ca = ca
	s.put("ca.crt", p.Cert)
}

func (s *site) server() Pair {
	s.t.Helper()
	p, err := s.ca.Server([]string{"localhost", "127.0.0.1"}, ServerLife, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *site) device(name string) tls.Certificate {
	s.t.Helper()
	p, err := s.ca.Device(name, DeviceLife, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

// crl writes a list that names these certificates beside those of before.
func (s *site) crl(revoked ...tls.Certificate) {
	s.t.Helper()
	old, err := os.ReadFile(s.path("crl"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	var leaves []*x509.Certificate
	for _, c := range revoked {
		leaves = append(leaves, c.Leaf)
	}
	list, err := s.ca.Revoke(old, leaves, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	s.put("crl", list)
}

func (s *site) open(change func(*config.TLS)) *Server {
	s.t.Helper()
	c := config.TLS{
		Cert: s.path("server.crt"), Key: s.path("server.key"), ClientCA: s.path("ca.crt"),
		ClientAuth: config.ClientAuthRequire, MinTLS: "1.2",
	}
	if change != nil {
		change(&c)
	}
	server, err := NewServer(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return server
}

func withCRL(s *site) func(*config.TLS) {
	return func(c *config.TLS) { c.CRL = []string{s.path("crl")} }
}

// handshake connects a client and returns what either side says.
func (s *site) handshake(server *Server, client *tls.Config) (tls.ConnectionState, error) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	dialed := make(chan error, 1)
	go func() {
		c, err := tls.Dial("tcp", l.Addr().String(), client)
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // a session ticket comes with it
			_ = c.Close()
		}
		dialed <- err
	}()
	raw, err := l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Server(raw, server.Config())
	err = c.HandshakeContext(s.t.Context())
	if err == nil {
		_, _ = c.Write([]byte("x"))
	}
	state := c.ConnectionState()
	_ = raw.Close()
	<-dialed
	return state, err
}

func (s *site) client(certs ...tls.Certificate) *tls.Config {
	s.t.Helper()
	data, err := os.ReadFile(s.path("ca.crt"))
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
}

func TestClientAuth(t *testing.T) {
	s := newSite(t)
	device := s.device("press-1")
	stranger := newSite(t).device("press-1")
	for _, c := range []struct {
		auth  string
		certs []tls.Certificate
		good  bool
		user  string
	}{
		{config.ClientAuthNone, nil, true, ""},
		{config.ClientAuthNone, []tls.Certificate{device}, true, ""}, // it is not asked for
		{config.ClientAuthOptional, nil, true, ""},
		{config.ClientAuthOptional, []tls.Certificate{device}, true, "press-1"},
		{config.ClientAuthRequire, nil, false, ""},
		{config.ClientAuthRequire, []tls.Certificate{device}, true, "press-1"},
		{config.ClientAuthRequire, []tls.Certificate{stranger}, false, ""},
	} {
		server := s.open(func(t *config.TLS) { t.ClientAuth = c.auth })
		client := s.client(c.certs...)
		if len(c.certs) > 0 { // shown also to who does not name its issuer
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.certs[0], nil }
		}
		state, err := s.handshake(server, client)
		if (err == nil) != c.good {
			t.Errorf("%s with %d certificates: %v", c.auth, len(c.certs), err)
			continue
		}
		if !c.good {
			continue
		}
		if user, err := User(state, config.IdentityCN); user != c.user || err != nil {
			t.Errorf("%s with %d certificates: user %q, %v", c.auth, len(c.certs), user, err)
		}
	}
}

func TestMinimumVersion(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		min     string
		highest uint16
		good    bool
	}{{"1.2", tls.VersionTLS11, false}, {"1.2", tls.VersionTLS12, true}, {"1.3", tls.VersionTLS12, false}, {"1.3", tls.VersionTLS13, true}} {
		server := s.open(func(t *config.TLS) { t.MinTLS, t.ClientAuth = c.min, config.ClientAuthNone })
		client := s.client()
		client.MinVersion, client.MaxVersion = tls.VersionTLS10, c.highest
		if _, err := s.handshake(server, client); (err == nil) != c.good {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestRevocation: a revoked certificate is refused from the next handshake on, a resumed session included, and is known to be
// revoked on connections that are open.
func TestRevocation(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := newSite(t)
		good, bad := s.device("good"), s.device("bad")
		s.crl()
		server := s.open(withCRL(s))
		clients := map[string]*tls.Config{"good": s.client(good), "bad": s.client(bad)}
		states := map[string]tls.ConnectionState{}
		for name, c := range clients {
			c.MaxVersion = version
			state, err := s.handshake(server, c)
			if err != nil {
				t.Fatal(name, err)
			}
			states[name] = state
		}
		if state, err := s.handshake(server, clients["good"]); err != nil || !state.DidResume {
			t.Fatalf("%s: no session is resumed: %v", tls.VersionName(version), err)
		}
		s.crl(bad)
		if changed, err := server.Reload(); err != nil || len(changed) != 1 || changed[0] != "client_ca" {
			t.Fatalf("reload: %v, %v", changed, err)
		}
		if err := server.Check(states["good"]); err != nil {
			t.Error(err)
		}
		if err := server.Check(states["bad"]); !errors.As(err, new(*RevokedError)) || !strings.Contains(err.Error(), "CN=bad") {
			t.Errorf("an open connection: %v", err)
		}
		for range 2 {
			if _, err := s.handshake(server, clients["bad"]); !errors.As(err, new(*RevokedError)) {
				t.Errorf("%s: a revoked client: %v", tls.VersionName(version), err)
			}
		}
		if state, err := s.handshake(server, clients["good"]); err != nil || !state.DidResume {
			t.Errorf("%s: the other one: resumed %t, %v", tls.VersionName(version), state.DidResume, err)
		}
	}
}

// TestAuthorityReplaced: a session of the time of an earlier authority is not resumed into a time that does not trust it.
func TestAuthorityReplaced(t *testing.T) {
	s := newSite(t)
	server := s.open(nil)
	client := s.client(s.device("press-1"))
	if _, err := s.handshake(server, client); err != nil {
		t.Fatal(err)
	}
	s.newAuthority("another")
	if _, err := server.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.handshake(server, client); err == nil {
		t.Error("a client of the earlier authority was let in")
	}
}

// TestReload: files are swapped while in use, a pair as a whole, and what cannot be used changes nothing.
func TestReload(t *testing.T) {
	s := newSite(t)
	s.crl()
	server := s.open(withCRL(s))
	base := s.client(s.device("press-1"))
	base.ClientSessionCache = nil
	number := func() string {
		t.Helper()
		var got string
		client := base.Clone()
		client.VerifyConnection = func(cs tls.ConnectionState) error {
			got = cs.PeerCertificates[0].SerialNumber.String()
			return nil
		}
		if _, err := s.handshake(server, client); err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := number()
	if changed, err := server.Reload(); changed != nil || err != nil {
		t.Fatalf("nothing changed: %v, %v", changed, err)
	}

	next := s.server()
	s.put("server.crt", next.Cert) // the key is still the old one
	for range 2 {
		if changed, err := server.Reload(); changed != nil || err == nil {
			t.Fatalf("half of a pair: %v, %v", changed, err)
		}
	}
	if number() != first {
		t.Error("half of a pair is in use")
	}
	if w := server.Warnings(time.Now()); len(w) != 1 || !strings.Contains(w[0], "in use") {
		t.Errorf("warnings %q", w)
	}
	s.put("server.key", next.Key)
	if changed, err := server.Reload(); err != nil || len(changed) != 1 || changed[0] != "cert" {
		t.Fatalf("a pair: %v, %v", changed, err)
	}
	if number() == first {
		t.Error("the new pair is not in use")
	}
	if w := server.Warnings(time.Now()); len(w) > 0 {
		t.Errorf("warnings %q", w)
	}

	for name, broken := range map[string][]byte{"server.key": nil, "crl": []byte("x"), "ca.crt": []byte("-----BEGIN")} {
		good, err := os.ReadFile(s.path(name))
		if err != nil {
			t.Fatal(err)
		}
		s.put(name, broken)
		if changed, err := server.Reload(); changed != nil || err == nil {
			t.Errorf("broken %s: %v, %v", name, changed, err)
		}
		number() // works as before
		s.put(name, good)
		if changed, err := server.Reload(); len(changed) != 1 || err != nil {
			t.Errorf("mended %s: %v, %v", name, changed, err)
		}
	}
	if err := os.Remove(s.path("crl")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Reload(); err == nil || !strings.Contains(err.Error(), "crl") {
		t.Errorf("a missing list: %v", err)
	}
	number()

	// A list of another authority says nothing about ours.
	other := newSite(t)
	other.crl()
	data, err := os.ReadFile(other.path("crl"))
	if err != nil {
		t.Fatal(err)
	}
	s.put("crl", data)
	if _, err := server.Reload(); err == nil || !strings.Contains(err.Error(), "signed by none") {
		t.Errorf("the list of another authority: %v", err)
	}
}

func TestNewServerNeedsItsFiles(t *testing.T) {
	s := newSite(t)
	for _, change := range []func(*config.TLS){
		func(c *config.TLS) { c.Cert = s.path("none") },
		func(c *config.TLS) { c.Key = s.path("ca.crt") },
		func(c *config.TLS) { c.ClientCA = s.path("none") },
		func(c *config.TLS) { c.CRL = []string{s.path("none")} },
	} {
		c := config.TLS{Cert: s.path("server.crt"), Key: s.path("server.key"), ClientCA: s.path("ca.crt"), ClientAuth: config.ClientAuthRequire}
		change(&c)
		if _, err := NewServer(c); err == nil {
			t.Errorf("%+v", c)
		}
	}
}

// TestForms: lists in DER form, several in one file and in several files.
func TestForms(t *testing.T) {
	s := newSite(t)
	a, b := s.device("a"), s.device("b")
	list := func(c tls.Certificate) []byte {
		t.Helper()
		l, err := s.ca.Revoke(nil, []*x509.Certificate{c.Leaf}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	block, _ := pem.Decode(list(a))
	s.put("a.der", block.Bytes)
	s.put("b.pem", list(b))
	s.put("both.pem", append(list(a), list(b)...))
	for _, files := range [][]string{{"a.der", "b.pem"}, {"both.pem"}} {
		server := s.open(func(c *config.TLS) {
			for _, f := range files {
				c.CRL = append(c.CRL, s.path(f))
			}
		})
		for _, device := range []tls.Certificate{a, b} {
			if _, err := s.handshake(server, s.client(device)); !errors.As(err, new(*RevokedError)) {
				t.Errorf("%v: %v", files, err)
			}
		}
		if _, err := s.handshake(server, s.client(s.device("c"))); err != nil {
			t.Errorf("%v: %v", files, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	s := newSite(t)
	s.crl()
	server := s.open(withCRL(s))
	now := time.Now()
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{now, ""},
		{now.Add(ServerLife - 13*24*time.Hour), "expires on"},
		{now.Add(ServerLife + time.Hour), "expired on"},
		{now.Add(-48 * time.Hour), "is the clock right?"},
		{now.Add(crlLife + time.Hour), "revocation list"},
		{now.Add(AuthorityLife + time.Hour), "authority"},
	} {
		got := strings.Join(server.Warnings(c.at), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("at %v: %q, want %q", c.at, got, c.want)
		}
	}
}

func TestUser(t *testing.T) {
	uri := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, c := range []struct {
		name, identity string
		cert           x509.Certificate
		want           string // empty: refused
	}{
		{"common name", "cn", x509.Certificate{DNSNames: []string{"other"}}, ""},
		{"DNS name", "san-dns", x509.Certificate{DNSNames: []string{"press-1.plant", "other"}}, "press-1.plant"},
		{"no DNS name", "san-dns", x509.Certificate{URIs: []*url.URL{uri("urn:x:y")}}, ""},
		{"wildcard", "san-dns", x509.Certificate{DNSNames: []string{"*.plant"}}, ""},
		{"URI", "san-uri", x509.Certificate{URIs: []*url.URL{uri("spiffe://plant/press-1")}}, "spiffe://plant/press-1"},
		{"no URI", "san-uri", x509.Certificate{DNSNames: []string{"x"}}, ""},
	} {
		user, err := User(tls.ConnectionState{PeerCertificates: []*x509.Certificate{&c.cert}}, c.identity)
		if user != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", c.name, user, err)
		}
	}
	for name, good := range map[string]bool{
		"press-1": true, "Müller 3": true, "": false, " ": false, "anonymous": false, "a/b": false, "a+": false, "#": false, "*": false, "{user}": false,
		"a\x00b": false, strings.Repeat("x", 129): false,
	} {
		var c x509.Certificate
		c.Subject.CommonName = name
		user, err := User(tls.ConnectionState{PeerCertificates: []*x509.Certificate{&c}}, config.IdentityCN)
		if (err == nil) != good || good && user != name {
			t.Errorf("common name %q: %q, %v", name, user, err)
		}
	}
	if user, err := User(tls.ConnectionState{}, config.IdentityCN); user != "" || err != nil {
		t.Errorf("no certificate: %q, %v", user, err)
	}
}

// TestReloadThroughLinks: files are often replaced by turning a symbolic link to another folder, in one step for both.
func TestReloadThroughLinks(t *testing.T) {
	s := newSite(t)
	for _, dir := range []string{"one", "two"} {
		if err := os.Mkdir(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		s.write(dir+"/server", s.server())
	}
	turn := func(to string) {
		t.Helper()
		if err := os.Symlink(to, s.path("next")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(s.path("next"), s.path("current")); err != nil {
			t.Fatal(err)
		}
	}
	turn("one")
	server := s.open(func(c *config.TLS) {
		c.ClientAuth, c.Cert, c.Key = config.ClientAuthNone, s.path("current/server.crt"), s.path("current/server.key")
	})
	for _, to := range []string{"two", "one"} {
		turn(to)
		if changed, err := server.Reload(); err != nil || len(changed) != 1 {
			t.Errorf("turned to %s: %v, %v", to, changed, err)
		}
		if changed, err := server.Reload(); err != nil || changed != nil {
			t.Errorf("nothing turned: %v, %v", changed, err)
		}
	}
}

// TestHalfAList: a file of several lists of which the last one is half written revokes no less than before.
func TestHalfAList(t *testing.T) {
	s := newSite(t)
	one, two := s.device("one"), s.device("two")
	list := func(c tls.Certificate) []byte {
		data, err := s.ca.Revoke(nil, []*x509.Certificate{c.Leaf}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	whole := append(list(one), list(two)...)
	s.put("crl", whole)
	server := s.open(withCRL(s))
	s.put("crl", whole[:len(whole)-40])
	if changed, err := server.Reload(); err == nil {
		t.Errorf("half a file is in use: %v", changed)
	}
	for _, c := range []tls.Certificate{one, two} {
		if _, err := s.handshake(server, s.client(c)); err == nil {
			t.Errorf("%s came in", c.Leaf.Subject.CommonName)
		}
	}
}

// TestHalfAChain: a certificate whose chain is not written to its end does not replace the one in use, which clients can verify.
func TestHalfAChain(t *testing.T) {
	s := newSite(t)
	server := s.open(nil)
	before, err := os.ReadFile(s.path("server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	whole := append(before, ca...)
	s.put("server.crt", whole[:len(whole)-40])
	if changed, err := server.Reload(); err == nil {
		t.Errorf("half a chain is in use: %v", changed)
	}
	s.put("server.crt", whole)
	if changed, err := server.Reload(); len(changed) != 1 || err != nil {
		t.Errorf("the whole chain: %v, %v", changed, err)
	}
}
