package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Part is a piece of a topic template: fixed text or a name in braces, one of which is empty.
type Part struct {
	Text string
	Name string // gateway, uplink, topic, rest, user, client, protocol, or a level "1" to "9"
}

// ParseTemplate splits a topic template such as sites/{gateway}/{topic}. A name it does not know, an empty template and a
// brace without its other half are errors, and all of them are reported.
func ParseTemplate(text string) ([]Part, error) {
	parts, err := parseTemplate(text, templateNames())
	if err != nil {
		return nil, err
	}
	return parts, nil
}

// templateNames are the names that a topic template can hold.
func templateNames() []string {
	return []string{"gateway", "uplink", "topic", "1", "2", "3", "4", "5", "6", "7", "8", "9", "rest", "user", "client", "protocol"}
}

// unknownNameError is the error for a name in braces that is not allowed where it stands.
type unknownNameError struct {
	name    string
	allowed []string
}

func (e *unknownNameError) Error() string {
	return fmt.Sprintf("unknown name {%s}, known here are {%s}", e.name, strings.Join(e.allowed, "} {"))
}

// parseTemplate splits text at the names in allowed. Its error joins everything that is wrong; the parts are then those that
// are right.
func parseTemplate(text string, allowed []string) ([]Part, error) {
	if text == "" {
		return nil, errors.New("the template is empty")
	}
	var parts []Part
	var wrong []error
	for rest := text; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			parts = append(parts, Part{Text: rest})
			break
		}
		if i > 0 {
			parts = append(parts, Part{Text: rest[:i]})
		}
		if rest[i] == '}' {
			wrong = append(wrong, fmt.Errorf("} without { in %q", text))
			rest = rest[i+1:]
			continue
		}
		end := strings.IndexAny(rest[i+1:], "{}")
		if end < 0 || rest[i+1+end] == '{' {
			wrong = append(wrong, fmt.Errorf("{ without } in %q", text))
			rest = rest[i+1:]
			continue
		}
		name := rest[i+1 : i+1+end]
		if !slices.Contains(allowed, name) {
			wrong = append(wrong, &unknownNameError{name, allowed})
		} else {
			parts = append(parts, Part{Name: name})
		}
		rest = rest[i+end+2:]
	}
	return parts, errors.Join(wrong...)
}

// expand replaces the names that values has and leaves the others as they are written.
func expand(parts []Part, values map[string]string) string {
	var b strings.Builder
	for _, p := range parts {
		value, ok := values[p.Name]
		switch {
		case p.Name == "":
			b.WriteString(p.Text)
		case ok:
			b.WriteString(value)
		default:
			b.WriteString("{" + p.Name + "}")
		}
	}
	return b.String()
}
