package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate makes a certificate and its key in PEM form.
func certificate(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))
}

func TestTLSFiles(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(time.Hour))
	_, otherKey := certificate(t, time.Now().Add(time.Hour))
	oldCert, oldKey := certificate(t, time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC))
	dir := write(t, map[string]string{
		"ca": cert, "cert": cert, "key": key, "other.key": otherKey, "old": oldCert, "old.key": oldKey, "none": "", "text": "text",
	})
	const tls = "[route.r]\nfrom = ['a']\n[uplink.c]\nservers = ['mqtts://h']\n"
	for _, c := range []struct{ text, want string }{
		{"ca = 'ca'\ncert = 'cert'\nkey = 'key'", ""},
		{"ca = 'text'", "t.toml:5:6: uplink.c.ca: text holds no certificate in PEM form"},
		{"ca = 'none'", "t.toml:5:6: uplink.c.ca: none is empty"},
		{"cert = 'cert'\nkey = 'other.key'", "t.toml:5:8: uplink.c.cert: cert and other.key do not make a pair: private key does not match public key"},
		{"cert = 'text'\nkey = 'key'", "t.toml:5:8: uplink.c.cert: text and key do not make a pair: failed to find any PEM data in certificate input"},
		{"cert = 'old'\nkey = 'old.key'", "t.toml:5:8: uplink.c.cert: warning: old expired on 2020-01-02"},
	} {
		name := filepath.Join(dir, "t.toml")
		_, ps := read(name, []document{{name, []byte(tls + c.text)}}, nil)
		if got := relative(dir, ps); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", strings.ReplaceAll(c.text, "\n", "; "), got, c.want)
		}
	}
}
