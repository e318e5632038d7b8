package edge

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/config"
)

// hashes of passwords, as cheap as they come.
var hashes = map[string]string{
	"a": "$2a$04$SbfNqmJtDb0SHIkYjs8ts.AEnO6S8TbrDOo3YXeqPtQ6ZhP96iU6G",
	"b": "$2a$04$zSjSWR2YI0.19nkzx81Ta.ZwMlgb6pdlCt3HWOcZDmTICz48F3IZO",
	"c": "$2a$04$qk2LzTachXxWdCptBl/eWuoVMAmX3zQCAXdgiBvJ1Hqh6dKVd.vWy",
	"d": "$2a$04$RZJ2cAK.LXdDdZRCZwuT2ORz99sn6HsSpucnw5xvF4NOECYO2frRq",
	"x": "$2a$04$vC43Nkv7iLPfNFP426wC9OXeo1APPB27ene97JM7UycQvjvwMc3kC",
	"y": "$2a$04$yYH9taTZMf.2f2eeB8g1EOlvNvMzJywZ0iAw1trM4mbjVVL0T1deG",
}

// changing is an access.Checker whose configuration a test changes.
type changing struct {
	t    *testing.T
	file string
	*access.Checker
}

// newChanging returns one for these users (name, password, name, password, ...) and rules.
func newChanging(t *testing.T, users []string, rules ...config.Rule) *changing {
	t.Helper()
	c := &changing{t: t, file: filepath.Join(t.TempDir(), "users.toml")}
	c.write(users...)
	var err error
	if c.Checker, err = access.New(config.Auth{UsersFile: c.file, Rules: rules}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *changing) write(users ...string) {
	c.t.Helper()
	var b strings.Builder
	for i := 0; i < len(users); i += 2 {
		fmt.Fprintf(&b, "%s = %q\n", users[i], hashes[users[i+1]])
	}
	if err := os.WriteFile(c.file, []byte(b.String()), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// become changes users and rules.
func (c *changing) become(rules ...config.Rule) {
	c.t.Helper()
	commit, err := c.Prepare(config.Auth{UsersFile: c.file, Rules: rules})
	if err != nil {
		c.t.Fatal(err)
	}
	commit()
}

// A subscription that the rules do not allow any more ends at once, for a client that is connected and for one that is not; who
// keeps all of its subscriptions stays connected.
func TestRulesChangeWhileSubscribed(t *testing.T) {
	all := config.Rule{User: "*", Publish: []string{"#"}, Subscribe: []string{"#"}}
	acl := newChanging(t, []string{"a", "a", "b", "b", "c", "c", "d", "d"}, all)
	b := startBroker(t, func(o *Options) { o.ACL = acl })
	hour := uint32(3600)
	a := connect(t, b.addr, rawOptions{ID: "a", V: 5, User: "a", Pass: "a", Expiry: hour})
	subscribe(t, a, "plant/#", 1)
	keeps := connect(t, b.addr, rawOptions{ID: "b", V: 5, User: "b", Pass: "b"})
	subscribe(t, keeps, "plant/open", 1)
	away := connect(t, b.addr, rawOptions{ID: "c", V: 5, User: "c", Pass: "c", Expiry: hour})
	subscribe(t, away, "plant/#", 1)
	away.Disconnect()
	eventually(t, "c is away", func() bool { return b.Clients() == 2 })
	_, _ = b.Publish(msg("plant/secret", "waits for c"))
	_, _ = b.Publish(msg("plant/open", "waits for c"))
	expect(t, a, packets.Publish)
	expect(t, a, packets.Publish)
	_ = a.Ack(packets.Puback, 1)
	_ = a.Ack(packets.Puback, 2)
	_ = a.Publish(1, "other", 1, nil)
	expect(t, a, packets.Puback) // the acknowledgements have arrived
	expect(t, keeps, packets.Publish)

	acl.become(config.Rule{User: "*", Publish: []string{"#"}, Subscribe: []string{"plant/open"}})
	if n := b.RejudgeUsers(); n != 1 {
		t.Errorf("%d clients were disconnected, want the one that lost its filter", n)
	}
	_, _ = b.Publish(msg("plant/secret", "nobody's"))
	_, _ = b.Publish(msg("plant/open", "everybody's"))
	if before := closed(t, a); len(before) != 1 || before[0].FixedHeader.Type != packets.Disconnect || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("a got %v", before)
	}
	if pk := expect(t, keeps, packets.Publish); string(pk.Payload) != "everybody's" {
		t.Errorf("b got %q", pk.Payload)
	}
	a = connect(t, b.addr, rawOptions{ID: "a", V: 5, User: "a", Pass: "a", Expiry: hour})
	if !a.Connack.SessionPresent {
		t.Error("a lost its session")
	}
	if code := subscribe(t, a, "plant/#", 1); code != codeNotAuthorized {
		t.Errorf("a subscribed again: %#x", code)
	}
	away = connect(t, b.addr, rawOptions{ID: "c", V: 5, User: "c", Pass: "c", Expiry: hour})
	if pk := expect(t, away, packets.Publish); pk.TopicName != "plant/open" {
		t.Errorf("c got %q, which it may not have any more", pk.TopicName)
	}
	silent(t, away, 50*time.Millisecond) // its filter is gone, so what came later is not for it
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "not_allowed"); n != 1 {
		t.Errorf("%v messages were withheld, want 1", n)
	}
}

// Who logged in with a password that is not that of the user any more has to log in again; other users stay.
func TestUsersChangeWhileConnected(t *testing.T) {
	acl := newChanging(t, []string{"stays", "x", "gone", "x"})
	b := startBroker(t, func(o *Options) { o.ACL = acl })
	stays := connect(t, b.addr, rawOptions{ID: "stays", V: 5, User: "stays", Pass: "x"})
	gone := connect(t, b.addr, rawOptions{ID: "gone", V: 5, User: "gone", Pass: "x"})
	old := connect(t, b.addr, rawOptions{ID: "old", V: 4, User: "gone", Pass: "x"})
	nobody := connect(t, b.addr, rawOptions{ID: "nobody", V: 5})

	acl.write("stays", "x")
	acl.become()
	if n := b.RejudgeUsers(); n != 2 {
		t.Errorf("%d clients were disconnected, want 2", n)
	}
	if before := closed(t, gone); len(before) != 1 || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("who is gone got %v", before)
	}
	if before := closed(t, old); len(before) != 0 {
		t.Errorf("MQTT 3.1.1 has no words, and got %v", before)
	}
	_ = stays.Publish(1, "a", 1, nil)
	expect(t, stays, packets.Puback)

	acl.write("stays", "y")
	acl.become()
	if n := b.Rejudge(false, false, map[string]bool{"test": false}); n != 2 {
		t.Errorf("%d clients were disconnected, want 2", n)
	}
	if before := closed(t, stays); len(before) != 1 || before[0].ReasonCode != codeAdministrative {
		t.Errorf("who has another password got %v", before)
	}
	if before := closed(t, nobody); len(before) != 1 || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("who has no name got %v", before)
	}
	if _, err := rawDial(b.addr, rawOptions{ID: "nobody"}); err == nil {
		t.Error("a client without a name is let in")
	}
	connect(t, b.addr, rawOptions{ID: "stays", V: 5, User: "stays", Pass: "y"})
}

// A will is not published at once where the client is expected back, nor under rules that forbid it.
func TestWillsOfDisconnected(t *testing.T) {
	all := config.Rule{User: "*", Publish: []string{"#"}, Subscribe: []string{"#"}}
	acl := newChanging(t, []string{"a", "a", "watch", "x"}, all)
	b := startBroker(t, func(o *Options) { o.ACL = acl })
	will := func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "state/a", []byte("gone")
	}
	watch := connect(t, b.addr, rawOptions{ID: "watch", V: 5, User: "watch", Pass: "x"})
	subscribe(t, watch, "state/#", 0)
	a := connect(t, b.addr, rawOptions{ID: "a", V: 5, User: "a", Pass: "a", Mod: will})
	subscribe(t, a, "secret", 0)
	acl.become(config.Rule{User: "*", Publish: []string{"#"}, Subscribe: []string{"state/#"}})
	b.RejudgeUsers()
	closed(t, a)
	eventually(t, "a has left", func() bool { return b.Clients() == 1 })
	silent(t, watch, 50*time.Millisecond)
	if n := b.wills.count(); n != 1 {
		t.Errorf("%d wills wait, want 1", n)
	}
}

// What waits in a shared subscription for a client that may not have it any more goes to another member.
func TestRevokedShareIsHandedOn(t *testing.T) {
	all := config.Rule{User: "*", Publish: []string{"#"}, Subscribe: []string{"#"}}
	acl := newChanging(t, []string{"b", "b", "c", "c"}, all)
	b := startBroker(t, func(o *Options) { o.ACL = acl })
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, User: "c", Pass: "c", Expiry: 3600})
	subscribe(t, c, "$share/g/plant/#", 1)
	c.Disconnect()
	eventually(t, "c is away", func() bool { return b.Clients() == 0 })
	for i := range 3 {
		_, _ = b.Publish(msg(fmt.Sprint("plant/", i), ""))
	}
	other := connect(t, b.addr, rawOptions{ID: "b", V: 5, User: "b", Pass: "b"})
	subscribe(t, other, "$share/g/plant/#", 1)
	acl.become(config.Rule{User: "c", DenySubscribe: []string{"plant/#"}}, all)
	if n := b.RejudgeUsers(); n != 0 {
		t.Errorf("%d clients were disconnected", n)
	}
	c = connect(t, b.addr, rawOptions{ID: "c", V: 5, User: "c", Pass: "c", Expiry: 3600})
	for i := range 3 {
		if pk := expect(t, other, packets.Publish); pk.TopicName != fmt.Sprint("plant/", i) {
			t.Errorf("got %q as number %d", pk.TopicName, i)
		}
	}
	silent(t, c, 50*time.Millisecond)
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "not_allowed"); n != 0 {
		t.Errorf("%v messages were given up", n)
	}
}
