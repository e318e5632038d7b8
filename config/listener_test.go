package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// authority makes an authority valid until then, and a list of it that is current until then.
func authority(t *testing.T, name string, until, current time.Time) (cert, key, crl string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: until.Add(-100 * 24 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: current.Add(-time.Hour), NextUpdate: current,
	}, ca, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})),
		string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
}

func TestListenerTLS(t *testing.T) {
	later, long := time.Now().Add(time.Hour), time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)
	ca, key, crl := authority(t, "ours", later, later)
	other, otherKey, otherCRL := authority(t, "other", later, later)
	oldCA, oldKey, oldCRL := authority(t, "ours", long, long)
	leaf, leafKey := certificate(t, later)
	block, _ := pem.Decode([]byte(crl))
	dir := write(t, map[string]string{
		"ca": ca, "key": key, "crl": crl, "crl.der": string(block.Bytes), "other": other, "other.key": otherKey, "other.crl": otherCRL,
		"both.crl": crl + otherCRL, "both": ca + other, "old": oldCA, "old.key": oldKey, "old.crl": oldCRL, "leaf": leaf, "leaf.key": leafKey,
		"text": "text", "empty": "",
	})
	if err := os.Chmod(filepath.Join(dir, "leaf.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "key"), 0o600); err != nil {
		t.Fatal(err)
	}
	const start = "[listener.a]\nlisten = 'mqtts://127.0.0.1'\ncert = 'ca'\nkey = 'key'\n"
	for _, c := range []struct{ text, want string }{
		{start, ""},
		{start + "client_ca = 'ca'\ncrl = 'crl'", ""},
		{start + "client_ca = 'ca'\ncrl = 'crl.der'", ""},
		{start + "client_ca = 'both'\ncrl = ['crl.der', 'other.crl', 'both.crl']", ""},
		{start + "client_ca = 'ca'\nclient_auth = 'optional'\nidentity = 'san-uri'\nmin_tls = '1.3'", ""},
		{start + "min_tls = '1.1'", `t.toml:5:11: listener.a.min_tls: must be "1.2" or "1.3", not "1.1"; did you mean "1.2"?`},
		{start + "client_ca = 'ca'\nidentity = 'dns'", `t.toml:6:12: listener.a.identity: must be "cn", "san-dns" or "san-uri", not "dns"`},
		{start + "client_auth = 'yes'", `t.toml:5:15: listener.a.client_auth: must be "none", "optional" or "require", not "yes"`},
		{start + "client_auth = 'optional'", "t.toml:5:15: listener.a.client_auth: needs the authorities of the clients' certificates: set client_ca"},
		{start + "client_ca = 'ca'\nclient_auth = 'none'", "t.toml:6:15: listener.a.client_auth: warning: client_ca has no effect: no client is asked for a certificate"},
		{start + "identity = 'cn'", "t.toml:5:12: listener.a.identity: warning: has no effect: no client is asked for a certificate"},
		{start + "crl = 'crl'", "t.toml:5:7: listener.a.crl: needs the authorities that its lists are of: set client_ca"},
		{start + "client_ca = 'missing'", "t.toml:5:13: listener.a.client_ca: missing: no such file"},
		{start + "client_ca = 'text'", "t.toml:5:13: listener.a.client_ca: text holds no certificate in PEM form"},
		{start + "client_ca = ''", "t.toml:5:13: listener.a.client_ca: is empty; leave the key out when there is no such file"},
		{start + "client_ca = 'leaf'", ""},
		{start + "client_ca = 'old'", `t.toml:5:13: listener.a.client_ca: warning: old: the authority "CN=ours" expired on 2020-01-02, and with it every certificate it made`},
		{start + "client_ca = 'ca'\ncrl = 'text'", "t.toml:6:7: listener.a.crl: text is no certificate revocation list in PEM or DER form: x509: malformed crl"},
		{start + "client_ca = 'ca'\ncrl = 'ca'", "t.toml:6:7: listener.a.crl: ca holds no certificate revocation list"},
		{start + "client_ca = 'ca'\ncrl = 'empty'", "t.toml:6:7: listener.a.crl: empty is empty"},
		{start + "client_ca = 'ca'\ncrl = ['crl', 'other.crl']", `t.toml:6:15: listener.a.crl: other.crl the list of "CN=other" is signed by none of the authorities in client_ca`},
		{start + "client_ca = 'ca'\ncrl = 3", "t.toml:6:7: listener.a.crl: must be an array, not an integer"},
		{start + "client_ca = 'ca'\ncrl = ['']", "t.toml:6:8: listener.a.crl: is empty; leave the key out when there is no such file"},
		{
			start + "client_ca = 'old'\ncrl = 'old.crl'",
			`t.toml:5:13: listener.a.client_ca: warning: old: the authority "CN=ours" expired on 2020-01-02, and with it every certificate it made` + "\n" +
				`t.toml:6:7: listener.a.crl: warning: old.crl: the list of "CN=ours" expired on 2020-01-02: what was revoked since is not known`,
		},
		{"[listener.a]\nlisten = 'wss://127.0.0.1'\ncert = 'leaf'\nkey = 'leaf.key'", "t.toml:3:8: listener.a.cert: warning: leaf names no host among its subject alternative names: most clients will not believe it\n" +
			"t.toml:4:7: listener.a.key: warning: everybody on this machine can read leaf.key; chmod o-r it"},
		{"[listener.a]\nlisten = 'mqtts://127.0.0.1'\ncert = 'old'\nkey = 'old.key'", "t.toml:3:8: listener.a.cert: warning: old expired on 2020-01-02"},
		{"[listener.a]\nlisten = 'mqtts://127.0.0.1'\ncert = 'ca'\nkey = 'other.key'", "t.toml:3:8: listener.a.cert: ca and other.key do not make a pair: private key does not match public key"},
		// Whoever has a certificate can connect, so nobody has to be in a users file.
		{"[listener.a]\nlisten = 'mqtts://:8883'\ncert = 'ca'\nkey = 'key'\nclient_ca = 'ca'\n[[auth.rule]]\nuser = 'press-1'\npublish = ['a']", ""},
		{"[admin]\nlisten = 'https://:8443'\ncert = 'ca'\nkey = 'key'\nclient_ca = 'ca'", ""},
		{"[admin]\nlisten = 'https://:8443'\ncert = 'ca'\nkey = 'key'", "t.toml:2:10: admin.listen: away from loopback [admin] wants a login: https:// with client_ca, so that only holders of a certificate come in; or listen on 127.0.0.1"},
		{"[admin]\nlisten = 'http://127.0.0.1'\ncert = 'ca'", `t.toml:3:8: admin.cert: is only for https://; write listen = "https://...", or remove it`},
	} {
		name := filepath.Join(dir, "t.toml")
		_, ps := read(name, []document{{name, []byte(c.text)}}, nil)
		if got := relative(dir, ps); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", strings.ReplaceAll(c.text, "\n", "; "), got, c.want)
		}
	}
}

// TestListenerDefaults: the ports of the schemes, and what an absent client_auth means.
func TestListenerDefaults(t *testing.T) {
	ca, key, _ := authority(t, "ours", time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	dir := write(t, map[string]string{"ca": ca, "key": key})
	name := filepath.Join(dir, "t.toml")
	text := "[auth]\nanonymous = true\n"
	for i, url := range []string{"mqtt://127.0.0.1", "mqtts://127.0.0.2", "ws://127.0.0.3", "wss://127.0.0.4", "wss://127.0.0.5:1234/a/b"} {
		text += "[listener." + string(rune('a'+i)) + "]\nlisten = '" + url + "'\n"
		if strings.Contains(url, "s://1") && !strings.Contains(url, "ws://") {
			text += "cert = 'ca'\nkey = 'key'\n"
		}
	}
	text += "[listener.f]\nlisten = 'wss://127.0.0.6'\ncert = 'ca'\nkey = 'key'\nclient_ca = 'ca'\norigins = ['https://hmi']\n"
	c, ps := read(name, []document{{name, []byte(text)}}, nil)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	for name, want := range map[string]string{
		"a": "mqtt://127.0.0.1:1883", "b": "mqtts://127.0.0.2:8883", "c": "ws://127.0.0.3:80/mqtt", "d": "wss://127.0.0.4:443/mqtt", "e": "wss://127.0.0.5:1234/a/b",
	} {
		if got := c.Listeners[name]; got.Listen != want || got.ClientAuth != ClientAuthNone {
			t.Errorf("%s: %s, client_auth %s; want %s", name, got.Listen, got.ClientAuth, want)
		}
	}
	yes := true
	want := Listener{
		Listen: "wss://127.0.0.6:443/mqtt", Anonymous: &yes, Cert: filepath.Join(dir, "ca"), Key: filepath.Join(dir, "key"),
		ClientCA: filepath.Join(dir, "ca"), ClientAuth: ClientAuthRequire, Identity: IdentityCN, MinTLS: "1.2", Origins: []string{"https://hmi"},
	}
	if got := c.Listeners["f"]; !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if c, ps := checkText("[broker]\nmax_connect_rate = '50/s'\nmax_clients_per_source = 7"); len(ps) > 0 || c.Broker.MaxConnectRate.PerSecond() != 50 || c.Broker.MaxClientsPerSource != 7 {
		t.Errorf("%+v, %v", c.Broker, ps)
	}
}

func FuzzCRLs(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if lists, err := ParseCRLs(data, nil); err == nil {
			t.Errorf("%d lists of nobody were taken", len(lists))
		}
		if all, err := ParseAuthorities(data); err == nil && len(all) == 0 {
			t.Error("no authority and no error")
		}
	})
}
