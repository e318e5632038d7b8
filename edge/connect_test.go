package edge

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/config"
)

func TestTakeOver(t *testing.T) {
	b := startBroker(t, nil)
	for _, v := range []byte{4, 5} {
		o := rawOptions{ID: fmt.Sprintf("c%d", v), V: v}
		if v == 5 {
			o.Expiry = 60
		}
		old := connect(t, b.addr, o)
		if old.Connack.SessionPresent {
			t.Error("session present on the first connection")
		}
		subscribe(t, old, "t/"+o.ID, 1)
		fresh := connect(t, b.addr, o)
		if !fresh.Connack.SessionPresent {
			t.Error("no session after the take-over")
		}
		before := closed(t, old)
		if v == 5 && (len(before) != 1 || before[0].ReasonCode != codeTakenOver) {
			t.Errorf("the old connection got %v", before)
		}
		_ = fresh.Publish(0, "t/"+o.ID, 0, number(1))
		expect(t, fresh, packets.Publish)
	}
	eventually(t, "two clients", func() bool { return b.Clients() == 2 && b.Sessions() == 2 })
}

// Many connections of one client identifier at once: one remains, and it works.
func TestTakeOverStorm(t *testing.T) {
	b := startBroker(t, nil)
	conns := make(chan *rawClient)
	const n = 30
	for range n {
		go func() {
			c, _ := rawDial(b.addr, rawOptions{ID: "same", V: 4, Clean: true})
			conns <- c
		}()
	}
	for range n {
		if c := <-conns; c != nil {
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	eventually(t, "one client", func() bool { return b.Clients() == 1 && b.Sessions() == 1 })
	c := connect(t, b.addr, rawOptions{ID: "same", V: 4, Clean: true})
	subscribe(t, c, "a", 0)
	_ = c.Publish(0, "a", 0, nil)
	expect(t, c, packets.Publish)
	eventually(t, "one client", func() bool { return b.Clients() == 1 && b.Sessions() == 1 })
}

func TestSessionPresent(t *testing.T) {
	b := startBroker(t, nil)
	steps := []struct {
		name    string
		o       rawOptions
		present bool
	}{
		{"3.1.1 first", rawOptions{ID: "a", V: 4}, false},
		{"3.1.1 again", rawOptions{ID: "a", V: 4}, true},
		{"3.1.1 clean", rawOptions{ID: "a", V: 4, Clean: true}, false},
		{"3.1.1 after clean", rawOptions{ID: "a", V: 4}, false},
		{"5 takes the session of 3.1.1", rawOptions{ID: "a", V: 5}, true},
		{"5 without expiry ended it", rawOptions{ID: "a", V: 5, Expiry: 60}, false},
		{"5 with expiry", rawOptions{ID: "a", V: 5, Expiry: 60}, true},
		{"5 clean start", rawOptions{ID: "a", V: 5, Expiry: 60, Clean: true}, false},
	}
	for _, s := range steps {
		c := connect(t, b.addr, s.o)
		if c.Connack.SessionPresent != s.present {
			t.Errorf("%s: session present %v", s.name, c.Connack.SessionPresent)
		}
		c.Disconnect()
		eventually(t, "disconnected", func() bool { return b.Clients() == 0 })
	}
}

func TestSessionExpiry(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.SessionExpiry = config.Duration(time.Hour) })
	long := connect(t, b.addr, rawOptions{ID: "long", V: 5, Expiry: 7200})
	if p := long.Connack.Properties; !p.SessionExpiryIntervalFlag || p.SessionExpiryInterval != 3600 {
		t.Errorf("granted %d", p.SessionExpiryInterval)
	}
	short := connect(t, b.addr, rawOptions{ID: "short", V: 5, Expiry: 1})
	if short.Connack.Properties.SessionExpiryIntervalFlag {
		t.Error("expiry announced though it is what was asked for")
	}
	subscribe(t, short, "s", 1)
	// DISCONNECT may change the expiry [MQTT-3.14.2-2], but not from 0.
	disconnect := func(c *rawClient, expiry uint32) {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = expiry, true
		_ = c.Send(pk)
	}
	disconnect(long, 0)
	disconnect(short, 1)
	none := connect(t, b.addr, rawOptions{ID: "none", V: 5})
	disconnect(none, 60)
	if before := closed(t, none); len(before) != 1 || before[0].ReasonCode != codeProtocolError {
		t.Errorf("got %v", before)
	}
	eventually(t, "none is left", func() bool { return b.Sessions() == 0 })
	if n := len(b.sessions.Subscribers("s")); n != 0 {
		t.Errorf("%d subscriptions left", n)
	}
}

func TestServerKeepAlive(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxKeepAlive = config.Duration(time.Minute) })
	for asked, granted := range map[uint16]uint16{0: 60, 30: 0, 61: 60, 65535: 60} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, KeepAlive: asked})
		p := c.Connack.Properties
		if p.ServerKeepAliveFlag != (granted > 0) || p.ServerKeepAlive != granted {
			t.Errorf("asked %d, told %d", asked, p.ServerKeepAlive)
		}
	}
}

func TestSilentClientIsClosed(t *testing.T) {
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 4, Clean: true})
	subscribe(t, s, "w", 0)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true, KeepAlive: 1, Mod: withWill("w", "silent", 0)})
	expect(t, s, packets.Publish)
	closed(t, c)
}

func TestAssignedClientIdentifier(t *testing.T) {
	b := startBroker(t, nil)
	one := connect(t, b.addr, rawOptions{V: 5, Clean: true})
	two := connect(t, b.addr, rawOptions{V: 5, Clean: true})
	id := one.Connack.Properties.AssignedClientID
	if id == "" || id == two.Connack.Properties.AssignedClientID {
		t.Errorf("assigned %q and %q", id, two.Connack.Properties.AssignedClientID)
	}
	connect(t, b.addr, rawOptions{V: 4, Clean: true})
	c, err := rawDial(b.addr, rawOptions{V: 4})
	if err == nil || c.Connack.ReasonCode != oldIdentifier { // [MQTT-3.1.3-8]
		t.Errorf("no identifier and no clean session: %v", err)
	}
	eventually(t, "three sessions", func() bool { return b.Sessions() == 3 })
}

func TestAdmission(t *testing.T) {
	no := false
	b := startBroker(t, func(o *Options) {
		o.Listeners["closed"] = config.Listener{Listen: "mqtt://127.0.0.1:0", Anonymous: &no}
		o.Broker.MaxClients = 2
		o.ACL = rules(t, config.Rule{User: "anonymous", Publish: []string{"will/{client}"}, Subscribe: []string{"#"}})
	})
	refused := func(addr string, o rawOptions, code byte) {
		t.Helper()
		c, err := rawDial(addr, o)
		if err == nil || c == nil || c.Connack.ReasonCode != code {
			t.Errorf("%+v: %v, want %#x", o, err, code)
			return
		}
		closed(t, c)
	}
	shut := b.Addrs()["closed"].String()
	refused(shut, rawOptions{ID: "c", V: 5, Clean: true}, codeBadLogin)
	refused(shut, rawOptions{ID: "c", V: 4, Clean: true}, oldNotAuthorized)
	refused(b.addr, rawOptions{ID: "c", V: 4, Clean: true, User: "nobody", Pass: "x"}, oldNotAuthorized)
	refused(b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: withWill("other", "x", 0)}, codeNotAuthorized)
	refused(b.addr, rawOptions{ID: "c", V: 4, Clean: true, Mod: withWill("tidegate/x", "x", 0)}, oldNotAuthorized)
	refused(b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: withWill("a/#", "x", 0)}, codeTopicInvalid)
	refused(b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: func(pk *packets.Packet) {
		pk.Properties.AuthenticationMethod = "SCRAM"
	}}, codeBadAuthMethod)
	refused(b.addr, rawOptions{ID: "c", V: 3, Clean: true}, oldVersion)
	connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true, Mod: withWill("will/c", "x", 0)})
	connect(t, b.addr, rawOptions{ID: "d", V: 4, Clean: true})
	refused(b.addr, rawOptions{ID: "e", V: 5, Clean: true}, codeBusy)
	refused(b.addr, rawOptions{ID: "e", V: 4, Clean: true}, oldUnavailable)
	if n := b.metric(t, "tidegate_refused_connections_total"); n != 2 {
		t.Errorf("%v refused for the limit, want 2", n)
	}
	connect(t, b.addr, rawOptions{ID: "d", V: 4, Clean: true}) // comes back: counts once
	eventually(t, "two clients", func() bool { return b.metric(t, "tidegate_clients_connected") == 2 })
}

// Rules for publish, subscribe, delivery.
func TestRules(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{
			User: "*", Publish: []string{"up/{client}/#"},
			Subscribe: []string{"down/#"}, DenySubscribe: []string{"down/+/secret"},
		})
	})
	for _, v := range []byte{4, 5} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
		want := map[byte]byte{4: codeUnspecified, 5: codeNotAuthorized}[v]
		for filter, code := range map[string]byte{
			"down/#": 1, "down/x/y": 1, "$share/g/down/x": 1, "#": want, "up/#": want, "down/x/secret": want, "$share/g/#": want,
		} {
			if got := subscribe(t, c, filter, 1); got != code {
				t.Errorf("version %d %s: %#x, want %#x", v, filter, got, code)
			}
		}
		if err := b.Deliver(t.Context(), msg("down/x/secret", "no")); err == nil {
			t.Error("delivered against a rule")
		}
		if err := b.Deliver(t.Context(), msg("down/x/open", "yes")); err != nil {
			t.Error(err)
		}
		if pk := expect(t, c, packets.Publish); string(pk.Payload) != "yes" {
			t.Errorf("got %q", pk.Payload)
		}
		_ = c.Publish(0, "up/d/x", 0, nil)
		_ = c.Publish(0, "up/c/x", 0, nil)
		eventually(t, "one of two ingested", func() bool {
			ms := b.disk.messages()
			return len(ms) == int(v)-3 && ms[len(ms)-1].Topic == "up/c/x"
		})
	}
}

// Where reasons are hidden a client cannot tell a rule from any other refusal.
func TestReasonsAreHidden(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.HideReasons = true
		o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"up/#"}, Subscribe: []string{"down/#"}})
	})
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	if got := subscribe(t, c, "up/#", 1); got != codeUnspecified {
		t.Errorf("SUBACK %#x", got)
	}
	_ = c.Publish(7, "down/x", 1, nil)
	if pk := expect(t, c, packets.Puback); pk.ReasonCode != codeUnspecified {
		t.Errorf("PUBACK %#x", pk.ReasonCode)
	}
}

func TestAuthPacketIsRefused(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Raw([]byte{0xf0, 2, 0x18, 0})
	if before := closed(t, c); len(before) != 1 || before[0].ReasonCode != codeProtocolError {
		t.Errorf("got %v", before)
	}
}

// A session belongs to a user: another one with the same client identifier does not get what waits in it.
func TestSessionOfAnotherUser(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.ACL = everybody{} })
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, User: "ann", Pass: "x"})
	subscribe(t, c, "a", 1)
	c.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == 0 })
	if _, err := b.Publish(msg("a", "for ann")); err != nil {
		t.Fatal(err)
	}
	c = connect(t, b.addr, rawOptions{ID: "c", V: 4, User: "bob", Pass: "x"})
	if c.Connack.SessionPresent {
		t.Error("another user got the session")
	}
	silent(t, c, 50*time.Millisecond)
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "ended"); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// everybody admits every user with any password.
type everybody struct{}

func (everybody) Authenticate(l access.Login) (access.Identity, error) {
	return access.Identity{User: l.User, Client: l.Client}, nil
}
func (everybody) Exchange(netip.Addr) *access.Exchange              { return nil }
func (everybody) Credential(string) uint64                          { return 1 }
func (everybody) Allow(access.Identity, access.Action, string) bool { return true }

// There are as many sessions without a connection as there may be clients; the oldest go first. What is kept of a session
// does not keep the CONNECT packet.
func TestSessionLimit(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxClients = 10 })
	one := func(i int) *rawClient {
		return connect(t, b.addr, rawOptions{ID: fmt.Sprint("c", i), V: 4})
	}
	for i := range 30 {
		c := one(i)
		subscribe(t, c, "a", 1)
		if i == 10 {
			_, _ = b.Publish(msg("a", ""))
			expect(t, c, packets.Publish)
		}
		c.Disconnect()
		eventually(t, "left", func() bool { return b.Clients() == 0 })
	}
	if n := b.Sessions(); n != 20 {
		t.Errorf("%d sessions, want 20", n)
	}
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "session_limit"); n != 10 {
		t.Errorf("%v messages were lost with their sessions, want 10", n)
	}
	if c := one(29); !c.Connack.SessionPresent {
		t.Error("the newest is gone")
	}
	if c := one(9); c.Connack.SessionPresent {
		t.Error("an old one is still there")
	}
}

// TestTakeOverReadsWhatWasSent: what a client sent before it came by another connection is taken, and its goodbye is heard. A
// client that is quick to come back loses nothing and publishes no will.
func TestTakeOverReadsWhatWasSent(t *testing.T) {
	b := startBroker(t, nil)
	const n = 400
	for i := range n {
		c, err := rawDial(b.addr, rawOptions{
			ID: "same", V: []byte{4, 5}[i%2], Clean: true, Mod: func(pk *packets.Packet) {
				pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "will", number(i)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Publish(0, "a", 0, number(i))
		c.Disconnect()
	}
	eventually(t, "every message is taken", func() bool { return b.disk.n.Load() >= n })
	eventually(t, "nobody is connected", func() bool { return b.Clients() == 0 })
	for i, m := range b.disk.messages() {
		if m.Topic != "a" || string(m.Payload) != string(number(i)) {
			t.Fatalf("message %d: %s %x", i, m.Topic, m.Payload)
		}
	}
}

// TestTakeOverOfATalker: a connection on which the client goes on sending is ended all the same, and is told why.
func TestTakeOverOfATalker(t *testing.T) {
	b := startBroker(t, nil)
	old := connect(t, b.addr, rawOptions{ID: "same", V: 5, Clean: true})
	quit := make(chan struct{})
	done := make(chan struct{})
	go func() { // ends with quit, or the connection
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if old.Publish(0, "a", 0, number(1)) != nil {
				return
			}
		}
	}()
	defer func() { close(quit); <-done }()
	fresh := connect(t, b.addr, rawOptions{ID: "same", V: 5, Clean: true})
	if before := closed(t, old); len(before) != 1 || before[0].ReasonCode != codeTakenOver {
		t.Errorf("the old connection got %v", before)
	}
	subscribe(t, fresh, "b", 0)
	_ = fresh.Publish(0, "b", 0, nil)
	expect(t, fresh, packets.Publish)
}
