package pipeline

import (
	"fmt"
	"strings"

	"tidegate/config"
	"tidegate/message"
)

// Values is what the names of a template stand for.
type Values struct {
	Gateway, Uplink string
	// Topic is {topic}; its levels are {1} to {9}. A level that the topic does not have is empty.
	Topic string
	// Rest is {rest}: what the # of the matching filter matched, without the slash in front; empty when it has no #.
	Rest   string
	Source message.Source
}

// Template makes a topic name out of text and names in braces. Its zero value makes an empty, hence invalid, name.
type Template struct {
	parts []part
	// whole: the template is {topic} and nothing else, so the topic can be passed on as it is.
	whole bool
	// bySource: some name depends on who sent the message and not on its topic alone.
	bySource bool
}

// part is literal text, or a name with its level for {1} to {9}.
type part struct {
	name  partName
	text  string
	level int
}

type partName uint8

const (
	partText partName = iota
	partGateway
	partUplink
	partTopic
	partLevel
	partRest
	partUser
	partClient
	partProtocol
)

// ParseTemplate prepares a topic template, whose names the package config defines. A wildcard or NUL in its text is an
// error too, because nothing that it makes would be a topic name.
func ParseTemplate(text string) (Template, error) {
	parts, err := config.ParseTemplate(text)
	if err != nil {
		return Template{}, fmt.Errorf("parse topic template %q: %w", text, err)
	}
	var t Template
	for _, p := range parts {
		if p.Name == "" {
			if strings.ContainsAny(p.Text, "+#\x00") {
				return Template{}, fmt.Errorf("parse topic template %q: + # and NUL have no place in a topic name", text)
			}
			t.parts = append(t.parts, part{text: p.Text})
			continue
		}
		n, ok := namedPart(p.Name)
		if !ok {
			return Template{}, fmt.Errorf("parse topic template %q: nothing is known of {%s}", text, p.Name)
		}
		t.parts = append(t.parts, n)
		t.bySource = t.bySource || n.name >= partUser
	}
	t.whole = len(t.parts) == 1 && t.parts[0].name == partTopic
	return t, nil
}

// ExpandFailed begins the reason why a route made no topic that may be sent.
const ExpandFailed = "expand topic template"

// serviceTopic reports whether the template itself, and no device, names a first level with a $: that of a cloud service, such
// as $aws/rules/. Package config refuses those that belong to every broker.
func (t Template) serviceTopic() bool {
	return len(t.parts) > 0 && strings.HasPrefix(t.parts[0].text, "$") && strings.Contains(t.parts[0].text, "/")
}

func namedPart(name string) (part, bool) {
	switch name {
	case "gateway":
		return part{name: partGateway}, true
	case "uplink":
		return part{name: partUplink}, true
	case "topic":
		return part{name: partTopic}, true
	case "rest":
		return part{name: partRest}, true
	case "user":
		return part{name: partUser}, true
	case "client":
		return part{name: partClient}, true
	case "protocol":
		return part{name: partProtocol}, true
	}
	if len(name) == 1 && name[0] >= '1' && name[0] <= '9' {
		return part{name: partLevel, level: int(name[0] - '0')}, true
	}
	return part{}, false
}

// Expand fills in the values. The error, which wraps message.ErrInvalid, says why the result is no valid topic name.
func (t Template) Expand(v Values) (string, error) {
	topic := v.Topic
	if !t.whole {
		var b strings.Builder
		for _, p := range t.parts {
			b.WriteString(p.value(v))
		}
		topic = b.String()
	}
	if err := message.ValidName(topic); err != nil {
		return topic, fmt.Errorf(ExpandFailed+": %w", err)
	}
	return topic, nil
}

func (p part) value(v Values) string {
	switch p.name {
	case partGateway:
		return v.Gateway
	case partUplink:
		return v.Uplink
	case partTopic:
		return v.Topic
	case partLevel:
		return level(v.Topic, p.level)
	case partRest:
		return v.Rest
	case partUser:
		return v.Source.User
	case partClient:
		return v.Source.Client
	case partProtocol:
		return string(v.Source.Protocol)
	default:
		return p.text
	}
}

// level returns the nth level of a topic, counted from 1, and nothing where there is none.
func level(topic string, n int) string {
	for ; n > 1; n-- {
		_, rest, more := strings.Cut(topic, "/")
		if !more {
			return ""
		}
		topic = rest
	}
	first, _, _ := strings.Cut(topic, "/")
	return first
}

// Rest returns what the # of filter stands for in topic, which filter must match: "" when filter has none or when topic
// is the level above the #.
func Rest(filter, topic string) string {
	if filter == "#" {
		return topic
	}
	above, many := strings.CutSuffix(filter, "/#")
	if !many {
		return ""
	}
	for range strings.Count(above, "/") + 1 {
		_, topic, _ = strings.Cut(topic, "/")
	}
	return topic
}
