package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidegate/config"
)

// TestCertInit: what is made can be used at once, has the modes it should have whatever the umask, and nothing is replaced.
func TestCertInit(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "tls")
	r := tidegate(t, "", "cert", "init", dir, "--host", "gw.plant.example", "--host", "192.0.2.7", "--host", "2001:db8::7")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	modes := map[string]fs.FileMode{"": 0o700, "ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644, "server.crt": 0o644, "devices.crl": 0o644}
	before := map[string]string{}
	for name, mode := range modes {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info, err, mode)
		}
		if name != "" {
			before[name] = readText(t, filepath.Join(dir, name))
		}
	}

	// What is printed is the end of a configuration that runs.
	c, err := config.Parse(filepath.Join(base, "tidegate.toml"), []byte("version = 1\n"+r.out))
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings %v", c.Warnings)
	}
	if l := c.Listeners["devices"]; l.ClientAuth != "require" || l.Identity != "cn" || l.ClientCA != filepath.Join(dir, "ca.crt") || len(l.CRL) != 1 {
		t.Errorf("listener %+v", l)
	}

	leaf := leafOf(t, filepath.Join(dir, "server.crt"))
	host, _ := os.Hostname()
	for _, name := range []string{"gw.plant.example", "192.0.2.7", "[2001:db8::7]", host, "localhost", "127.0.0.1", "[::1]"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	again := tidegate(t, "", "cert", "init", dir)
	if again.code != exitFailed || !strings.Contains(again.err, "left alone") {
		t.Errorf("once more: %+v", again)
	}
	for name, text := range before {
		if readText(t, filepath.Join(dir, name)) != text {
			t.Errorf("%s was replaced", name)
		}
	}
}

func TestCertDeviceAndRevoke(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	if r := tidegate(t, "", "cert", "device", "press-1", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "cert init") {
		t.Errorf("without an authority: %+v", r)
	}
	for _, args := range [][]string{
		{"cert", "init", dir},
		{"cert", "device", "press-1", "--dir", dir},
		{"cert", "device", "--dir", dir, "--days", "10", "press-2"},
	} {
		if r := tidegate(t, "", args...); r.code != exitOK {
			t.Fatalf("%v: %+v", args, r)
		}
	}
	at := filepath.Join(dir, "devices", "press-1")
	if info, err := os.Stat(at + ".key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := tls.LoadX509KeyPair(at+".crt", at+".key"); err != nil {
		t.Error(err)
	}
	first := leafOf(t, at+".crt")
	roots := x509.NewCertPool()
	roots.AddCert(leafOf(t, filepath.Join(dir, "ca.crt")))
	if _, err := first.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if first.Subject.CommonName != "press-1" {
		t.Errorf("common name %q", first.Subject.CommonName)
	}
	if r := tidegate(t, "", "cert", "device", "press-1", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "left alone") {
		t.Errorf("the same once more: %+v", r)
	}

	for i := range 2 { // after the first the name is free for another certificate
		if i > 0 {
			if r := tidegate(t, "", "cert", "device", "press-1", "--dir", dir); r.code != exitOK {
				t.Fatalf("%+v", r)
			}
		}
		if r := tidegate(t, "", "cert", "revoke", "press-1", "--dir", dir); r.code != exitOK {
			t.Fatalf("%+v", r)
		}
	}
	if r := tidegate(t, "", "cert", "revoke", "press-1", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "made no certificate") {
		t.Errorf("a third time: %+v", r)
	}
	block, _ := pem.Decode([]byte(readText(t, filepath.Join(dir, "devices.crl"))))
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.RevokedCertificateEntries) != 2 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(first.SerialNumber) != 0 || list.Number.Int64() != 3 {
		t.Errorf("list number %d has %d entries", list.Number, len(list.RevokedCertificateEntries))
	}
}

// TestCertServer: a certificate that knows too few names is replaced by moving it away.
func TestCertServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	if r := tidegate(t, "", "cert", "init", dir); r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	if r := tidegate(t, "", "cert", "server", "--dir", dir); r.code != exitFailed || !strings.Contains(r.err, "move it away first") {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"server.crt", "server.key"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "old-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if r := tidegate(t, "", "cert", "server", "--dir", dir, "--host", "new.example"); r.code != exitOK {
		t.Errorf("%+v", r)
	}
	if names := leafOf(t, filepath.Join(dir, "server.crt")).DNSNames; !slices.Contains(names, "new.example") {
		t.Errorf("names %v", names)
	}
}

func TestCertWrongUse(t *testing.T) {
	for _, args := range [][]string{
		{"cert"},
		{"cert", "innit"},
		{"cert", "init", "a", "b"},
		{"cert", "init", "--days", "0"},
		{"cert", "init", "--host", "a b"},
		{"cert", "init", "--host", "https://a"},
		{"cert", "device"},
		{"cert", "device", "a/b"},
		{"cert", "device", "../x"},
		{"cert", "device", ".x"},
		{"cert", "device", "anonymous"},
		{"cert", "device", strings.Repeat("x", 65)},
		{"cert", "revoke"},
		{"cert", "revoke", "../ca"},
	} {
		if r := tidegate(t, "", args...); r.code != exitUsage {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func leafOf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(readText(t, path)))
	if block == nil {
		t.Fatalf("%s holds nothing", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
