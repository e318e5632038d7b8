package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho5 "github.com/eclipse/paho.golang/paho"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/xdg-go/scram"

	"tidegate/access"
	"tidegate/config"
)

// conversation is the client's side of SCRAM for a client library.
type conversation struct {
	user, password string
	conv           *scram.ClientConversation
}

// first returns what begins an exchange.
func (c *conversation) first() []byte {
	client, err := scram.SHA256.NewClient(c.user, c.password, "")
	if err != nil {
		return nil
	}
	c.conv = client.NewConversation()
	text, _ := c.conv.Step("")
	return []byte(text)
}

func (c *conversation) next(data []byte) []byte {
	text, err := c.conv.Step(string(data))
	if err != nil {
		return []byte(err.Error())
	}
	return []byte(text)
}

func (c *conversation) Authenticate(a *paho5.Auth) *paho5.Auth {
	return &paho5.Auth{ReasonCode: codeContinue, Properties: &paho5.AuthProperties{
		AuthMethod: methodSCRAM, AuthData: c.next(a.Properties.AuthData),
	}}
}

func (c *conversation) Authenticated() {}

// startSCRAM runs a broker whose user ann may log in by SCRAM with "word".
func startSCRAM(t *testing.T) (*testBroker, *logBuffer) {
	t.Helper()
	users := filepath.Join(t.TempDir(), "users.toml")
	text := ""
	for _, name := range []string{"ann", "bob"} {
		client, err := scram.SHA256.NewClient(name, "word", "")
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt of " + name, Iters: 4096})
		if err != nil {
			t.Fatal(err)
		}
		v := config.Verifier{Iterations: c.Iters, Salt: []byte(c.Salt), StoredKey: c.StoredKey, ServerKey: c.ServerKey}
		text += fmt.Sprintf("%s = { bcrypt = %q, scram = %q }\n", name, hashOfWord, v)
	}
	if err := os.WriteFile(users, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	acl, err := access.New(config.Auth{UsersFile: users, Rules: []config.Rule{{User: "ann", Publish: []string{"of/{user}"}}}})
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	no := false
	return startBroker(t, func(o *Options) {
		o.Listeners["test"] = config.Listener{Listen: "mqtt://127.0.0.1:0", Anonymous: &no}
		o.ACL, o.Log = acl, slog.New(slog.NewTextHandler(log, nil))
	}), log
}

// TestPahoSCRAM: a client library logs in by SCRAM-SHA-256, publishes as that user, and authenticates again while connected. The
// gateway asks on by an AUTH 0x18 [MQTT-3.15.2-1] [MQTT-4.12.0-2] or refuses by a CONNACK [MQTT-4.12.0-4].
func TestPahoSCRAM(t *testing.T) {
	b, log := startSCRAM(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func(c *conversation, name string) (*paho5.Client, *paho5.Connack, error) {
		t.Helper()
		conn, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		client := paho5.NewClient(paho5.ClientConfig{Conn: conn, AuthHandler: c})
		cp := &paho5.Connect{
			ClientID: "c", CleanStart: true, KeepAlive: 30,
			Properties: &paho5.ConnectProperties{AuthMethod: methodSCRAM, AuthData: c.first()},
		}
		if name != "" {
			cp.UsernameFlag, cp.Username = true, name
		}
		ack, err := client.Connect(ctx, cp)
		return client, ack, err
	}
	ann := &conversation{user: "ann", password: "word"}
	client, ack, err := open(ann, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Disconnect(&paho5.Disconnect{}) }()
	if ack.Properties.AuthMethod != methodSCRAM { // [MQTT-4.12.0-5]
		t.Errorf("CONNACK has the method %q", ack.Properties.AuthMethod)
	}
	if ann.next(ack.Properties.AuthData); !ann.conv.Valid() {
		t.Error("the gateway did not prove that it knows the password")
	}
	publish := func() {
		t.Helper()
		if r, err := client.Publish(ctx, &paho5.Publish{Topic: "of/ann", QoS: 1}); err != nil || r.ReasonCode != 0 {
			t.Fatalf("%v, %v", r, err)
		}
	}
	publish()
	for range 2 {
		r, err := client.Authenticate(ctx, &paho5.Auth{ReasonCode: codeReauthenticate, Properties: &paho5.AuthProperties{
			AuthMethod: methodSCRAM, AuthData: ann.first(),
		}})
		if err != nil || !r.Success {
			t.Fatalf("again: %+v, %v", r, err)
		}
		publish()
	}

	for _, c := range []struct {
		user, password, name string
		code                 byte
	}{{"ann", "wrong", "", codeNotAuthorized}, {"nobody", "word", "", codeNotAuthorized}, {"ann", "word", "bob", codeBadLogin}} {
		_, ack, err := open(&conversation{user: c.user, password: c.password}, c.name)
		if err == nil || ack == nil || ack.ReasonCode != c.code {
			t.Errorf("%+v: %+v, %v", c, ack, err)
		}
	}
	for _, want := range []string{"by=scram", "again=true", "reason=credentials"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

// withMethod is a CONNECT that begins an exchange.
func withMethod(method string, data []byte) rawOptions {
	return rawOptions{ID: "c", V: 5, Clean: true, Mod: func(pk *packets.Packet) {
		pk.Properties.AuthenticationMethod, pk.Properties.AuthenticationData = method, data
	}}
}

func auth(code byte, method string, data []byte) packets.Packet {
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Auth}, ReasonCode: code,
		Properties: packets.Properties{AuthenticationMethod: method, AuthenticationData: data},
	}
}

// TestAuthGoneWrong: exchanges that do not follow the rules end the connection, and nothing else [MQTT-3.1.2-30] [MQTT-4.12.0-1]
// [MQTT-4.12.0-3] [MQTT-4.12.0-7] [MQTT-4.12.1-1] [MQTT-4.12.1-2].
func TestAuthGoneWrong(t *testing.T) {
	b, _ := startSCRAM(t)
	if _, err := rawDial(b.addr, withMethod("OTHER", nil)); err == nil || !strings.Contains(err.Error(), "0x8c") {
		t.Errorf("an unknown method: %v", err)
	}
	if _, err := rawDial(b.addr, withMethod(methodSCRAM, nil)); err == nil || !strings.Contains(err.Error(), "0x87") {
		t.Errorf("nothing to begin with: %v", err)
	}
	for name, next := range map[string]packets.Packet{
		"another method":      auth(codeContinue, "OTHER", []byte("x")),
		"another reason code": auth(codeReauthenticate, methodSCRAM, []byte("x")),
		"another packet":      {FixedHeader: packets.FixedHeader{Type: packets.Pingreq}},
		"no proof":            auth(codeContinue, methodSCRAM, []byte("c=biws,r=abc,p=AAAA")),
		"a very long one":     auth(codeContinue, methodSCRAM, make([]byte, 2*maxAuthBytes)),
	} {
		c := authDial(t, b.addr, withMethod(methodSCRAM, []byte("n,,n=ann,r=abc")))
		if err := c.Send(next); err != nil {
			t.Fatal(err)
		}
		before := closed(t, c)
		if len(before) != 1 || before[0].FixedHeader.Type != packets.Connack || before[0].ReasonCode == 0 {
			t.Errorf("%s: %v", name, before)
		}
	}

	// While connected: without a method, with another one, out of order, as another user.
	plain := connect(t, b.addr, rawOptions{ID: "p", V: 5, User: "ann", Pass: "word"})
	_ = plain.Send(auth(codeReauthenticate, methodSCRAM, []byte("n,,n=ann,r=abc")))
	if before := closed(t, plain); len(before) != 1 || before[0].ReasonCode != codeProtocolError {
		t.Errorf("without a method in CONNECT: %v", before)
	}
	for name, next := range map[string]packets.Packet{
		"another method": auth(codeReauthenticate, "OTHER", []byte("n,,n=ann,r=abc")),
		"out of order":   auth(codeContinue, methodSCRAM, []byte("n,,n=ann,r=abc")),
	} {
		c := scramDial(t, b.addr, "ann")
		_ = c.Send(next)
		if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeProtocolError {
			t.Errorf("%s: %v", name, before)
		}
	}
	c := scramDial(t, b.addr, "ann")
	bob := &conversation{user: "bob", password: "word"}
	_ = c.Send(auth(codeReauthenticate, methodSCRAM, bob.first()))
	_ = c.Send(auth(codeContinue, methodSCRAM, bob.next(expect(t, c, packets.Auth).Properties.AuthenticationData)))
	if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("as another user: %v", before)
	}
}

// authDial connects and reads the first AUTH packet instead of a CONNACK.
func authDial(t *testing.T, addr string, o rawOptions) *rawClient {
	t.Helper()
	c, err := rawDial(addr, o)
	if c == nil || err == nil || err.Error() != fmt.Sprint("not a connack: ", packets.Auth) {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// scramDial connects user by SCRAM.
func scramDial(t *testing.T, addr, user string) *rawClient {
	t.Helper()
	s := &conversation{user: user, password: "word"}
	c := authDial(t, addr, withMethod(methodSCRAM, s.first()))
	_ = c.Send(auth(codeContinue, methodSCRAM, s.next(c.Connack.Properties.AuthenticationData)))
	if ack := expect(t, c, packets.Connack); ack.ReasonCode != 0 {
		t.Fatalf("code %#x", ack.ReasonCode)
	}
	return c
}
