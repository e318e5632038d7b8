package session

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// target is somebody who subscribes: a Session or a handler of this process.
type target interface {
	// client is the client identifier, for the No Local option; empty for a handler.
	client() string
	// online reports whether messages reach the target now rather than at its next connection.
	online() bool
	// several reports whether the target may have more than one subscription outside shared groups.
	several() bool
	// deliver queues e, or reports why it does not.
	deliver(e Entry) outcome
	// takes says what deliver would return, and changes nothing.
	takes(e Entry) outcome
}

// outcome says what became of a message at one target.
type outcome int

const (
	refused outcome = iota // not for this target: a rule forbids it, or the session ended
	dropped                // the target's bound was reached; counted
	queued
)

// match is one subscription that selects a topic: a target's own, or a shared group.
type match struct {
	target target
	sub    *Subscription
	share  *share
}

// tree finds the subscriptions that select a topic. A level of a filter is a node; + and # are nodes of their own.
type tree struct {
	mu   sync.RWMutex
	root node
	// version grows with each change of what match finds, and of the rules on who of them gets it.
	version atomic.Uint64
}

type node struct {
	parent   *node
	level    string
	children branches[node]
	plus     *node
	hash     *node
	subs     []match
	shares   []*share
}

// add registers t's subscription, replacing the one with the same filter [MQTT-3.8.4-3].
func (tr *tree) add(t target, sub *Subscription) {
	group, filter := splitShared(sub.Filter)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	defer tr.version.Add(1)
	n := tr.root.make(filter)
	if group == "" {
		if i := slices.IndexFunc(n.subs, func(m match) bool { return m.target == t }); i >= 0 {
			n.subs[i].sub = sub
			return
		}
		n.subs = append(n.subs, match{target: t, sub: sub})
		return
	}
	i := slices.IndexFunc(n.shares, func(s *share) bool { return s.group == group })
	if i < 0 {
		i = len(n.shares)
		n.shares = append(n.shares, &share{group: group, filter: sub.Filter})
	}
	n.shares[i].join(t, sub)
}

// remove forgets t's subscription to filter.
func (tr *tree) remove(t target, filter string) {
	group, filter := splitShared(filter)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	defer tr.version.Add(1)
	n := tr.root.find(filter)
	if n == nil {
		return
	}
	if group == "" {
		n.subs = slices.DeleteFunc(n.subs, func(m match) bool { return m.target == t })
	} else {
		n.shares = slices.DeleteFunc(n.shares, func(s *share) bool { return s.group == group && s.leave(t) == 0 })
	}
	n.prune()
}

// share returns the shared subscription with that filter; nil when nobody has it any more.
func (tr *tree) share(filter string) *share {
	group, rest := splitShared(filter)
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	n := tr.root.find(rest)
	if n == nil {
		return nil
	}
	if i := slices.IndexFunc(n.shares, func(s *share) bool { return s.group == group }); i >= 0 {
		return n.shares[i]
	}
	return nil
}

// match appends to out what selects topic.
func (tr *tree) match(topic string, out []match) []match {
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	return tr.root.match(topic, true, out)
}

func (n *node) match(rest string, more bool, out []match) []match {
	// Wildcards in the first level do not select topics that begin with $ [MQTT-4.7.2-1].
	wild := n.parent != nil || rest == "" || rest[0] != '$'
	if n.hash != nil && wild {
		out = n.hash.gather(out)
	}
	if !more {
		return n.gather(out)
	}
	level, rest, more := strings.Cut(rest, "/")
	if c := n.children.get(level); c != nil {
		out = c.match(rest, more, out)
	}
	if n.plus != nil && wild {
		out = n.plus.match(rest, more, out)
	}
	return out
}

func (n *node) gather(out []match) []match {
	out = append(out, n.subs...)
	for _, s := range n.shares {
		out = append(out, match{share: s})
	}
	return out
}

func (n *node) make(filter string) *node {
	for more := true; more; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		c := n.child(level)
		if c == nil {
			c = &node{parent: n, level: level}
			switch level {
			case "+":
				n.plus = c
			case "#":
				n.hash = c
			default:
				n.children.set(level, c)
			}
		}
		n = c
	}
	return n
}

func (n *node) find(filter string) *node {
	for more := true; more && n != nil; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		n = n.child(level)
	}
	return n
}

func (n *node) child(level string) *node {
	switch level {
	case "+":
		return n.plus
	case "#":
		return n.hash
	}
	return n.children.get(level)
}

// prune removes n and its ancestors as far as they are empty.
func (n *node) prune() {
	for n.parent != nil && len(n.subs) == 0 && len(n.shares) == 0 && n.children.none() && n.plus == nil && n.hash == nil {
		p := n.parent
		switch n.level {
		case "+":
			p.plus = nil
		case "#":
			p.hash = nil
		default:
			p.children.drop(n.level)
		}
		n = p
	}
}
