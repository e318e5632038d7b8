package access

import (
	"fmt"
	"strings"

	"tidegate/config"
	"tidegate/message"
)

// Rules are the [[auth.rule]] of a configuration. The zero value has none.
type Rules struct{ rules []rule }

// rule is one rule with its filters prepared.
type rule struct {
	user        string // pattern, with * for any text
	publish     permission
	subscribe   permission
	config.Rule // as written, for explanations
}

// permission is what a rule says about one action.
type permission struct{ allow, deny []filter }

// NewRules prepares rules that came out of a valid configuration.
func NewRules(rules []config.Rule) Rules {
	var rs Rules
	for _, r := range rules {
		rs.rules = append(rs.rules, rule{
			user:      r.User,
			publish:   permission{filters(r.Publish), filters(r.DenyPublish)},
			subscribe: permission{filters(r.Subscribe), filters(r.DenySubscribe)},
			Rule:      r,
		})
	}
	return rs
}

// matches reports whether the rule is about id.
func (r *rule) matches(id Identity) bool {
	switch {
	case r.user == "*":
		return true
	case id.User == "":
		return r.user == config.AnonymousUser
	case r.user == config.AnonymousUser:
		return false // no user can have that name, but a pattern such as "anon*" is about names
	}
	return config.MatchUser(r.user, id.User)
}

// permission returns what the rule says about action.
func (r *rule) permission(action Action) *permission {
	if action == Publish {
		return &r.publish
	}
	return &r.subscribe
}

// decide judges action on topic, which is a topic filter for Subscribe, else a topic name.
//
// Nobody publishes to $… and tidegate/#, which are the gateway's own. Without rules everything else is allowed. With rules
// they are read in order, and the first one that is about id and names the topic decides; within it a denial comes first.
// A rule names a filter when one of its filters covers it, so that a subscription reaches nothing that the rules do not
// grant. A denied filter that overlaps a granted subscription without covering it is enforced on delivery, where every
// topic name is judged again.
func (rs Rules) decide(id Identity, action Action, topic string) (allowed bool, by int, f filter) {
	if action == Publish && message.Reserved(topic) {
		return false, 0, filter{}
	}
	if len(rs.rules) == 0 {
		return true, 0, filter{}
	}
	for i := range rs.rules {
		r := &rs.rules[i]
		if !r.matches(id) {
			continue
		}
		p := r.permission(action)
		for _, f := range p.deny {
			if f.denies(id, action, topic) {
				return false, i + 1, f
			}
		}
		for _, f := range p.allow {
			if f.allows(id, action, topic) {
				return true, i + 1, f
			}
		}
	}
	return false, 0, filter{}
}

// Explain says what the rules decide and why. topic is a topic filter for Subscribe, else a topic name.
func (rs Rules) Explain(id Identity, action Action, topic string) Decision {
	if err := validTopic(action, topic); err != nil {
		return Decision{Text: err.Error()}
	}
	allowed, by, f := rs.decide(id, action, topic)
	d := Decision{Allowed: allowed, Rule: by}
	switch {
	case by > 0 && allowed:
		d.Text = rs.text(by) + " allows " + string(action) + " to " + f.text + rs.exceptions(id, action, topic)
	case by > 0:
		d.Text = rs.text(by) + " denies " + string(action) + " to " + f.text
	case allowed:
		d.Text = "there are no rules: everything is allowed but publishing to $… and tidegate/#"
	case action == Publish && message.Reserved(topic):
		d.Text = "nobody may publish to $… and tidegate/#"
	default:
		d.Text = "no rule for this user names the topic"
	}
	return d
}

// exceptions names the rules that keep some topics of an allowed subscription from being delivered.
func (rs Rules) exceptions(id Identity, action Action, topic string) string {
	var by []string
	for i := range rs.rules {
		r := &rs.rules[i]
		if action != Subscribe || !r.matches(id) {
			continue
		}
		for _, f := range r.subscribe.deny {
			if message.Overlaps(f.denied(id), topic) {
				by = append(by, fmt.Sprintf("rule %d denies %s", i+1, f.text))
			}
		}
	}
	if by == nil {
		return ""
	}
	return "; what is denied below it may not be delivered: " + strings.Join(by, ", ")
}

// text names rule number n and its place.
func (rs Rules) text(n int) string {
	r := rs.rules[n-1]
	if r.At.File == "" {
		return fmt.Sprintf("rule %d", n)
	}
	return fmt.Sprintf("rule %d (%s:%d, user = %q)", n, r.At.File, r.At.Line, r.User)
}

func validTopic(action Action, topic string) error {
	if action == Subscribe {
		return message.ValidFilter(topic)
	}
	return message.ValidName(topic)
}
