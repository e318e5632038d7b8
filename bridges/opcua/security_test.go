package opcua

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/bridges/opcua/link"
	"tidegate/config"
)

func secureTarget(url, dir, security, user, password string) Target {
	return Target{Name: "press1", Dir: dir, GatewayID: "gw", Config: config.OPCUA{
		Endpoint: url, Security: security, Username: user, Password: config.NewSecret(password),
	}}
}

// TestEveryPolicyAndMode: each of them, anonymous and with a user, after the certificate was accepted once.
func TestEveryPolicyAndMode(t *testing.T) {
	peer := startPeer(t, peerOptions{Users: map[string]string{"op": "secret"}})
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const node = "nsu=urn:tidegate:test;s=Double"
	read := func(security, user, password string) error {
		readings, err := Read(ctx, secureTarget(peer.url(), dir, security, user, password), node)
		if err == nil && !strings.HasPrefix(string(readings[0].Value), `{"v":0.1,`) {
			t.Errorf("%s: read %s", security, readings[0].Value)
		}
		return err
	}
	err := read("Basic256Sha256/SignAndEncrypt", "", "")
	if err == nil || !strings.Contains(err.Error(), "`tidegate opcua trust press1`") || !strings.Contains(err.Error(), filepath.Join(dir, "rejected")) {
		t.Fatalf("an unknown certificate: %v", err)
	}
	if _, err := Trust(dir, "other"); err == nil {
		t.Error("trusted a certificate that nobody has seen")
	}
	a, err := Trust(dir, "press1")
	if err != nil {
		t.Fatal(err)
	}
	if want := hex.EncodeToString(link.Thumbprint(peer.certificate)); a.Thumbprint != want {
		t.Errorf("trusted the thumbprint %s, the server has %s", a.Thumbprint, want)
	}
	for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		for _, mode := range []string{"/Sign", "/SignAndEncrypt"} {
			if err := read(policy+mode, "", ""); err != nil {
				t.Errorf("%s%s: %v", policy, mode, err)
			}
			if err := read(policy+mode, "op", "secret"); err != nil {
				t.Errorf("%s%s with a user: %v", policy, mode, err)
			}
		}
	}
	if err := read("None", "op", "secret"); err != nil {
		t.Errorf("None with a password that the token policy encrypts: %v", err)
	}
	for _, security := range []string{"None", "Basic256Sha256/Sign", "Basic256Sha256/SignAndEncrypt"} {
		err := read(security, "op", "wrong")
		if err == nil || !strings.Contains(err.Error(), `log in as "op"`) || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%s with a wrong password: %v", security, err)
		}
	}
	if err := read("None", "", ""); err != nil {
		t.Errorf("None without a certificate: %v", err)
	}
	if n := peer.do("sessions").Sessions; n != 0 {
		t.Errorf("%d sessions are left on the server", n)
	}
	for _, name := range []string{"own.key", "own.der"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestNeverLessThanConfigured: a server that offers less is refused with what to do; more is taken.
func TestNeverLessThanConfigured(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	open := startPeer(t, peerOptions{Policies: []string{"None"}, Modes: []string{"None"}, Users: map[string]string{"op": "secret"}})
	_, err := Read(ctx, secureTarget(open.url(), dir, "Basic256Sha256/Sign", "", ""), "i=2258")
	if err == nil || !strings.Contains(err.Error(), "the server offers None; nothing of that is as secure as the configured Basic256Sha256/Sign") {
		t.Errorf("less than configured: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "rejected")); err != nil || len(entries) != 0 {
		t.Errorf("rejected holds %d files, %v", len(entries), err)
	}

	strict := startPeer(t, peerOptions{Policies: []string{"Basic256Sha256"}, Modes: []string{"SignAndEncrypt"}})
	target := secureTarget(strict.url(), t.TempDir(), "Basic256Sha256/Sign", "", "")
	if _, err := Read(ctx, target, "i=2258"); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Fatalf("more than configured: %v", err)
	}
	if _, err := Trust(target.Dir, "press1"); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(ctx, target, "i=2258"); err != nil {
		t.Errorf("more than configured: %v", err)
	}
	target.Config.Security = "Aes256_Sha256_RsaPss/Sign"
	if _, err := Read(ctx, target, "i=2258"); err == nil {
		t.Error("a weaker policy than configured was taken")
	}
}

// TestTrustWhileRunning: a bridge that is refused goes on by itself once its server's certificate is accepted, survives
// faults under encryption, and forgets nothing.
func TestTrustWhileRunning(t *testing.T) {
	const n = 50
	peer := startPeer(t, peerOptions{Counters: n, Interval: 100, Users: map[string]string{"op": "secret"}})
	line := startProxy(t, peer.o.Port)
	bus, dir := newBus(), t.TempDir()
	c := counterConfig(line.url(), n)
	c.Security, c.Username, c.Password = "Basic256Sha256/SignAndEncrypt", "op", config.NewSecret("secret")
	b := runBridge(t, c, bus, dir)
	until(t, 20*time.Second, "refused", func() bool { return strings.Contains(b.Status().LastError, "`tidegate opcua trust press1`") })
	if bus.count() != 0 {
		t.Error("values came from a server that is not trusted")
	}
	if _, err := Trust(dir, "press1"); err != nil {
		t.Fatal(err)
	}
	took := until(t, 15*time.Second, "connected", func() bool { return b.Status().Up })
	t.Logf("connected %s after the certificate was accepted", took.Round(100*time.Millisecond))
	peer.do("run")
	settle(t, bus, 5, n)
	line.cut()
	settle(t, bus, 15, n)
	b.stop()
	time.Sleep(time.Second)
	b = runBridge(t, c, bus, dir)
	last := 0
	until(t, 15*time.Second, "flowing after a restart", func() bool { last = bus.highest("count/0"); return last > 30 })
	got := settle(t, bus, peer.do("stop").Count, n)
	t.Logf("%d values, %d lost, %d repeated; %+v", got.values, got.lost, got.repeated, b.link.Stats())
	if got.lost != 0 || got.disordered != 0 {
		t.Errorf("%d lost, %d out of order", got.lost, got.disordered)
	}
	if s := b.link.Stats(); s.Connects["reactivated"] != 1 {
		t.Errorf("the restart did not take the session over: %+v", s)
	}
}
