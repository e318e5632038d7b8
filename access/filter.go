package access

import (
	"strings"

	"tidegate/message"
)

// filter is a topic filter of a rule. It may hold {user} and {client}, which stand for the identity that is judged.
//
// A client chooses its identifier freely, so an identity can be an attack: "#", "+" or "a/b" must not widen what {client} was
// meant to be, a part of one level. Such an identity is granted nothing by a filter with a placeholder, and a denial with one
// takes everything from the level of the placeholder down, so that nothing slips past it. The identity is compared as text
// and never parsed for wildcards or placeholders.
type filter struct {
	text         string
	user, client bool     // it holds them
	levels       [][]part // of a filter with placeholders
}

// part is a piece of a level: fixed text, or a placeholder.
type part struct {
	text         string
	user, client bool
}

func filters(texts []string) []filter {
	list := make([]filter, len(texts))
	for i, t := range texts {
		list[i] = newFilter(t)
	}
	return list
}

func newFilter(text string) filter {
	f := filter{text: text, user: strings.Contains(text, "{user}"), client: strings.Contains(text, "{client}")}
	if f.user || f.client {
		for level := range strings.SplitSeq(text, "/") {
			f.levels = append(f.levels, parts(level))
		}
	}
	return f
}

// parts splits one level at its placeholders.
func parts(level string) []part {
	var ps []part
	for level != "" {
		before, after, found := strings.Cut(level, "{")
		if before != "" {
			ps = append(ps, part{text: before})
		}
		if !found {
			break
		}
		var name string
		name, level, _ = strings.Cut(after, "}")
		ps = append(ps, part{user: name == "user", client: name == "client"})
	}
	return ps
}

// value returns what the part stands for.
func (p part) value(id Identity) string {
	switch {
	case p.user:
		return id.User
	case p.client:
		return id.Client
	}
	return p.text
}

// allows reports whether the filter, as a grant, names topic: a topic filter that it covers for Subscribe, else a topic name
// that it matches.
func (f *filter) allows(id Identity, action Action, topic string) bool {
	if f.user && (id.User == "" || !plain(id.User)) || f.client && (id.Client == "" || !plain(id.Client)) {
		return false
	}
	return f.names(id, action, topic)
}

// denies reports whether the filter, as a denial, names topic, as allows does.
func (f *filter) denies(id Identity, action Action, topic string) bool {
	if f.user && !plain(id.User) || f.client && !plain(id.Client) {
		wide := newFilter(f.denied(id))
		return wide.names(id, action, topic)
	}
	return f.names(id, action, topic)
}

func (f *filter) names(id Identity, action Action, topic string) bool {
	switch {
	case action == Subscribe:
		return message.Covers(f.fill(id), topic)
	case f.levels == nil:
		return message.Match(f.text, topic)
	}
	return f.match(id, topic)
}

// match is message.Match for a filter with placeholders. It allocates nothing, as it is asked for every message.
func (f *filter) match(id Identity, topic string) bool {
	if topic[0] == '$' && wildcard(f.levels[0]) != "" {
		return false // [MQTT-4.7.2-1]
	}
	rest, more := topic, true
	for _, l := range f.levels {
		w := wildcard(l)
		if w == "#" {
			return true // a/# selects a as well
		}
		if !more {
			return false
		}
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if w == "" && !is(l, id, level) {
			return false
		}
	}
	return !more
}

// wildcard returns + or # when the level is one.
func wildcard(level []part) string {
	if len(level) == 1 && (level[0].text == "+" || level[0].text == "#") {
		return level[0].text
	}
	return ""
}

// is reports whether the parts together are text.
func is(level []part, id Identity, text string) bool {
	for _, p := range level {
		var ok bool
		if text, ok = strings.CutPrefix(text, p.value(id)); !ok {
			return false
		}
	}
	return text == ""
}

// fill returns the filter with its placeholders filled, in one pass, so that a user named "{client}" stays one.
func (f *filter) fill(id Identity) string {
	if f.levels == nil {
		return f.text
	}
	var b strings.Builder
	for i, level := range f.levels {
		if i > 0 {
			b.WriteByte('/')
		}
		for _, p := range level {
			b.WriteString(p.value(id))
		}
	}
	if b.Len() == 0 {
		return "/" // the name of nobody: a filter that nothing of value has
	}
	return b.String()
}

// denied returns what the filter takes away from id.
func (f *filter) denied(id Identity) string {
	if f.user && !plain(id.User) || f.client && !plain(id.Client) {
		return f.text[:strings.LastIndexByte(f.text[:strings.IndexByte(f.text, '{')], '/')+1] + "#"
	}
	return f.fill(id)
}

// plain reports whether value is text within one level: no wildcard, no separator, and not the start of a $-topic.
func plain(value string) bool {
	return !strings.ContainsAny(value, "/+#\x00") && !strings.HasPrefix(value, "$")
}
