package pipeline

import (
	"strings"

	"tidegate/message"
)

// matcher finds the filters that select a topic in one walk down the topic's levels, whatever the number of filters.
type matcher struct{ root node }

// node stands behind one level. Its filters end here; those in many have a # as their next and last level.
type node struct {
	levels map[string]*node
	any    *node // the level +
	here   []filterRef
	many   []filterRef
}

// filterRef points to one filter: the nth "from" of a route.
type filterRef struct{ route, from int }

func (m *matcher) add(filter string, ref filterRef) {
	n := &m.root
	for rest, more := filter, true; more; {
		var l string
		l, rest, more = strings.Cut(rest, "/")
		switch l {
		case "#":
			n.many = append(n.many, ref)
			return
		case "+":
			if n.any == nil {
				n.any = &node{}
			}
			n = n.any
		default:
			if n.levels == nil {
				n.levels = make(map[string]*node)
			}
			next := n.levels[l]
			if next == nil {
				next = &node{}
				n.levels[l] = next
			}
			n = next
		}
	}
	n.here = append(n.here, ref)
}

// find appends the filters that select topic, in no particular order. The topic must not begin with $, which wildcards
// in the first level would have to skip [MQTT-4.7.2-1]; such topics match no route at all.
func (m *matcher) find(dst []filterRef, topic string) []filterRef {
	return m.root.find(dst, topic, true)
}

func (n *node) find(dst []filterRef, topic string, more bool) []filterRef {
	dst = append(dst, n.many...) // a/# selects a as well, so even when no level is left
	if !more {
		return append(dst, n.here...)
	}
	l, rest, more := strings.Cut(topic, "/")
	if next := n.levels[l]; next != nil {
		dst = next.find(dst, rest, more)
	}
	if n.any != nil {
		dst = n.any.find(dst, rest, more)
	}
	return dst
}

func excepted(except []string, topic string) bool {
	for _, f := range except {
		if message.Match(f, topic) {
			return true
		}
	}
	return false
}
