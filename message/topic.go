package message

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxTopicBytes is the longest topic the two-byte length prefix can carry [MQTT-4.7.3-3].
const maxTopicBytes = 65535

// ValidName reports why topic is no valid topic name; the error wraps ErrInvalid. A name has at least one character
// [MQTT-4.7.3-1], no wildcards [MQTT-3.3.2-2] and no NUL [MQTT-4.7.3-2], and is well-formed UTF-8 [MQTT-1.5.4-1]. Control
// characters, which nobody should send (MQTT 5.0, 1.5.4), are refused too: brokers end the connection over them, and a record
// that cannot be handed on would only stand in the way of others.
func ValidName(topic string) error {
	ascii := true
	for i := range len(topic) {
		switch c := topic[i]; {
		case c == '+' || c == '#':
			return fmt.Errorf("%w: topic name %q has a wildcard", ErrInvalid, topic)
		case c < ' ' || c == 0x7f:
			return fmt.Errorf("%w: topic name %q holds a control character", ErrInvalid, topic)
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if ascii && topic != "" && len(topic) <= maxTopicBytes {
		return nil
	}
	if strings.ContainsFunc(topic, func(c rune) bool { return c >= 0x80 && c <= 0x9f }) {
		return fmt.Errorf("%w: topic name %q holds a control character", ErrInvalid, topic)
	}
	return validText("topic name", topic)
}

// ValidFilter reports why filter is no valid topic filter; the error wraps ErrInvalid. A # stands alone in the last level
// [MQTT-4.7.1-1], a + alone in its level [MQTT-4.7.1-2]. A shared subscription has a group name without wildcards
// [MQTT-4.8.2-1] and a filter behind it [MQTT-4.8.2-2].
func ValidFilter(filter string) error {
	if err := validText("topic filter", filter); err != nil {
		return err
	}
	whole := filter
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared {
		group, f, ok := strings.Cut(rest, "/")
		if !ok || group == "" || f == "" || strings.ContainsAny(group, "+#") {
			return fmt.Errorf("%w: shared subscription %q: want $share/GROUP/FILTER", ErrInvalid, whole)
		}
		filter = f
	}
	for level, rest, more := nextLevel(filter); ; level, rest, more = nextLevel(rest) {
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return fmt.Errorf("%w: topic filter %q: a wildcard must be a whole level", ErrInvalid, whole)
		}
		if level == "#" && more {
			return fmt.Errorf("%w: topic filter %q: # must be the last level", ErrInvalid, whole)
		}
		if !more {
			return nil
		}
	}
}

func validText(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty %s", ErrInvalid, what)
	case len(s) > maxTopicBytes:
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrInvalid, what, len(s), maxTopicBytes)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%w: %s %q holds NUL", ErrInvalid, what, s)
	case !utf8.ValidString(s):
		return fmt.Errorf("%w: %s %q is not UTF-8", ErrInvalid, what, s)
	}
	return nil
}

// Match reports whether filter selects topic. Both must be valid. Wildcards in the first level do not select topics
// that begin with $ [MQTT-4.7.2-1]; a/# selects a as well. Shared subscriptions are matched without their prefix.
func Match(filter, topic string) bool {
	filter = unshared(filter)
	if topic != "" && topic[0] == '$' && (filter == "" || filter[0] != '$') {
		return false
	}
	for {
		f, frest, fmore := nextLevel(filter)
		if f == "#" {
			return true
		}
		t, trest, tmore := nextLevel(topic)
		if f != "+" && f != t {
			return false
		}
		if !tmore {
			return !fmore || frest == "#"
		}
		if !fmore {
			return false
		}
		filter, topic = frest, trest
	}
}

// Covers reports whether every topic that sub selects is selected by filter too. Both must be valid filters.
func Covers(filter, sub string) bool {
	filter, sub = unshared(filter), unshared(sub)
	if sub[0] == '$' && filter[0] != '$' {
		return false
	}
	for {
		f, frest, fmore := nextLevel(filter)
		s, srest, smore := nextLevel(sub)
		switch {
		case f == "#":
			return true
		case s == "#":
			return false
		case f != "+" && f != s:
			return false
		case !smore:
			return !fmore || frest == "#"
		case !fmore:
			return false
		}
		filter, sub = frest, srest
	}
}

// Overlaps reports whether some topic is selected by both filters.
func Overlaps(a, b string) bool {
	a, b = unshared(a), unshared(b)
	if (a[0] == '$') != (b[0] == '$') {
		return false // a wildcard in the first level does not reach $-topics
	}
	for {
		la, ra, ma := nextLevel(a)
		lb, rb, mb := nextLevel(b)
		switch {
		case la == "#" || lb == "#":
			return true
		case la != "+" && lb != "+" && la != lb:
			return false
		case !ma && !mb:
			return true
		case !ma:
			return rb == "#"
		case !mb:
			return ra == "#"
		}
		a, b = ra, rb
	}
}

// Reserved reports whether topic belongs to the gateway itself ($… and tidegate/…): no route matches it and no device
// may publish it.
func Reserved(topic string) bool {
	return strings.HasPrefix(topic, "$") || topic == "tidegate" || strings.HasPrefix(topic, "tidegate/")
}

func unshared(filter string) string {
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared {
		if _, f, ok := strings.Cut(rest, "/"); ok {
			return f
		}
	}
	return filter
}

func nextLevel(s string) (level, rest string, more bool) { return strings.Cut(s, "/") }
