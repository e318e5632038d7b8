package opcua

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"tidegate/bridges/opcua/link"
	"tidegate/message"
)

// template is a topic with names in braces: {path}, {name}, {id} and {ns}.
type template string

// describes reports whether the server has to be asked what it calls the node.
func (t template) describes() bool {
	return strings.Contains(string(t), "{path}") || strings.Contains(string(t), "{name}")
}

// topic fills t in for a node and checks the result. {name}, {id} and {ns} are one level each, {path} one level per name
// on the way: what would split or end a level in them is replaced.
func (t template) topic(d link.Description) (string, error) {
	path := make([]string, len(d.Path))
	for i, name := range d.Path {
		path[i] = level(name)
	}
	topic := strings.NewReplacer(
		"{path}", strings.Join(path, "/"),
		"{name}", level(d.Name),
		"{id}", level(d.Node.Identifier()),
		"{ns}", strconv.Itoa(int(d.Node.Namespace)),
	).Replace(string(t))
	if err := message.ValidName(topic); err != nil {
		return "", fmt.Errorf("topic %q: %w", string(t), err)
	}
	if message.Reserved(topic) {
		return "", fmt.Errorf("topic %q: the topics $… and tidegate/# are the gateway's own", topic)
	}
	return topic, nil
}

// level makes a topic level of any text: separators, wildcards and control characters become underscores, and so do a
// dollar at its beginning, which would hide the topic from wildcards, and bytes that are no UTF-8.
func level(text string) string {
	if text == "" {
		return "_"
	}
	text = strings.Map(func(r rune) rune {
		if r == '/' || r == '+' || r == '#' || r == unicode.ReplacementChar || unicode.IsControl(r) {
			return '_'
		}
		return r
	}, text)
	if text[0] == '$' {
		text = "_" + text[1:]
	}
	return text
}
