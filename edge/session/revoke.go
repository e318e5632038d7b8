package session

// revocation is what a change of the rules leaves to be done when the queue is read.
type revocation struct {
	// before is how many entries of the queue, from the oldest on, were queued under earlier rules.
	before int
	// strays are messages of shared subscriptions that this client may not have any more, for other members.
	strays []Entry
}

// passed notes that the oldest entry has left the queue.
func (r *revocation) passed() {
	if r.before > 0 {
		r.before--
	}
}

// User returns who the client is.
func (s *Session) User() string { return s.user }

// All returns every session, in no order.
func (m *Manager) All() []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Session, 0, len(m.sessions))
	for _, s := range m.sessions {
		all = append(all, s)
	}
	return all
}

// Revoke ends the subscriptions whose filter is not allowed any more and returns these filters. What waits for the client is
// asked about again, topic by topic, when its turn comes. Later messages are asked about anyway.
func (s *Session) Revoke(allowed func(filter string) bool) (lost []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.revoked.before = s.queue.Len()
	for filter, sub := range s.filters {
		if allowed(filter) || sub.denied {
			continue
		}
		if s.j != nil && s.write(appendString(append(s.changes(), changeUnsubscribe), filter)) != nil {
			s.j.stale = true // the next snapshot says it
		}
		s.forget(filter, sub)
		lost = append(lost, filter)
	}
	return lost
}

// forget removes a subscription that is there. The caller holds mu.
func (s *Session) forget(filter string, sub *Subscription) {
	delete(s.filters, filter)
	s.addLevels(-levelsOf(filter))
	if group, _ := splitShared(filter); group == "" && !sub.denied {
		s.subs.Add(-1)
	}
	s.m.tree.remove(s, filter)
}

// withheld reports whether the rules do not let the client have e any more, and keeps one that others may have. The caller
// holds mu.
func (s *Session) withheld(e *Entry) bool {
	if s.may(e.Msg.Topic) {
		return false
	}
	switch {
	case e.share != nil && e.QoS > 0:
		s.revoked.strays = append(s.revoked.strays, *e)
	case s.done(e):
		s.m.drop(dropDenied, 1)
	}
	return true
}

// handOn gives what withheld kept to other members of its group. The caller holds no lock.
func (s *Session) handOn() {
	s.mu.Lock()
	strays := s.revoked.strays
	s.revoked.strays = nil
	s.mu.Unlock()
	lost := 0
	for i := range strays {
		e := &strays[i]
		taken := s.m.reroute(e.share, *e)
		s.mu.Lock()
		if s.done(e) && !taken {
			lost++
		}
		s.mu.Unlock()
	}
	s.m.drop(dropDenied, lost)
}
