package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mqttv3 "github.com/eclipse/paho.mqtt.golang"

	"tidegate/access"
	"tidegate/certs"
	"tidegate/config"
)

// pki is a folder with an authority and what it made.
type pki struct {
	t   *testing.T
	dir string
	ca  *certs.Authority
	crt map[string]*x509.Certificate
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir(), crt: map[string]*x509.Certificate{}}
	ca, pair, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p.ca = ca
	p.put("ca.crt", pair.Cert)
	p.server()
	p.revoke()
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) put(name string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path("new"), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.path("new"), p.path(name)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pki) server() {
	p.t.Helper()
	pair, err := p.ca.Server([]string{"localhost", "127.0.0.1"}, certs.ServerLife, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	p.put("server.crt", pair.Cert)
	p.put("server.key", pair.Key)
}

// device makes the files of a device and returns its TLS configuration; without a name, that of a client without a certificate.
func (p *pki) device(name, file string) *tls.Config {
	p.t.Helper()
	data, err := os.ReadFile(p.path("ca.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	c.RootCAs.AppendCertsFromPEM(data)
	if file == "" {
		return c
	}
	pair, err := p.ca.Device(name, certs.DeviceLife, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	p.put(file+".crt", pair.Cert)
	p.put(file+".key", pair.Key)
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.crt[file] = cert.Leaf
	c.Certificates = []tls.Certificate{cert}
	return c
}

// revoke writes a list that names the certificates of these devices.
func (p *pki) revoke(files ...string) {
	p.t.Helper()
	var leaves []*x509.Certificate
	for _, f := range files {
		leaves = append(leaves, p.crt[f])
	}
	list, err := p.ca.Revoke(nil, leaves, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	p.put("crl", list)
}

func (p *pki) listener(url, auth string) config.Listener {
	no := false
	l := config.Listener{
		Listen: url, Anonymous: &no, Cert: p.path("server.crt"), Key: p.path("server.key"), MinTLS: "1.2",
		ClientAuth: auth, Identity: config.IdentityCN,
	}
	if auth != config.ClientAuthNone {
		l.ClientCA, l.CRL = p.path("ca.crt"), config.Paths{p.path("crl")}
	}
	return l
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startTLS runs a broker whose listener asks for certificates in that way, with these rules.
func (p *pki) startTLS(auth string, change func(*Options)) (*testBroker, *logBuffer) {
	p.t.Helper()
	log := &logBuffer{}
	b := startBroker(p.t, func(o *Options) {
		o.Listeners = map[string]config.Listener{"test": p.listener("mqtts://127.0.0.1:0", auth)}
		o.ACL = rules(p.t, config.Rule{User: "*", Publish: []string{"plant/{user}/#"}, Subscribe: []string{"#"}})
		o.Log = slog.New(slog.NewTextHandler(log, nil))
		if change != nil {
			change(o)
		}
	})
	return b, log
}

// TestMosquittoWithCertificates: what an ordinary client does with --cafile, --cert and --key.
func TestMosquittoWithCertificates(t *testing.T) {
	p := newPKI(t)
	p.device("press-1", "press-1")
	b, log := p.startTLS(config.ClientAuthRequire, nil)
	_, port, _ := net.SplitHostPort(b.addr)
	pub := func(args ...string) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		args = append([]string{"-h", "localhost", "-p", port, "--cafile", p.path("ca.crt"), "-q", "1", "-m", "x"}, args...)
		out, err := exec.CommandContext(ctx, "mosquitto_pub", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	own := []string{"--cert", p.path("press-1.crt"), "--key", p.path("press-1.key")}
	for _, version := range []string{"mqttv311", "mqttv5"} {
		v := append([]string{"-V", version}, own...)
		before := b.disk.n.Load()
		if err := pub(append(v, "-t", "plant/press-1/a")...); err != nil {
			t.Fatal(version, err)
		}
		if err := pub(append(v, "-t", "plant/press-1/a", "-u", "press-1", "-P", "whatever")...); err != nil {
			t.Errorf("%s, the name of the certificate as user name: %v", version, err)
		}
		if n := b.disk.n.Load() - before; n != 2 {
			t.Errorf("%s: %d messages taken", version, n)
		}
		_ = pub(append(v, "-t", "plant/press-2/a")...)
		if n := b.disk.n.Load() - before; n != 2 {
			t.Errorf("%s: a topic of another user was taken", version)
		}
		if err := pub(append(v, "-t", "plant/press-1/a", "-u", "press-2")...); err == nil {
			t.Errorf("%s: another user name was let in", version)
		}
		if err := pub("-V", version, "-t", "plant/press-1/a"); err == nil {
			t.Errorf("%s: a client without a certificate was let in", version)
		}
	}
	eventually(t, "refusals are counted", func() bool { // a client knows that its handshake failed before it is counted
		return b.metric(t, "tidegate_refused_logins_total", "reason", "certificate") == 2 && b.metric(t, "tidegate_failed_handshakes_total") == 2
	})
	eventually(t, "and logged", func() bool { return strings.Contains(log.String(), "reason=handshake") })
	text := log.String()
	for _, want := range []string{
		"client admitted", "audit=true", "by=certificate", "user=press-1", "tls=\"TLS 1.3\"", "mqtt=3.1.1", "mqtt=5",
		"reason=certificate", "the certificate is that of \\\"press-1\\\"", "reason=handshake",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "whatever") {
		t.Error("a password is in the log")
	}
}

// TestCertificateWithoutIdentity: it is nobody, so it is refused, and told so.
func TestCertificateWithoutIdentity(t *testing.T) {
	p := newPKI(t)
	b, log := p.startTLS(config.ClientAuthOptional, nil)
	for _, name := range []string{"", "anonymous", "a/b", "#"} {
		for _, v := range []byte{4, 5} {
			c, err := rawDial(b.addr, rawOptions{ID: "c", V: v, TLS: p.device(name, "x")})
			if err == nil {
				_ = c.Close()
				t.Errorf("common name %q was let in", name)
				continue
			}
			if want := map[byte]string{4: "0x5", 5: "0x87"}[v]; !strings.Contains(err.Error(), want) {
				t.Errorf("common name %q: %v, want %s", name, err, want)
			}
		}
	}
	if !strings.Contains(log.String(), "has no common name") {
		t.Errorf("log: %s", log.String())
	}
}

// hashOfWord is the hash of the password "word", quick to look at.
const hashOfWord = "$2a$04$GVoqhi3kEJJmlK3P8Ma3j.nhL3e/aafpdeo2TD/wi/5j3GGAjujx2"

// TestOptionalCertificate: whoever shows none logs in by password.
func TestOptionalCertificate(t *testing.T) {
	p := newPKI(t)
	users := filepath.Join(t.TempDir(), "users.toml")
	if err := os.WriteFile(users, fmt.Appendf(nil, "ann = %q\n", hashOfWord), 0o600); err != nil {
		t.Fatal(err)
	}
	acl, err := access.New(config.Auth{UsersFile: users})
	if err != nil {
		t.Fatal(err)
	}
	b, log := p.startTLS(config.ClientAuthOptional, func(o *Options) { o.ACL = acl })
	connect(t, b.addr, rawOptions{ID: "a", User: "ann", Pass: "word", TLS: p.device("", "")})
	connect(t, b.addr, rawOptions{ID: "b", TLS: p.device("bob", "bob")})
	if _, err := rawDial(b.addr, rawOptions{ID: "c", TLS: p.device("", "")}); err == nil {
		t.Error("nobody was let in")
	}
	if _, err := rawDial(b.addr, rawOptions{ID: "d", User: "ann", Pass: "word", TLS: p.device("bob", "bob")}); err == nil {
		t.Error("bob was let in as ann")
	}
	for _, want := range []string{"by=password", "by=certificate", "user=ann", "user=bob", "reason=credentials"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	// The wrong password again and again: told to wait at last.
	var told []string
	eventually(t, "the client has to wait", func() bool {
		_, err = rawDial(b.addr, rawOptions{ID: "e", V: 5, User: "ann", Pass: "no", TLS: p.device("", "")})
		told = append(told, fmt.Sprint(err))
		return strings.Contains(fmt.Sprint(err), "0x9f")
	})
	if len(told) < 5 || told[0] != "connack 0x86" {
		t.Errorf("told %q", told)
	}
	if n := b.metric(t, "tidegate_refused_logins_total", "reason", "locked"); n != 1 {
		t.Errorf("%v counted as locked", n)
	}
}

// TestRevokedWhileConnected: a new list ends the connection of whom it names, and of nobody else; new files of any kind drop
// nobody.
func TestRevokedWhileConnected(t *testing.T) {
	p := newPKI(t)
	b, log := p.startTLS(config.ClientAuthRequire, nil)
	good := connect(t, b.addr, rawOptions{ID: "good", V: 5, TLS: p.device("good", "good")})
	badTLS := p.device("bad", "bad")
	bad := connect(t, b.addr, rawOptions{ID: "bad", V: 5, TLS: badTLS})
	if changed, problems := b.ReloadCertificates(); changed != nil || problems != nil {
		t.Fatalf("%v, %v", changed, problems)
	}
	p.server()
	if changed, problems := b.ReloadCertificates(); fmt.Sprint(changed) != "[test.cert]" || problems != nil {
		t.Fatalf("%v, %v", changed, problems)
	}
	p.revoke("bad")
	if changed, problems := b.ReloadCertificates(); fmt.Sprint(changed) != "[test.client_ca]" || problems != nil {
		t.Fatalf("%v, %v", changed, problems)
	}
	if before := closed(t, bad); len(before) != 1 || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("the revoked client got %v", before)
	}
	if _, err := rawDial(b.addr, rawOptions{ID: "bad", V: 5, TLS: badTLS}); err == nil {
		t.Error("the revoked client came back")
	}
	_ = good.Publish(1, "plant/good/a", 1, nil)
	expect(t, good, 4)
	p.put("server.key", []byte("broken"))
	if changed, problems := b.ReloadCertificates(); changed != nil || len(problems) != 1 {
		t.Errorf("%v, %v", changed, problems)
	}
	if w := b.CertificateWarnings(time.Now()); len(w) != 1 || !strings.Contains(w[0], "listener test: ") {
		t.Errorf("warnings %q", w)
	}
	connect(t, b.addr, rawOptions{ID: "late", TLS: p.device("late", "late")})
	if !strings.Contains(log.String(), "client disconnected") {
		t.Errorf("log: %s", log.String())
	}
}

// TestPahoOverWebSocket: an ordinary client over ws and wss.
func TestPahoOverWebSocket(t *testing.T) {
	p := newPKI(t)
	device := p.device("press-1", "press-1")
	yes := true
	b := startBroker(t, func(o *Options) {
		o.Listeners["web"] = config.Listener{Listen: "ws://127.0.0.1:0/mqtt", Anonymous: &yes}
		o.Listeners["secure"] = p.listener("wss://127.0.0.1:0/mqtt", config.ClientAuthRequire)
		o.ACL = rules(t, config.Rule{User: "anonymous", Publish: []string{"#"}, Subscribe: []string{"#"}},
			config.Rule{User: "press-1", Publish: []string{"plant/{user}/#"}})
	})
	got := make(chan mqttv3.Message, 200)
	o := mqttv3.NewClientOptions().AddBroker("ws://" + b.Addrs()["web"].String()).SetClientID("sub").SetAutoReconnect(false)
	sub := mqttv3.NewClient(o)
	done(t, sub.Connect())
	defer sub.Disconnect(0)
	done(t, sub.Subscribe("plant/#", 1, func(_ mqttv3.Client, m mqttv3.Message) { got <- m }))

	o = mqttv3.NewClientOptions().AddBroker("wss://localhost:" + portOfAddr(b.Addrs()["secure"]) + "/mqtt").
		SetClientID("pub").SetAutoReconnect(false).SetTLSConfig(device)
	pub := mqttv3.NewClient(o)
	done(t, pub.Connect())
	defer pub.Disconnect(0)
	big := strings.Repeat("x", 200<<10) // many frames either way
	for i := range 100 {
		done(t, pub.Publish("plant/press-1/a", 1, false, fmt.Sprint(i, big[:i*2000])))
	}
	for i := range 100 {
		select {
		case m := <-got:
			if want := fmt.Sprint(i, big[:i*2000]); string(m.Payload()) != want {
				t.Fatalf("message %d has %d bytes, want %d", i, len(m.Payload()), len(want))
			}
		case <-time.After(time.Minute):
			t.Fatalf("message %d does not come", i)
		}
	}

	// A client over WebSocket that comes back by another connection: the old one ends.
	again := mqttv3.NewClient(o)
	done(t, again.Connect())
	defer again.Disconnect(0)
	eventually(t, "the old connection ended", func() bool { return !pub.IsConnected() })
	done(t, again.Publish("plant/press-1/a", 1, false, "again"))
}

func portOfAddr(a net.Addr) string { _, port, _ := net.SplitHostPort(a.String()); return port }

// done waits for a token and wants no error.
func done(t *testing.T, token mqttv3.Token) {
	t.Helper()
	if !token.WaitTimeout(time.Minute) {
		t.Fatal("no answer")
	}
	if err := token.Error(); err != nil {
		t.Fatal(err)
	}
}
