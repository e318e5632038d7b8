package access

import (
	"strings"
	"testing"

	"tidegate/config"
	"tidegate/message"
)

func allow(list ...string) []string { return list }

// agreed are the rules of the agreed configuration file.
func agreed() []config.Rule {
	return []config.Rule{
		{User: "hmi", DenyPublish: allow("#"), Subscribe: allow("#")},
		{User: "press-*", Publish: allow("plant/{user}/#"), Subscribe: allow("cmd/{user}/#")},
	}
}

func TestRules(t *testing.T) {
	all := func(more ...config.Rule) []config.Rule {
		return append(more, config.Rule{User: "*", Publish: allow("#"), Subscribe: allow("#")})
	}
	for _, c := range []struct {
		name    string
		rules   []config.Rule
		id      Identity
		action  Action
		topic   string
		allowed bool
		by      int
	}{
		// no rules
		{"no rules: publish", nil, Identity{"u", "c"}, Publish, "a/b", true, 0},
		{"no rules: subscribe", nil, Identity{"u", "c"}, Subscribe, "#", true, 0},
		{"no rules: deliver", nil, Identity{"u", "c"}, Deliver, "tidegate/g/status", true, 0},
		{"no rules: anonymous", nil, Identity{"", "c"}, Publish, "a", true, 0},
		{"no rules: publish to $", nil, Identity{"u", "c"}, Publish, "$SYS/x", false, 0},
		{"no rules: publish to the gateway's topics", nil, Identity{"u", "c"}, Publish, "tidegate/g/status", false, 0},
		{"no rules: subscribe to the gateway's topics", nil, Identity{"u", "c"}, Subscribe, "tidegate/#", true, 0},

		// nobody publishes to the gateway's topics, whatever the rules
		{"reserved beats an allowed #", all(), Identity{"u", "c"}, Publish, "tidegate/g", false, 0},
		{"reserved beats an allowed $", []config.Rule{{User: "*", Publish: allow("$SYS/#", "tidegate/#")}}, Identity{"u", "c"}, Publish, "$SYS/x", false, 0},

		// the agreed file
		{"hmi publishes nothing", agreed(), Identity{"hmi", "c"}, Publish, "a", false, 1},
		{"hmi reads everything", agreed(), Identity{"hmi", "c"}, Subscribe, "#", true, 1},
		{"press publishes its own", agreed(), Identity{"press-1", "c"}, Publish, "plant/press-1/temp", true, 2},
		{"and the level itself", agreed(), Identity{"press-1", "c"}, Publish, "plant/press-1", true, 2},
		{"not another's", agreed(), Identity{"press-1", "c"}, Publish, "plant/press-2/temp", false, 0},
		{"press reads its commands", agreed(), Identity{"press-1", "c"}, Subscribe, "cmd/press-1/set", true, 2},
		{"all of them", agreed(), Identity{"press-1", "c"}, Subscribe, "cmd/press-1/#", true, 2},
		{"not everybody's", agreed(), Identity{"press-1", "c"}, Subscribe, "cmd/+/set", false, 0},
		{"not everything", agreed(), Identity{"press-1", "c"}, Subscribe, "#", false, 0},
		{"by a shared subscription neither", agreed(), Identity{"press-1", "c"}, Subscribe, "$share/g/#", false, 0},
		{"its own shared", agreed(), Identity{"press-1", "c"}, Subscribe, "$share/g/cmd/press-1/#", true, 2},
		{"nobody of another name", agreed(), Identity{"pump-1", "c"}, Publish, "plant/pump-1/x", false, 0},
		{"no anonymous", agreed(), Identity{"", "c"}, Subscribe, "#", false, 0},

		// order
		{"the first that names the topic", []config.Rule{{User: "u", Publish: allow("a/#")}, {User: "u", DenyPublish: allow("#")}}, Identity{"u", "c"}, Publish, "a/b", true, 1},
		{"the second names it", []config.Rule{{User: "u", Publish: allow("a/#")}, {User: "u", DenyPublish: allow("#")}}, Identity{"u", "c"}, Publish, "b", false, 2},
		{"a rule for others is passed over", []config.Rule{{User: "v", DenyPublish: allow("#")}, {User: "u", Publish: allow("#")}}, Identity{"u", "c"}, Publish, "b", true, 2},
		{"a rule for the other action is passed over", all(config.Rule{User: "u", DenySubscribe: allow("#")}), Identity{"u", "c"}, Publish, "b", true, 2},
		{"within a rule denial comes first", []config.Rule{{User: "u", Publish: allow("a/#"), DenyPublish: allow("a/secret/#")}}, Identity{"u", "c"}, Publish, "a/secret/x", false, 1},
		{"beside it", []config.Rule{{User: "u", Publish: allow("a/#"), DenyPublish: allow("a/secret/#")}}, Identity{"u", "c"}, Publish, "a/x", true, 1},

		// whom a rule is for
		{"everybody", all(), Identity{"", "c"}, Publish, "a", true, 1},
		{"anonymous", []config.Rule{{User: "anonymous", Publish: allow("#")}}, Identity{"", "c"}, Publish, "a", true, 1},
		{"anonymous is for nobody with a name", []config.Rule{{User: "anonymous", Publish: allow("#")}}, Identity{"u", "c"}, Publish, "a", false, 0},
		{"a pattern is for names", []config.Rule{{User: "anon*", Publish: allow("#")}}, Identity{"", "c"}, Publish, "a", false, 0},
		{"a pattern in the middle", []config.Rule{{User: "a*z", Publish: allow("#")}}, Identity{"abcz", "c"}, Publish, "a", true, 1},

		// denied filters and subscriptions
		{"a denied filter covers those below", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Subscribe, "secret/a/+", false, 1},
		{"and itself", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Subscribe, "secret/#", false, 1},
		{"and the level above it", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Subscribe, "secret", false, 1},
		{"one that overlaps may be subscribed", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Subscribe, "#", true, 2},
		{"but its part is not delivered", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Deliver, "secret/a", false, 1},
		{"the rest is", all(config.Rule{User: "*", DenySubscribe: allow("secret/#")}), Identity{"u", "c"}, Deliver, "a", true, 2},
		{"# is no grant for $-topics", all(), Identity{"u", "c"}, Subscribe, "$SYS/#", false, 0},
		{"nor for their delivery", all(), Identity{"u", "c"}, Deliver, "$SYS/a", false, 0},
		{"unless said", []config.Rule{{User: "*", Subscribe: allow("$SYS/#")}}, Identity{"u", "c"}, Subscribe, "$SYS/a/#", true, 1},

		// identities that try to widen a filter
		{"client #", []config.Rule{{User: "*", Subscribe: allow("d/{client}/#")}}, Identity{"u", "#"}, Subscribe, "d/#", false, 0},
		{"client # gets nothing at all", []config.Rule{{User: "*", Subscribe: allow("d/{client}/#")}}, Identity{"u", "#"}, Subscribe, "d/#/#", false, 0},
		{"client +", []config.Rule{{User: "*", Subscribe: allow("d/{client}/#")}}, Identity{"u", "+"}, Subscribe, "d/+/#", false, 0},
		{"client + by delivery", []config.Rule{{User: "*", Subscribe: allow("d/{client}/#")}}, Identity{"u", "+"}, Deliver, "d/other/x", false, 0},
		{"client + publishing", []config.Rule{{User: "*", Publish: allow("d/{client}/#")}}, Identity{"u", "+"}, Publish, "d/other/x", false, 0},
		{"client with a level", []config.Rule{{User: "*", Publish: allow("d/{client}/x")}}, Identity{"u", "a/b"}, Publish, "d/a/b/x", false, 0},
		{"client that climbs out", []config.Rule{{User: "*", Publish: allow("{client}/x")}}, Identity{"u", "$SYS"}, Subscribe, "$SYS/x", false, 0},
		{"client of nothing", []config.Rule{{User: "*", Publish: allow("d/{client}/x")}}, Identity{"u", ""}, Publish, "d//x", false, 0},
		{"user that is a placeholder", []config.Rule{{User: "*", Publish: allow("d/{user}/x")}}, Identity{"{client}", "admin"}, Publish, "d/admin/x", false, 0},
		{"anonymous has no {user}", []config.Rule{{User: "*", Publish: allow("d/{user}/x")}}, Identity{"", "c"}, Publish, "d//x", false, 0},
		{"within a level", []config.Rule{{User: "*", Publish: allow("d/x-{client}/y")}}, Identity{"u", "1"}, Publish, "d/x-1/y", true, 1},
		{"within a level, of another", []config.Rule{{User: "*", Publish: allow("d/x-{client}/y")}}, Identity{"u", "1"}, Publish, "d/x-2/y", false, 0},
		{"client with a dot matches literally", []config.Rule{{User: "*", Publish: allow("d/{client}")}}, Identity{"u", "a.c"}, Publish, "d/abc", false, 0},

		// identities that try to slip past a denial
		{"client / and a denial", all(config.Rule{User: "*", DenyPublish: allow("d/{client}/secret")}), Identity{"u", "a/b"}, Publish, "d/a/b/secret", false, 1},
		{"client # and a denial", all(config.Rule{User: "*", DenySubscribe: allow("d/{client}/secret")}), Identity{"u", "#"}, Subscribe, "d/x/secret", false, 1},
		{"client + and a denial, elsewhere", all(config.Rule{User: "*", DenyPublish: allow("d/{client}/secret")}), Identity{"u", "+"}, Publish, "e/x", true, 2},
		{"a plain client and a denial", all(config.Rule{User: "*", DenyPublish: allow("d/{client}/secret")}), Identity{"u", "a"}, Publish, "d/b/secret", true, 2},
		{"its own denial", all(config.Rule{User: "*", DenyPublish: allow("d/{client}/secret")}), Identity{"u", "a"}, Publish, "d/a/secret", false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			rs := NewRules(c.rules)
			d := rs.Explain(c.id, c.action, c.topic)
			if strings.Contains(d.Text, "invalid") && !c.allowed {
				return // the engine never sees such a topic
			}
			if d.Allowed != c.allowed || d.Rule != c.by || d.Text == "" {
				t.Errorf("%+v, want allowed %t by rule %d", d, c.allowed, c.by)
			}
			k := &Checker{logins: newLogins()}
			k.state.Store(&state{users: &users{}, rules: rs})
			if got := k.Allow(c.id, c.action, c.topic); got != c.allowed {
				t.Errorf("Allow says %t", got)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	rules := []config.Rule{
		{User: "*", DenySubscribe: allow("secret/#"), At: config.Place{File: "t.toml", Line: 3, Column: 3}},
		{User: "press-*", Publish: allow("plant/{user}/#"), Subscribe: allow("#"), At: config.Place{File: "t.toml", Line: 7, Column: 3}},
	}
	for _, c := range []struct {
		user   string
		action Action
		topic  string
		want   Decision
	}{
		{"press-1", Publish, "plant/press-1/x", Decision{true, 2, `rule 2 (t.toml:7, user = "press-*") allows publish to plant/{user}/#`}},
		{"press-1", Publish, "plant/press-2/x", Decision{false, 0, "no rule for this user names the topic"}},
		{"press-1", Publish, "tidegate/x", Decision{false, 0, "nobody may publish to $… and tidegate/#"}},
		{"press-1", Publish, "a/#", Decision{false, 0, `invalid message: topic name "a/#" has a wildcard`}},
		{"press-1", Subscribe, "secret/x", Decision{false, 1, `rule 1 (t.toml:3, user = "*") denies subscribe to secret/#`}},
		{"press-1", Subscribe, "a/#", Decision{true, 2, `rule 2 (t.toml:7, user = "press-*") allows subscribe to #`}},
		{"press-1", Subscribe, "#", Decision{true, 2, `rule 2 (t.toml:7, user = "press-*") allows subscribe to #; what is denied below it may not be delivered: rule 1 denies secret/#`}},
	} {
		if got := NewRules(rules).Explain(Identity{User: c.user, Client: "c"}, c.action, c.topic); got != c.want {
			t.Errorf("%s %s %s:\n got %+v\nwant %+v", c.user, c.action, c.topic, got, c.want)
		}
	}
	if got := (Rules{}).Explain(Identity{}, Subscribe, "#"); !got.Allowed || got.Rule != 0 || got.Text != "there are no rules: everything is allowed but publishing to $… and tidegate/#" {
		t.Errorf("%+v", got)
	}
}

// FuzzPersonalFilters tries identities against the two promises of {user} and {client}: what is granted lies within the one
// level where the placeholder stands, and a denial of all that is granted cannot be slipped past.
func FuzzPersonalFilters(f *testing.F) {
	for _, client := range []string{"a", "#", "+", "a/b", "", "$SYS", "{user}", "a\x00", "/", "a/#", "ü"} {
		f.Add(client, "d/"+client+"/x")
		f.Add(client, "d/other/x")
		f.Add(client, "d/"+client+"/y/x-u")
	}
	f.Fuzz(func(t *testing.T, client, topic string) {
		id := Identity{User: "u", Client: client}
		grant := NewRules([]config.Rule{{User: "*", Publish: allow("d/{client}/#"), Subscribe: allow("d/{client}/#")}})
		levels := strings.Split(topic, "/")
		for _, action := range []Action{Publish, Subscribe, Deliver} {
			own := len(levels) >= 2 && levels[0] == "d" && levels[1] == client && client != ""
			if action == Subscribe && strings.HasPrefix(topic, "$share/") {
				continue
			}
			if d := grant.Explain(id, action, topic); d.Allowed && !own {
				t.Errorf("client %q may %s %q: %s", client, action, topic, d.Text)
			}
		}
		if f := newFilter("d/{client}/+/x-{user}/#"); client != "" && plain(client) && message.ValidName(topic) == nil {
			if got, want := f.match(id, topic), message.Match(f.fill(id), topic); got != want {
				t.Errorf("%q matches %q: %t, package message says %t", f.fill(id), topic, got, want)
			}
		}
		deny := NewRules([]config.Rule{{User: "*", DenyPublish: allow("d/{client}/#")}, {User: "*", Publish: allow("#")}})
		if d := deny.Explain(id, Publish, topic); d.Allowed && client != "" && strings.HasPrefix(topic, "d/"+client+"/") {
			t.Errorf("client %q slips past the denial of %q: %s", client, topic, d.Text)
		}
	})
}

func BenchmarkAllow(b *testing.B) {
	k := &Checker{logins: newLogins()}
	k.state.Store(&state{users: &users{}, rules: NewRules(agreed())})
	id := Identity{"press-17", "press-17"}
	b.ReportAllocs()
	for b.Loop() {
		k.Allow(id, Publish, "plant/press-17/temperature")
	}
}
