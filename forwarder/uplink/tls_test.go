package uplink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// authority is a private CA for one test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.key = newKey(t)
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.write(t, "ca", a.cert, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// write signs a certificate and writes NAME.crt and NAME.key.
func (a *authority) write(t *testing.T, name string, c *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (a *authority) leaf(t *testing.T, name string, dns ...string) {
	t.Helper()
	a.write(t, name, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: dns,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, newKey(t))
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

// server is a TLS configuration that wants a client certificate of this CA.
func (a *authority) server(t *testing.T, name string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(a.path("ca.crt"))
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no ca", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12,
	}
}

func TestTLS(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		a := newAuthority(t)
		a.leaf(t, "cloud", "localhost")
		a.leaf(t, "gateway")
		peer := cloud(t, testpeer.Options{TLS: a.server(t, "cloud")})
		_, port, err := net.SplitHostPort(peer.Addr())
		if err != nil {
			t.Fatal(err)
		}
		h := run(t, v, func(c *config.Uplink) {
			c.CA, c.Cert, c.Key = a.path("ca.crt"), a.path("gateway.crt"), a.path("gateway.key")
		}, nil, "mqtts://localhost:"+port)
		l := newLedger(500)
		if err := l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
			t.Fatalf("%v\n%s", err, h.log)
		}
		l.once(t, success)
		if name := peer.Connects()[0].ServerName; name != "localhost" {
			t.Errorf("server name %q was indicated, want localhost", name)
		}
	})
}

func TestTLSRefusesWhatItCannotVerify(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		a := newAuthority(t)
		a.leaf(t, "cloud", "elsewhere.example.com")
		a.leaf(t, "gateway")
		conf := a.server(t, "cloud")
		conf.ClientAuth = tls.NoClientCert
		peer := cloud(t, testpeer.Options{TLS: conf})
		_, port, _ := net.SplitHostPort(peer.Addr())
		withCA := func(c *config.Uplink) { c.CA = a.path("ca.crt") }
		for name, h := range map[string]*harness{
			"name":      run(t, v, withCA, nil, "mqtts://localhost:"+port),
			"authority": run(t, v, nil, nil, "mqtts://localhost:"+port),
		} {
			eventually(t, name+" refused", func() bool { return strings.Contains(h.Status().LastError, "tls with") })
			if h.Status().Connected {
				t.Errorf("%s: connected", name)
			}
			h.stop()
		}
		old := conf.Clone()
		old.MaxVersion, old.MinVersion = tls.VersionTLS11, tls.VersionTLS10
		ancient := cloud(t, testpeer.Options{TLS: old})
		_, port, _ = net.SplitHostPort(ancient.Addr())
		h := run(t, v, withCA, nil, "mqtts://localhost:"+port)
		eventually(t, "tls 1.1 refused", func() bool { return strings.Contains(h.Status().LastError, "tls with") })
	})
}

// TestServerName: the name asked for and looked for is the one configured, whatever the address.
func TestServerName(t *testing.T) {
	a := newAuthority(t)
	a.leaf(t, "cloud", "broker.example.com")
	conf := a.server(t, "cloud")
	conf.ClientAuth, conf.NextProtos = tls.NoClientCert, []string{"mqtt"}
	protocols := make(chan string, 100)
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		protocols <- cs.NegotiatedProtocol
		return nil
	}
	peer := cloud(t, testpeer.Options{TLS: conf})
	h := run(t, variants()[0], func(c *config.Uplink) {
		c.CA, c.ServerName, c.ALPN = a.path("ca.crt"), "broker.example.com", []string{"mqtt"}
	}, nil, peer.URL())
	connected(t, h)
	if name, protocol := peer.Connects()[0].ServerName, <-protocols; name != "broker.example.com" || protocol != "mqtt" {
		t.Errorf("asked for %q with %q", name, protocol)
	}
}

// TestCertificateOutsideItsTime: on a machine whose clock is wrong the error says so; a certificate that did expire is one that
// expired.
func TestCertificateOutsideItsTime(t *testing.T) {
	expired := x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired}
	wrapped := &tls.CertificateVerificationError{Err: expired}
	if err := hintClock(wrapped, time.Unix(60, 0)); !strings.Contains(err.Error(), "the clock of this machine says 1970-01-01T00:01:00Z, which is wrong") {
		t.Error(err)
	}
	if err := hintClock(wrapped, time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)); strings.Contains(err.Error(), "clock") {
		t.Error(err)
	}
}

// TestRefusedClientCertificate: a server that wants a certificate and gets none is neither reached nor back. With TLS 1.3 it says so
// after the handshake.
func TestRefusedClientCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.leaf(t, "cloud", "localhost")
	a.leaf(t, "gateway")
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		conf := a.server(t, "cloud")
		conf.MinVersion, conf.MaxVersion = version, version
		peer := cloud(t, testpeer.Options{TLS: conf})
		_, port, _ := net.SplitHostPort(peer.Addr())
		c := config.Uplink{Servers: []string{"mqtts://localhost:" + port}, Protocol: "5", ClientID: "gw", CA: a.path("ca.crt")}
		c.Limits.StrictIdentity, c.Limits.Service = true, config.AWSIoTCore
		eventually(t, "TLS "+name+": the refusal is heard", func() bool {
			return Reach(within(t, 60*time.Second), "cloud", c, "gw", 0) != nil
		})
		h := open(t, variants()[0], func(u *config.Uplink) { *u = c }, c.Servers...)
		eventually(t, "TLS "+name+": the server is not back", func() bool {
			return h.look(within(t, 60*time.Second), h.settings.servers[0]) != nil
		})
		c.Cert, c.Key = a.path("gateway.crt"), a.path("gateway.key")
		if err := Reach(within(t, 60*time.Second), "cloud", c, "gw", 0); err != nil {
			t.Errorf("TLS %s, with the certificate: %v", name, err)
		}
	}
}
