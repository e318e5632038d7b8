package link

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var testKey = sync.OnceValue(func() *rsa.PrivateKey { return newKey(2048) })

func newKey(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err) // without randomness no test means anything
	}
	return key
}

// issue makes a certificate; parent nil: self-signed.
func issue(t testing.TB, key any, public any, parent *x509.Certificate, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "plc"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if change != nil {
		change(c)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func openPKI(t *testing.T) (*PKI, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "opcua")
	p, err := OpenPKI(dir, "hall 3/west")
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func TestOwnCertificateIsMadeOnce(t *testing.T) {
	p, dir := openPKI(t)
	leaf, err := leafOf(p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if p.URI != "urn:tidegate:hall%203%2Fwest" || leaf.URIs[0].String() != p.URI || p.Key.N.BitLen() != 2048 {
		t.Errorf("URI %q, names %v, %d bits", p.URI, leaf.URIs, p.Key.N.BitLen())
	}
	if leaf.NotBefore.After(time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)) || p.Expires.Before(time.Now().AddDate(15, 0, 0)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, p.Expires)
	}
	if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		t.Errorf("self-signed: %v", err)
	}
	again, err := OpenPKI(dir, "another name")
	if err != nil || !bytes.Equal(again.Certificate, p.Certificate) {
		t.Errorf("the certificate is another one at the second start (%v)", err)
	}
	for _, name := range []string{ownKey, ownCertificate} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	// A certificate of one's own, in PEM, with its key in either form.
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate})
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(p.Key)})
	for name, data := range map[string][]byte{ownCertificate: own, ownKey: pkcs1} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if again, err = OpenPKI(dir, "gw"); err != nil || again.URI != p.URI {
		t.Errorf("PEM and PKCS#1: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, ownKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPKI(dir, "gw"); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Errorf("a certificate without its key: %v", err)
	}
}

func TestVerify(t *testing.T) {
	key := testKey()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := issue(t, key, &key.PublicKey, nil, nil)
	old := issue(t, key, &key.PublicKey, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	curve := issue(t, ec, &ec.PublicKey, nil, nil)
	short := issue(t, small, &small.PublicKey, nil, nil)
	ca := issue(t, key, &key.PublicKey, nil, func(c *x509.Certificate) { c.IsCA, c.Subject.CommonName = true, "plant CA" })
	between := issue(t, key, &key.PublicKey, ca, func(c *x509.Certificate) { c.IsCA, c.Subject.CommonName = true, "hall CA" })
	named := func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"plc1.example"}, []net.IP{net.IPv4(192, 0, 2, 7)}
	}
	leaf := issue(t, key, &key.PublicKey, ca, named)
	deep := issue(t, key, &key.PublicKey, between, named)
	late := issue(t, key, &key.PublicKey, ca, func(c *x509.Certificate) { named(c); c.NotAfter = time.Now().Add(-time.Minute) })

	p, dir := openPKI(t)
	trust := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, trustedFolder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	trust("good.der", good.Raw)
	trust("old.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Raw}))
	trust("curve.der", curve.Raw)
	trust("short.der", short.Raw)
	for name, c := range map[string]struct {
		der  []byte
		host string
		err  string
	}{
		"trusted":                          {good.Raw, "anything", ""},
		"trusted, with its chain":          {append(bytes.Clone(good.Raw), ca.Raw...), "anything", ""},
		"expired":                          {old.Raw, "", "is valid from"},
		"elliptic curve, although trusted": {curve.Raw, "", "need RSA"},
		"1024 bits, although trusted":      {short.Raw, "", "key of 1024 bits"},
		"none":                             {nil, "", "shows no certificate"},
		"garbage":                          {[]byte("garbage"), "", "shows no certificate"},
		"unknown":                          {leaf.Raw, "plc1.example", "not trusted"},
	} {
		_, err := p.verify("press1", c.host, c.der)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}

	trust("ca.der", ca.Raw)
	for name, c := range map[string]struct {
		der  []byte
		host string
		err  string
	}{
		"by a CA, host name":          {leaf.Raw, "plc1.example", ""},
		"by a CA, address":            {leaf.Raw, "192.0.2.7", ""},
		"by a CA, for another host":   {leaf.Raw, "plc2.example", "plc2.example"},
		"by a CA, another address":    {leaf.Raw, "192.0.2.8", "not trusted"},
		"by a CA in between":          {append(bytes.Clone(deep.Raw), between.Raw...), "plc1.example", ""},
		"by a CA that is not shown":   {deep.Raw, "plc1.example", "not trusted"},
		"by a CA, expired":            {late.Raw, "plc1.example", "expired"},
		"by nobody, with the CA's go": {append(bytes.Clone(issue(t, key, &key.PublicKey, nil, named).Raw), ca.Raw...), "plc1.example", "not trusted"},
	} {
		_, err := p.verify("press2", c.host, c.der)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
	trust("broken.der", []byte("no certificate"))
	if _, err := p.verify("press1", "", good.Raw); err == nil || !strings.Contains(err.Error(), "broken.der") {
		t.Errorf("a file that is no certificate: %v", err)
	}
}

func TestRejectedAndTrusted(t *testing.T) {
	key := testKey()
	p, dir := openPKI(t)
	first := issue(t, key, &key.PublicKey, nil, nil)
	_, err := p.verify("press1", "", first.Raw)
	var untrusted *UntrustedError
	if !errors.As(err, &untrusted) || untrusted.Thumbprint != hex.EncodeToString(Thumbprint(first.Raw)) {
		t.Fatalf("refused as %v", err)
	}
	if data, err := os.ReadFile(untrusted.File); err != nil || !bytes.Equal(data, first.Raw) {
		t.Errorf("%s: %v", untrusted.File, err)
	}
	if _, err := Trust(dir, "press"); err == nil {
		t.Error("the beginning of a name is a name")
	}
	if _, err := Trust(dir, "../press1"); err == nil {
		t.Error("a path is a name")
	}
	second := issue(t, key, &key.PublicKey, nil, nil)
	_, _ = p.verify("press1", "", second.Raw)
	if _, err := Trust(dir, "press1"); err == nil || !strings.Contains(err.Error(), "2 certificates") {
		t.Errorf("two to choose from: %v", err)
	}
	print := strings.ToUpper(hex.EncodeToString(Thumbprint(second.Raw)))
	if a, err := Trust(dir, print[:10]); err != nil || !strings.EqualFold(a.Thumbprint, print) {
		t.Errorf("by thumbprint: %+v, %v", a, err)
	}
	if _, err := p.verify("press1", "", second.Raw); err != nil {
		t.Errorf("after it was accepted: %v", err)
	}
	if _, err := p.verify("press1", "", first.Raw); err == nil {
		t.Error("the other one is trusted as well")
	}
	for range maxRejected + 5 {
		_, _ = p.verify("press1", "", issue(t, key, &key.PublicKey, nil, nil).Raw)
	}
	if list, err := p.rejected("press1"); err != nil || len(list) != maxRejected {
		t.Errorf("%d rejected certificates are kept, want %d (%v)", len(list), maxRejected, err)
	}
}
