package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates writes ca.crt and, signed by it, NAME.crt and NAME.key for each name. A name with a dot is a server's.
func certificates(t testing.TB, dir string, names ...string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.crt", "CERTIFICATE", der)
	for i, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if strings.Contains(name, ".") {
			leaf.DNSNames = []string{name}
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", "CERTIFICATE", der)
		write(name+".key", "PRIVATE KEY", private)
	}
}

// TestPresetAgainstMosquitto: with a preset, what the cloud would refuse becomes a dead letter and holds nothing up, the retain
// flag is removed and counted, and the login is by certificate under the name of the service.
func TestPresetAgainstMosquitto(t *testing.T) {
	const host, n = "abc-ats.iot.eu-central-1.amazonaws.com", 50
	dir, tls := t.TempDir(), freePort(t)
	certificates(t, dir, host, "press-hall-3")
	c := startCloud(t, fmt.Sprintf("listener %d 127.0.0.1", tls), "cafile "+dir+"/ca.crt", "certfile "+dir+"/"+host+".crt",
		"keyfile "+dir+"/"+host+".key", "require_certificate true")
	far := subscribe(t, c.addr(), "%t %r %p", "-V", "mqttv5", "-i", "application", "-q", "1", "-t", "plant/#")
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", fmt.Sprintf(`[uplink.aws]
  preset = "aws-iot-core"
  servers = ["mqtts://127.0.0.1:%d"]
  server_name = %q
  ca = "%s/ca.crt"
  cert = "%s/press-hall-3.crt"
  key = "%s/press-hall-3.key"
`, tls, host, dir, dir, dir))
	g.start()
	g.requireConnected("aws")
	dev := g.addr(devices)
	publish(t, dev, "-q", "1", "-t", "plant/1/2/3/4/5/6/7/8", "-m", "too deep")
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, 128<<10+1), 0o600); err != nil {
		t.Fatal(err)
	}
	publish(t, dev, "-q", "1", "-t", "plant/large", "-f", large)
	publish(t, dev, "-q", "1", "-r", "-t", "plant/kept", "-m", "kept")
	publishLines(t, dev, "5", "dev", "plant/dev", 1, 1, n)
	g.requireDrained("aws", soon)
	u := g.uplink("aws")
	if u.Dead != 2 || u.Delivered != n+1 || !u.Connected {
		t.Errorf("status %+v, want 2 dead letters and %d records delivered", u, n+1)
	}
	m := g.metrics()
	if v := m.sum("tidegate_uplink_stripped_total", "uplink=aws", "what=retain"); v != 1 {
		t.Errorf("%v retain flags were counted", v)
	}
	if v := m.sum("tidegate_uplink_reconnects_total", "uplink=aws"); v != 0 {
		t.Errorf("%v connections were lost", v)
	}
	far.await("plant/kept 0 kept")
	g.requireLedger("aws", n+3)
	g.stop()
	// Nothing of it is retained at the cloud, not even the gateway's own status.
	late := subscribe(t, c.addr(), "%t %p", "-V", "mqttv5", "-i", "late", "-q", "1", "-t", "plant/#", "-t", "tidegate/#")
	publish(t, c.addr(), "-q", "1", "-t", "plant/end", "-m", "end")
	late.await("plant/end end")
	if got := late.got(); len(got) != 1 {
		t.Errorf("retained at the cloud: %q", got)
	}
}
