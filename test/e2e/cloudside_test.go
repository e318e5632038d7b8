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
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUplinkLogin: TLS with an own authority, user and password, and servers tried in turn. A wrong password is told in the
// status and loses nothing.
func TestUplinkLogin(t *testing.T) {
	for _, protocol := range []string{"3.1.1", "5"} {
		t.Run(protocol, func(t *testing.T) {
			c := newCloud(t, "allow_anonymous false")
			c.secure("gateway-user", "right")
			c.start()
			dead := freePort(t)
			g := newGateway(t)
			g.write("ca.crt", readFile(t, filepath.Join(c.dir, "ca.crt")))
			g.write("cloud.password", "tr0ub4dor\n")
			g.configure(head, "[route.up]\n  from = [\"plant/#\"]\n", fmt.Sprintf(`[uplink.cloud]
  servers = ["mqtts://127.0.0.1:%d", "mqtts://localhost:%d"]
  protocol = %q
  username = "gateway-user"
  password = { file = "cloud.password" }
  ca = "ca.crt"
`, dead, c.port, protocol))
			g.start()
			publishLines(t, g.addr(devices), protocol, "dev", "plant/dev", 1, 1, 20)
			waitFor(t, 60*time.Second, "status to tell that the login is refused", func() bool {
				e := strings.ToLower(g.uplink("cloud").LastError)
				return strings.Contains(e, "authori") || strings.Contains(e, "user name") || strings.Contains(e, "credentials")
			}, func() string { return g.uplink("cloud").LastError })
			if g.log.contains("tr0ub4dor") {
				t.Error("the log holds the password")
			}
			g.stop()
			g.write("cloud.password", "right\n")
			g.start()
			g.requireDrained("cloud", 60*time.Second)
			if u := g.uplink("cloud"); !u.Connected || !strings.Contains(u.Server, fmt.Sprint(c.port)) {
				t.Errorf("status: %+v, want the second server", u)
			}
			g.requireLedger("cloud", 20)
			g.stop()
		})
	}
}

// secure gives the cloud broker a certificate of an authority of its own (ca.crt) and one user.
func (c *cloud) secure(user, password string) {
	c.t.Helper()
	writeCertificates(c.t, c.dir)
	passwords := filepath.Join(c.dir, "passwords")
	if r := runLimited(c.t, exec.Command("mosquitto_passwd", "-b", "-c", passwords, user, password)); r.code != 0 {
		c.t.Fatalf("mosquitto_passwd: %v", r)
	}
	path := filepath.Join(c.dir, "mosquitto.conf")
	listener := fmt.Sprintf("listener %d 127.0.0.1\n", c.port)
	secured := fmt.Sprintf("listener %d 127.0.0.1\ncafile %[2]s/ca.crt\ncertfile %[2]s/server.crt\nkeyfile %[2]s/server.key\npassword_file %[3]s\n",
		c.port, c.dir, passwords)
	text := strings.Replace(readFile(c.t, path), listener, secured, 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// writeCertificates writes ca.crt, server.crt and server.key, for localhost and 127.0.0.1.
func writeCertificates(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}
	save := func(name, kind string, der []byte) {
		must(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	caKey, serverKey := newKey(), newKey()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	save("ca.crt", "CERTIFICATE", der)
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err = x509.CreateCertificate(rand.Reader, server, ca, &serverKey.PublicKey, caKey)
	must(err)
	save("server.crt", "CERTIFICATE", der)
	der, err = x509.MarshalECPrivateKey(serverKey)
	must(err)
	save("server.key", "EC PRIVATE KEY", der)
}

// TestCloudForbids: a cloud that does not allow a topic (0x87) is usually one wrong rule: the uplink waits with its reason in
// the status, nothing becomes a dead letter, and with the rule mended everything arrives in order.
func TestCloudForbids(t *testing.T) {
	c := newCloud(t)
	rules := filepath.Join(c.dir, "rules")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(c.dir, "mosquitto.conf")
	if err := os.WriteFile(conf, []byte(readFile(t, conf)+"acl_file "+rules+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("topic readwrite tidegate/#\ntopic read plant/#\n")
	c.start()
	far := consume(t, c.addr(), "application", "plant/#")
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	publishLines(t, g.addr(devices), "5", "dev", "plant/dev", 1, 1, 50)
	var u uplinkStatus
	waitFor(t, 60*time.Second, "status to say that the cloud forbids it", func() bool {
		u = g.uplink("cloud")
		return strings.Contains(strings.ToLower(u.LastError), "authori") || strings.Contains(u.LastError, "0x87")
	}, func() string { return fmt.Sprintf("%+v", u) })
	if u.Records != 50 || u.Dead != 0 {
		t.Errorf("status: %+v, want 50 records kept and no dead letter", u)
	}
	c.stop()
	write("topic readwrite #\n")
	c.start()
	far.requireAll(t, "plant/dev", 50, 90*time.Second)
	g.requireDrained("cloud", soon)
	g.requireLedger("cloud", 50)
	g.stop()
}

// TestDeadLetter: a record that the cloud refuses for its own sake becomes a dead letter and holds up nothing.
func TestDeadLetter(t *testing.T) {
	c := startCloud(t, "message_size_limit 2000")
	far := consume(t, c.addr(), "application", "plant/#")
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	w, err := dial(g.addr(devices), "5", login{client: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for i := 1; i <= 30; i++ {
		payload := fmt.Appendf(nil, "dev %d", i)
		if i == 10 {
			payload = append(payload, strings.Repeat(" x", 2000)...)
		}
		if got := ackOf(t, w, "plant/dev", 1, uint16(i), payload); got != 0 {
			t.Fatalf("message %d: reason %#x", i, got)
		}
	}
	waitFor(t, 60*time.Second, "the 29 others to arrive", func() bool { return far.distinct("plant/dev") == 29 },
		func() string { return far.verdict("plant/dev", 30).String() })
	if v := far.verdict("plant/dev", 30); len(v.disorder) > 0 || len(v.lost) != 1 || v.lost[0] != 10 {
		t.Errorf("%v, want only number 10 missing", v)
	}
	g.requireDrained("cloud", soon)
	if u := g.uplink("cloud"); u.Dead != 1 {
		t.Errorf("status: %+v, want one dead letter", u)
	}
	if places := g.metrics().places("cloud"); places["dead"] != 1 {
		t.Errorf("ledger: %s, want dead=1", ledgerText(places))
	}
	g.requireLedger("cloud", 30)
	g.stop()
	g.start() // the dead letter is stored, too
	if u := g.uplink("cloud"); u.Dead != 1 {
		t.Errorf("after a restart the status is %+v, want one dead letter", u)
	}
	g.stop()
}
