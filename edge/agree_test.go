package edge

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/config"
)

// someLevels are levels that mean something to rules, beside plain ones.
var someLevels = []string{"a", "b", "ann", "c1", "", "$SYS", "tidegate", "é", "{user}", "x y"}

// pickSome returns up to three levels.
func pickSome(rnd *rand.Rand, from []string) string {
	levels := make([]string, 1+rnd.IntN(3))
	for i := range levels {
		levels[i] = from[rnd.IntN(len(from))]
	}
	return strings.Join(levels, "/")
}

// pickFilter returns a filter, or what is nearly one.
func pickFilter(rnd *rand.Rand, from []string) string {
	f := pickSome(rnd, from)
	switch rnd.IntN(4) {
	case 0:
		return f + "/#"
	case 1:
		return "+/" + f
	case 2:
		return strings.Replace(f, "a", "+", 1)
	}
	return f
}

// someRules returns rules such as a configuration may have.
func someRules(rnd *rand.Rand) []config.Rule {
	from := []string{"a", "b", "ann", "c1", "", "$SYS", "tidegate", "é", "{user}", "{client}", "x-{client}", "+"}
	filters := func() (list []string) {
		for range rnd.IntN(3) {
			if f := pickFilter(rnd, from); f != "" {
				list = append(list, f)
			}
		}
		return list
	}
	list := make([]config.Rule, 1+rnd.IntN(4))
	for i := range list {
		list[i] = config.Rule{
			User:    []string{"ann", "*", "a*", "anonymous", "bob"}[rnd.IntN(5)],
			Publish: filters(), Subscribe: filters(), DenyPublish: filters(), DenySubscribe: filters(),
		}
	}
	return list
}

// TestExplainAgrees: what `tidegate auth test` says, the broker does: to a PUBLISH, by name and by alias, to a SUBSCRIBE, plain and
// shared, and with each delivery, whatever the client calls itself.
func TestExplainAgrees(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 1))
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	for range rounds {
		list := someRules(rnd)
		rs := access.NewRules(list)
		b := startBroker(t, func(o *Options) { o.ACL = userOfClient{rules(t, list...)} })
		for _, id := range []access.Identity{{User: "ann", Client: "c1"}, {User: "bob", Client: "+"}, {User: "", Client: "a/b"}, {User: "ann", Client: "#"}, {User: "ann", Client: "$SYS"}} {
			agree(t, rnd, b, rs, id, fmt.Sprintf("seed %d, rules %+v, %+v", seed, list, id))
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}

// userOfClient lets every user in, with any password.
type userOfClient struct{ ACL }

func (userOfClient) Authenticate(l access.Login) (access.Identity, error) {
	return access.Identity{User: l.User, Client: l.Client}, nil
}

func agree(t *testing.T, rnd *rand.Rand, b *testBroker, rs access.Rules, id access.Identity, what string) {
	t.Helper()
	c := connect(t, b.addr, rawOptions{ID: id.Client, V: 5, Clean: true, User: id.User, Pass: "x"})
	for i := range 12 {
		topic := pickSome(rnd, someLevels)
		want := rs.Explain(id, access.Publish, topic)
		for way := range 2 { // by its name, and again by an alias
			pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: topic, PacketID: uint16(1 + 2*i + way), Payload: []byte("x")}
			pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = uint16(1+i), true
			if way == 1 {
				pk.TopicName = ""
			}
			if topic == "" {
				break // no topic name at all: a protocol error
			}
			if err := c.Send(pk); err != nil {
				t.Fatal(err)
			}
			got := expect(t, c, packets.Puback)
			if (got.ReasonCode < 0x80) != want.Allowed {
				t.Errorf("%s: publish %q (way %d): 0x%x, and auth test says %+v", what, topic, way, got.ReasonCode, want)
			}
		}
	}
	for range 12 {
		filter := pickFilter(rnd, someLevels)
		if rnd.IntN(4) == 0 {
			filter = "$share/g/" + filter
		}
		want := rs.Explain(id, access.Subscribe, filter)
		if filter == "" {
			continue
		}
		got := subscribeWith(t, c, packets.Subscription{Filter: filter, Qos: 1, RetainHandling: 2})
		if (got < 0x80) != want.Allowed {
			t.Errorf("%s: subscribe %q: 0x%x, and auth test says %+v", what, filter, got, want)
		}
	}
	for range 200 {
		topic := pickSome(rnd, someLevels)
		if topic == "" {
			continue
		}
		want := rs.Explain(id, access.Subscribe, topic)
		if got := b.o.ACL.Allow(id, access.Deliver, topic); got != want.Allowed {
			t.Errorf("%s: deliver %q: %v, and auth test says %+v of a subscription to it", what, topic, got, want)
		}
	}
	c.Disconnect()
}
