package session

// What waits in memory is bounded for all sessions together, as a client may have very many connections and take nothing by any. It is
// QoS 0, and everything of sessions that are not stored, what they were sent and have not acknowledged included.

const (
	// leastShare is what a session may have in memory whatever others have.
	leastShare = 32 << 10
	// countStep is how exact a session is counted.
	countStep = 16 << 10
)

// inMemory returns the bytes that the session has in memory. mu is held.
func (s *Session) inMemory() int64 {
	if s.j != nil {
		return s.now
	}
	return s.queue.Bytes() + s.flight.bytes
}

// account counts what the session has in memory. mu is held.
func (s *Session) account() {
	now := s.inMemory()
	if d := now - s.counted; d >= countStep || d <= -countStep || now == 0 && d != 0 {
		s.counted = now
		s.m.memory.Add(d)
	}
}

// greedy reports whether the session may not have size more bytes, as all together have too much and it has its share. One that has
// nothing gets a message of any size as long as there is a quarter more. mu is held.
func (s *Session) greedy(size int64) bool {
	all, most, own := s.m.memory.Load(), s.m.o.MemoryBytes, s.inMemory()
	return all > most && own+size > leastShare && (own > 0 || all > most+most/4)
}

// displace drops the oldest that wait until size bytes are free, where the session may not have more. It reports whether they are.
// mu is held.
func (s *Session) displace(size int64) bool {
	if s.j != nil || !s.greedy(size) {
		return true
	}
	for free := int64(0); free < size; {
		if s.queue.Len() == 0 {
			return false
		}
		e := s.pop()
		free += e.Size()
		s.done(&e)
		s.m.drop(dropFull, 1)
	}
	return true
}

// sated reports whether the session, which is not stored, has to wait for acknowledgements before more is in flight. mu is held.
func (s *Session) sated() bool { return s.j == nil && s.flight.bytes > leastShare && s.greedy(0) }
