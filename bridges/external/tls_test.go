package external

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
)

// certificate writes a certificate that signs itself, for a server and a client called name, and its key.
func certificate(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestTLS: the broker's certificate is checked, under the name that the configuration gives it, and the gateway shows its own.
func TestTLS(t *testing.T) {
	cert, key := certificate(t, "broker.test")
	clientCert, clientKey := certificate(t, "gateway.test")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	if b, err := os.ReadFile(clientCert); err != nil || !clients.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	broker, err := testpeer.Listen(testpeer.Options{TLS: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	stranger := start(t, broker, nil)
	wait(t, "an unknown certificate to be refused", func() bool { return strings.Contains(stranger.Status().LastError, "tls: ") })
	stranger.stop()
	p := start(t, broker, func(c *config.External, _ *Options) {
		c.CA, c.Cert, c.Key, c.ServerName = cert, clientCert, clientKey, "broker.test"
	})
	wait(t, "the bridge to be up", func() bool { return p.Status().Up })
	p.send(t, 1, 1)
	p.disk.sync(1)
	wait(t, "the acknowledgement", func() bool { got, _ := p.acks(); return len(got) == 1 })
	if c := broker.Connects()[0]; c.ServerName != "broker.test" {
		t.Errorf("asked for %q", c.ServerName)
	}
	c := p.c
	if err := Reach(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	c.ServerName = "other.test"
	if err := Reach(t.Context(), c, 0); err == nil {
		t.Error("reached under another name")
	}
	c.CA = clientKey
	if _, err := New(c, Options{}); err == nil {
		t.Error("a key was taken for a certificate")
	}
}
