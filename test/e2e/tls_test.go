package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	paho3 "github.com/eclipse/paho.mqtt.golang"
)

// tlsListeners are one for devices with certificates and one for web clients, beside the plain one of head.
const tlsListeners = `
[listener.secure]
  listen    = "mqtts://127.0.0.1:0"
  cert      = "tls/server.crt"
  key       = "tls/server.key"
  client_ca = "tls/ca.crt"
  crl       = "tls/devices.crl"
[listener.web]
  listen      = "wss://127.0.0.1:0"
  cert        = "tls/server.crt"
  key         = "tls/server.key"
  client_ca   = "tls/ca.crt"
  crl         = "tls/devices.crl"
  client_auth = "optional"
`

// certified starts a gateway with certificates that its own command made, for the devices a and b.
func certified(t *testing.T) *gateway {
	t.Helper()
	g := newGateway(t, tlsListeners)
	for _, args := range [][]string{{"init"}, {"device", "a"}, {"device", "b"}} {
		if r := runCommand(t, g.dir, "", append([]string{"cert"}, args...)...); r.code != 0 {
			t.Fatalf("cert %v: %v", args, r)
		}
	}
	// What a device has is a copy: a revocation moves the files here aside.
	if err := os.CopyFS(filepath.Join(g.dir, "devices"), os.DirFS(filepath.Join(g.dir, "tls", "devices"))); err != nil {
		t.Fatal(err)
	}
	g.start()
	return g
}

// own are the flags of mosquitto's clients with the certificate of a device.
func (g *gateway) own(device string) []string {
	at := filepath.Join(g.dir, "devices", device)
	return []string{"--cafile", filepath.Join(g.dir, "tls", "ca.crt"), "--cert", at + ".crt", "--key", at + ".key"}
}

// move renames a file of the folder of certificates.
func (g *gateway) move(from, to string) {
	g.t.Helper()
	if err := os.Rename(filepath.Join(g.dir, "tls", from), filepath.Join(g.dir, "tls", to)); err != nil {
		g.t.Fatal(err)
	}
}

// TestCertificatesLive: while devices are connected, the server's certificate is broken, mended and replaced, and one of them
// is revoked. Nobody but that one notices.
func TestCertificatesLive(t *testing.T) {
	g := certified(t)
	secure := strings.Replace(g.addr("listener.secure"), "127.0.0.1", "localhost", 1)
	a := subscribe(t, secure, "", append(g.own("a"), "-q", "1", "-t", "x/#", "-k", "60")...)
	b := subscribe(t, secure, "", append(g.own("b"), "-q", "1", "-t", "x/#", "-k", "60")...)

	g.move("server.key", "kept.key")
	g.write("tls/server.key", "broken")
	waitFor(t, soon, "a warning", func() bool {
		_, body := g.get("/readyz")
		return strings.HasPrefix(body, "ready\nwarning: listener secure: certificate ")
	})
	if r := g.run("status"); r.code != 0 || !strings.Contains(r.out, "warning: listener web: certificate ") {
		t.Errorf("status: %v", r)
	}
	if r := g.run("buffer", "ls"); r.code != 0 {
		t.Errorf("buffer ls: %v", r)
	}
	publish(t, secure, append(g.own("b"), "-q", "1", "-t", "x/1", "-m", "with the earlier key")...)

	g.move("server.key", "broken.key")
	g.move("kept.key", "server.key")
	waitFor(t, soon, "no warning", func() bool {
		_, body := g.get("/readyz")
		return body == "ready\n"
	})
	before := serverSerial(t, g, secure)
	g.move("server.crt", "old.crt")
	g.move("server.key", "old.key")
	if r := runCommand(t, g.dir, "", "cert", "server"); r.code != 0 {
		t.Fatalf("%v", r)
	}
	waitFor(t, soon, "the new certificate", func() bool { return serverSerial(t, g, secure) != before })

	if r := runCommand(t, g.dir, "", "cert", "revoke", "a"); r.code != 0 {
		t.Fatalf("%v", r)
	}
	waitFor(t, soon, "the revoked device to be gone", func() bool { return g.log.contains("client disconnected") })
	if r := tryPublish(t, secure, append(g.own("a"), "-q", "1", "-t", "x/2", "-m", "revoked")...); r.code == 0 {
		t.Error("the revoked device came in")
	}
	publish(t, secure, append(g.own("b"), "-q", "1", "-t", "x/3", "-m", "good")...)
	b.await("x/1 with the earlier key")
	b.await("x/3 good")
	if b.sawDebug("reconnect") || strings.Join(b.got(), ";") != "x/1 with the earlier key;x/3 good" {
		t.Errorf("the other device got %q", b.got())
	}
	if len(a.got()) != 1 {
		t.Errorf("the revoked device got %q", a.got())
	}
	g.stop()
}

// serverSerial returns the serial number of the certificate that the gateway shows.
func serverSerial(t *testing.T, g *gateway, addr string) string {
	t.Helper()
	c, err := tls.Dial("tcp", addr, g.clientTLS("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// clientTLS is the configuration of a client with the certificate of a device; "" is one without.
func (g *gateway) clientTLS(device string) *tls.Config {
	g.t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	c.RootCAs.AppendCertsFromPEM([]byte(readFile(g.t, filepath.Join(g.dir, "tls", "ca.crt"))))
	if device != "" {
		at := filepath.Join(g.dir, "devices", device)
		pair, err := tls.LoadX509KeyPair(at+".crt", at+".key")
		if err != nil {
			g.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// TestSecureWebSocket: an ordinary client over wss, with a certificate and without, on either path.
func TestSecureWebSocket(t *testing.T) {
	g := certified(t)
	near := subscribe(t, g.addr(devices), "", "-q", "1", "-t", "#")
	url := "wss://" + g.addr("listener.web")
	for _, c := range []struct{ device, path, want string }{{"a", "/mqtt", "by=certificate"}, {"", "/", "by=anonymous"}, {"b", "", "by=certificate"}} {
		o := paho3.NewClientOptions().AddBroker(url + c.path).SetClientID("web " + c.device).SetTLSConfig(g.clientTLS(c.device)).SetConnectRetry(false)
		client := paho3.NewClient(o)
		for _, step := range []func() paho3.Token{
			client.Connect,
			func() paho3.Token { return client.Publish("web", 1, false, "from "+c.device) },
		} {
			if token := step(); !token.WaitTimeout(soon) || token.Error() != nil {
				t.Fatalf("%+v: %v", c, token.Error())
			}
		}
		near.await("web from " + c.device)
		client.Disconnect(100)
		if !g.log.contains(c.want) {
			t.Errorf("%+v: the log does not say %q", c, c.want)
		}
	}
	if code, _ := g.get("/readyz"); code != 200 {
		t.Errorf("readyz: %d", code)
	}
	g.stop()
}
