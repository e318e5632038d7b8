package session

import (
	"slices"
	"strings"
	"sync"
)

// sharePrefix begins the filter of a shared subscription: $share/GROUP/FILTER.
const sharePrefix = "$share/"

// splitShared splits the filter of a subscription into its group, empty for an ordinary one, and the filter proper.
func splitShared(filter string) (group, rest string) {
	if after, ok := strings.CutPrefix(filter, sharePrefix); ok {
		group, rest, _ = strings.Cut(after, "/")
		return group, rest
	}
	return "", filter
}

// share is one shared subscription: each message goes to one member, in turn. Members that are online come first, so
// that nothing waits for a session that may never come back while somebody else could take it, and members whose queue
// has room before those that would drop something for it.
type share struct {
	group  string
	filter string // whole, with its prefix

	mu      sync.Mutex
	members []match
	next    int
}

func (s *share) join(t target, sub *Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.members, func(m match) bool { return m.target == t }); i >= 0 {
		s.members[i].sub = sub
		return
	}
	s.members = append(s.members, match{target: t, sub: sub})
}

// leave removes t and returns how many members remain.
func (s *share) leave(t target) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = slices.DeleteFunc(s.members, func(m match) bool { return m.target == t })
	return len(s.members)
}

// deliver gives e to one member and reports whether somebody took it.
func (s *share) deliver(e Entry) bool {
	return s.offer(e, func(t target, c Entry) bool { return t.deliver(c) == queued })
}

// offer offers e to members with try until one takes it, and reports whether one did. Offline members are asked when no online
// one takes it, for QoS above 0 only. e's QoS is that of the message; each member's own maximum is applied here.
func (s *share) offer(e Entry, try func(target, Entry) bool) bool {
	e.share, e.shared = s, true
	for _, turn := range [4]struct{ online, polite bool }{{true, true}, {false, true}, {true, false}, {false, false}} {
		if e.QoS == 0 && (!turn.online || !turn.polite) {
			continue // for QoS 0 nobody drops anything else, and nobody keeps it who is away
		}
		tried := 0
		for m := s.pick(turn.online, &tried); m.target != nil; m = s.pick(turn.online, &tried) {
			c := e
			c.polite = turn.polite
			c.QoS = min(e.QoS, m.sub.QoS)
			if c.QoS == 0 && !turn.polite {
				continue // this member was asked
			}
			c.Retain = e.Retain && m.sub.RetainAsPublished
			c.IDs = m.sub.ids
			if try(m.target, c) {
				return true
			}
		}
	}
	return false
}

// pick returns the next member that is online (or not, as asked), nobody when there is none among those not yet tried.
// tried counts the members looked at.
func (s *share) pick(online bool, tried *int) match {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.members)
	for *tried < n {
		*tried++
		s.next = (s.next + 1) % n
		if m := s.members[s.next]; m.target.online() == online {
			return m
		}
	}
	return match{}
}
