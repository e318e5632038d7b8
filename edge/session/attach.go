package session

import "time"

// Connect is what a CONNECT packet says that matters here.
type Connect struct {
	Conn   Conn
	Client string
	// User is who the client is. A session belongs to a client identifier and a user: another user with the same
	// identifier gets a new one, and nothing that waited in the old one.
	User    string
	Version byte // 4 or 5
	// Clean asks for a new session (clean start; clean session before version 5).
	Clean bool
	// Expiry is how long the session lives without a connection; 0: it ends with the connection.
	Expiry time.Duration
	// ReceiveMaximum bounds unacknowledged QoS 1 and 2 messages to the client; 0: the client set none.
	ReceiveMaximum uint16
	// MaxPacket bounds the packets sent to the client, in bytes; 0: the client set none.
	MaxPacket uint32
	// TopicAliasMaximum is how many topic aliases the client takes.
	TopicAliasMaximum uint16
	// Allow says whether the client may be sent messages of a topic. It must not block.
	Allow func(topic string) bool
	// Will is the client's will, to be kept with the session; nil: it has none.
	Will *Will
	// TakeOver ends the connection that has the session. Attach calls it before it waits for the packet which that
	// connection has in hand, so that a packet which waits for something gives up. nil: nobody is told.
	TakeOver func(previous Conn)
}

// maxAliases bounds the topic aliases used towards one client, whatever it allows.
const maxAliases = 256

// Attach gives the connection its session: a new one, or the one kept for the client identifier (present). The
// connection that had it, if any, is ended by c.TakeOver and returned: its packets count no more. Sending starts with
// Session.Send.
//
// A session that is to be kept is on its way to the disk then; Session.Secure waits for it.
func (m *Manager) Attach(c Connect) (s *Session, present bool, previous Conn) {
	defer m.finish()
	s = m.lockFor(c)
	defer m.mu.Unlock()
	if s != nil {
		defer s.in.Unlock()
		over := s.over(time.Now())
		previous = s.detachNow()
		over = over || s.over(time.Now()) // one that ends with its connection
		if over || c.Clean || s.user != c.User {
			m.end(s, dropEnded)
			s = nil
		}
	}
	present = s != nil
	if s == nil {
		m.makeRoom(c.User)
		s = newSession(m, c.Client, c.User, c.Expiry > 0)
		m.sessions[c.Client] = s
	}
	m.present(s)
	s.attach(c)
	return s, present, previous
}

// makeRoom ends sessions without connection, those that left first, until there is room for one more, of user. Who has a quarter of all
// makes room for itself: nobody pushes out the sessions of others by making many. The caller holds mu.
func (m *Manager) makeRoom(user string) {
	for m.o.MaxSessions > 0 && len(m.sessions) >= m.o.MaxSessions && m.away.Len() > 0 {
		s := m.firstAway(user)
		m.end(s, dropEvicted)
		if m.o.Evicted != nil {
			m.o.Evicted(s.id)
		}
	}
}

// firstAway returns the session that has been without a connection for longest: of user, where that has a quarter of all and one
// without a connection; else of anybody. There is one. The caller holds mu.
func (m *Manager) firstAway(user string) *Session {
	own := 0
	for _, s := range m.sessions {
		if s.user == user {
			own++
		}
	}
	var first *Session
	for e := m.away.Front(); e != nil; e = e.Next() {
		s, _ := e.Value.(*Session)
		if first == nil {
			first = s
		}
		if own < len(m.sessions)/4 {
			break
		}
		if s.user == user {
			return s
		}
	}
	return first
}

// present takes s from the list of those without connection. The caller holds mu.
func (m *Manager) present(s *Session) {
	if s.place != nil {
		m.away.Remove(s.place)
		s.place = nil
	}
}

// lockFor returns the session of c's client, nil when there is none, with the Manager's mu and the session's in locked.
// Nobody else has to wait while it waits for the packet that the old connection has in hand.
func (m *Manager) lockFor(c Connect) *Session {
	for {
		m.mu.Lock()
		s := m.sessions[c.Client]
		if s == nil {
			return nil
		}
		m.mu.Unlock()
		if old := s.conn(); old != nil && c.TakeOver != nil {
			c.TakeOver(old)
		}
		s.in.Lock()
		m.mu.Lock()
		if m.sessions[c.Client] == s {
			return s
		}
		m.mu.Unlock()
		s.in.Unlock()
	}
}

// Conn returns the connection of a client; nil when it has none.
func (m *Manager) Conn(client string) Conn {
	m.mu.Lock()
	s := m.sessions[client]
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.conn()
}

// conn returns the session's connection; nil while it has none.
func (s *Session) conn() Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link.conn
}

func (s *Session) attach(c Connect) {
	window := maxWindow
	if c.ReceiveMaximum > 0 {
		window = min(window, int(c.ReceiveMaximum))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flight.restart(window)
	s.link = link{
		conn: c.Conn, version: c.Version, maxPacket: c.MaxPacket,
		aliasMax: min(c.TopicAliasMaximum, maxAliases),
	}
	s.allow.Store(&c.Allow)
	s.m.RulesChanged() // it may be another user
	if s.link.aliasMax > 0 {
		s.link.aliases = make(map[string]uint16)
	}
	s.expiry, s.expires = c.Expiry, time.Time{}
	s.live.Store(true)
	if s.j == nil {
		return
	}
	if q, ok := s.queue.(*storedQueue); ok {
		q.leave()
		q.hold = true
	}
	s.j.will = c.Will
	if s.j.stale {
		return // Secure, or Flush, writes all of it
	}
	b := appendDuration(append(s.changes(), changeAttach), c.Expiry)
	if s.write(appendWill(b, c.Will)) != nil {
		s.j.stale = true
	}
}

// detachNow takes the connection away from the session and returns it. The rules of the last connection stay, for what
// is queued meanwhile.
func (s *Session) detachNow() Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.link.conn
	s.link.conn = nil
	s.live.Store(false)
	s.expires = time.Now().Add(s.expiry)
	if s.j != nil && conn != nil {
		s.rest()
	}
	s.wake.Broadcast()
	return conn
}

// rest gives back the memory that only a connected client needs. mu is held.
func (s *Session) rest() {
	s.j.left = time.Now()
	s.stock = nil
	if q, ok := s.queue.(*storedQueue); ok {
		q.strip()
	}
}

func (s *Session) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link.conn == nil && !now.Before(s.expires)
}

// SetExpiry changes how long the session lives without a connection, as a DISCONNECT may.
func (s *Session) SetExpiry(conn Conn, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.conn == conn {
		s.expiry = d
	}
}

// Detach ends the connection of s. The session ends as well when its expiry is 0. It reports whether conn was the
// session's connection still, and whether the session lives on, with another connection or without one.
// Where it lives on, Session.Left is to follow.
func (m *Manager) Detach(s *Session, conn Conn) (current, lives bool) {
	defer m.finish()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.mu.Lock()
	current, lives = s.link.conn == conn && !s.ended, !s.ended
	s.mu.Unlock()
	if !current {
		return false, lives
	}
	s.detachNow()
	if s.over(time.Now()) {
		m.end(s, dropEnded)
		return true, false
	}
	s.place = m.away.PushBack(s)
	return true, true
}
