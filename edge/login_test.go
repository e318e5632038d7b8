package edge

import (
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestOwnIdentifiers: where a user has identifiers of its own, nobody else can take its connection or end its session by one.
func TestOwnIdentifiers(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.ACL, o.OwnIdentifiers = everybody{}, true })
	for _, s := range []struct {
		user, id string
		good     bool
	}{
		{"ann", "ann", true},
		{"ann", "ann/2", true},
		{"ann", "ann2", false},
		{"ann", "ann-2", false},
		{"bob", "ann", false},
		{"an", "ann", false},
		{"bob", "ann/2", false},
		{"ann", "an", false},
		{"", "ann", false},
		{"", "x", false},
	} {
		for _, v := range []byte{4, 5} {
			c, err := rawDial(b.addr, rawOptions{ID: s.id, V: v, User: s.user, Pass: "x", Clean: true})
			switch {
			case s.good != (err == nil):
				t.Errorf("%s as %q: %v", s.user, s.id, err)
			case s.good:
				_ = c.Close()
			case c.Connack.ReasonCode != map[byte]byte{4: oldIdentifier, 5: codeIdentifier}[v]:
				t.Errorf("version %d: %s as %q is answered %#x", v, s.user, s.id, c.Connack.ReasonCode)
			}
		}
	}
	c := connect(t, b.addr, rawOptions{V: 5, User: "ann", Pass: "x", Clean: true})
	if id := c.Connack.Properties.AssignedClientID; !strings.HasPrefix(id, "ann/") {
		t.Errorf("assigned %q", id)
	}
	if n := b.metric(t, "tidegate_refused_logins_total", "reason", "client_id"); n != 16 {
		t.Errorf("counted %v", n)
	}
	other := connect(t, b.addr, rawOptions{ID: "ann", V: 5, User: "ann", Pass: "x", Clean: true})
	if n := b.Rejudge(false, false, nil); n != 0 {
		t.Errorf("%d were disconnected", n)
	}
	free := connect(t, b.addr, rawOptions{ID: "free", V: 5, User: "ann", Pass: "x", Clean: true})
	if n := b.Rejudge(false, true, nil); n != 1 {
		t.Errorf("%d were disconnected", n)
	}
	if before := closed(t, free); len(before) != 1 || before[0].ReasonCode != codeNotAuthorized {
		t.Errorf("got %v", before)
	}
	_ = other.Publish(1, "a", 1, nil)
	expect(t, other, packets.Puback)
}
