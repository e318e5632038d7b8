package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidegate/config"
)

// TestPasswdTogether: of several passwd at once, as a script that runs them in the background makes them, none loses what another one
// wrote.
func TestPasswdTogether(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "gw.toml")
	writeFile(t, file, "version = 1\n[gateway]\ndata_dir = 'data'\n[auth]\nusers_file = 'users.toml'\n")
	const n = 6
	var all sync.WaitGroup
	codes := make([]int, n)
	said := make([]bytes.Buffer, n)
	for i := range n {
		all.Go(func() {
			std := stdio{in: strings.NewReader("password\n"), out: &bytes.Buffer{}, err: &said[i]}
			codes[i] = cmdPasswd([]string{fmt.Sprint("user-", i), "--config", file}, std)
		})
	}
	all.Wait()
	for i, code := range codes {
		if code != exitOK {
			t.Errorf("exit code %d: %s", code, &said[i])
		}
	}
	users, err := config.LoadUsers(filepath.Join(dir, "users.toml"))
	if err != nil || len(users) != n {
		t.Errorf("%d of %d users are there (%v)", len(users), n, err)
	}
}

// TestRevokeTogether: of several devices that are revoked at once all are on the list.
func TestRevokeTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	tidegate(t, "", "cert", "init", dir).want(t, exitOK, "", "")
	const n = 6
	for i := range n {
		tidegate(t, "", "cert", "device", fmt.Sprint("press-", i), "--dir", dir).want(t, exitOK, "", "")
	}
	var all sync.WaitGroup
	codes := make([]int, n)
	said := make([]bytes.Buffer, n)
	for i := range n {
		all.Go(func() {
			std := stdio{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &said[i]}
			codes[i] = cmdCert([]string{"revoke", fmt.Sprint("press-", i), "--dir", dir}, std)
		})
	}
	all.Wait()
	for i, code := range codes {
		if code != exitOK {
			t.Errorf("exit code %d: %s", code, &said[i])
		}
	}
	if got := revokedIn(t, filepath.Join(dir, "devices.crl")); got != n {
		t.Errorf("%d of %d are on the list", got, n)
	}
}

// TestRevokeThroughLink: where the list is a link to the one that the gateway reads, that one is replaced.
func TestRevokeThroughLink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	tidegate(t, "", "cert", "init", dir).want(t, exitOK, "", "")
	tidegate(t, "", "cert", "device", "press-1", "--dir", dir).want(t, exitOK, "", "")
	list, elsewhere := filepath.Join(dir, "devices.crl"), filepath.Join(t.TempDir(), "gateway.crl")
	if err := os.Rename(list, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, list); err != nil {
		t.Fatal(err)
	}
	tidegate(t, "", "cert", "revoke", "press-1", "--dir", dir).want(t, exitOK, "", "")
	if got := revokedIn(t, elsewhere); got != 1 {
		t.Errorf("the list that the gateway reads has %d entries", got)
	}
}

// revokedIn returns how many certificates are on a list.
func revokedIn(t *testing.T, path string) int {
	t.Helper()
	block, _ := pem.Decode([]byte(readText(t, path)))
	if block == nil {
		t.Fatalf("%s holds no list", path)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return len(list.RevokedCertificateEntries)
}

// TestAuthTestKnowsTheBounds: what the broker takes from nobody is not allowed, although no rule is against it.
func TestAuthTestKnowsTheBounds(t *testing.T) {
	path := configFile(t, "")
	levels := func(n int) string { return strings.Repeat("a/", n-1) + "a" }
	for _, c := range []struct {
		action, topic string
		code          int
	}{
		{"publish", levels(200), exitOK},
		{"publish", levels(201), exitFailed},
		{"subscribe", levels(201), exitFailed},
		{"subscribe", strings.Repeat("a", 4096), exitOK},
		{"subscribe", strings.Repeat("a", 4097), exitFailed},
		{"publish", strings.Repeat("a", 4097), exitOK},
	} {
		if got := runCommand(cmdAuth, "", "test", "anonymous", c.action, c.topic, "--config", path); got.code != c.code {
			t.Errorf("%s, %d levels, %d bytes: %d %.80s", c.action, strings.Count(c.topic, "/")+1, len(c.topic), got.code, got.out)
		}
	}
}
