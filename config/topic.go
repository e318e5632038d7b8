package config

import (
	"errors"
	"fmt"
	"strings"
)

// This package imports no other of ours, so that everything can read a configuration; hence it checks the syntax of topic
// filters itself. What runs matches by package message.

// maxTopicBytes is the longest topic the two-byte length prefix can carry [MQTT-4.7.3-3].
const maxTopicBytes = 65535

// checkFilter reports why filter is no topic filter that a configuration can hold.
func checkFilter(filter string) error {
	if err := checkTopicText(filter); err != nil {
		return err
	}
	if strings.HasPrefix(filter, "$share/") {
		return errors.New("a shared subscription cannot stand here; write the filter alone, without $share/GROUP/")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return fmt.Errorf("the filter %q is not valid: + and # stand alone in their level [MQTT-4.7.1-2]", filter)
		case level == "#" && i < len(levels)-1:
			return fmt.Errorf("the filter %q is not valid: # can only be the last level [MQTT-4.7.1-1]", filter)
		}
	}
	return nil
}

func checkTopicText(s string) error {
	switch {
	case s == "":
		return errors.New("the filter is empty")
	case len(s) > maxTopicBytes:
		return fmt.Errorf("the filter has %d bytes, at most %d can be sent", len(s), maxTopicBytes)
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("the filter holds a NUL character")
	}
	return nil
}

// reserved reports whether every topic of the filter is the gateway's own.
func reserved(filter string) bool {
	return strings.HasPrefix(filter, "$") || filter == "tidegate" || strings.HasPrefix(filter, "tidegate/")
}

// covers reports whether every topic that sub selects is selected by filter too. Both are valid.
func covers(filter, sub string) bool {
	if sub[0] == '$' && filter[0] != '$' {
		return false // a wildcard in the first level does not reach $-topics [MQTT-4.7.2-1]
	}
	f, s := strings.Split(filter, "/"), strings.Split(sub, "/")
	for i := range f {
		if f[i] == "#" {
			return true
		}
		if i == len(s) || s[i] == "#" || f[i] != "+" && f[i] != s[i] {
			return false
		}
		if i == len(s)-1 {
			return i == len(f)-1 || f[i+1] == "#" && i+1 == len(f)-1
		}
	}
	return false
}

// overlaps reports whether some topic is selected by both filters, which are valid.
func overlaps(a, b string) bool {
	if (a[0] == '$') != (b[0] == '$') {
		return false
	}
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	for i := 0; ; i++ {
		switch {
		case i == len(x) || i == len(y):
			return len(x) == len(y) || i < len(x) && x[i] == "#" || i < len(y) && y[i] == "#"
		case x[i] == "#" || y[i] == "#":
			return true
		case x[i] != "+" && y[i] != "+" && x[i] != y[i]:
			return false
		}
	}
}

// levels returns how many levels the topics of filter have, and whether it is at least that many.
func levels(filter string) (n int, open bool) {
	n = strings.Count(filter, "/") + 1
	if filter == "#" || strings.HasSuffix(filter, "/#") {
		return n - 1, true
	}
	return n, false
}
