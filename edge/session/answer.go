package session

import (
	"cmp"

	"tidegate/buffer"
)

// answer is a packet that is written when pos is on disk, or a message that is released then.
type answer struct {
	pos    buffer.Pos
	conn   Conn
	packet []byte
	suback bool
	seq    buffer.Seq
}

// Answer writes packet to conn when everything that was written of the session before is on disk, in the order of the calls.
func (s *Session) Answer(conn Conn, packet []byte) {
	s.mu.Lock()
	if s.j == nil || len(s.j.answers) == 0 && s.m.store.log.Durable(s.j.pos) {
		_, _ = conn.Write(packet) // a broken connection is found by its reader
		s.mu.Unlock()
		return
	}
	s.queueAnswer(answer{pos: s.j.pos, conn: conn, packet: packet})
	t := s.m.store.ticket(s.j.pos)
	s.mu.Unlock()
	t.Done(s.answered)
}

// queueAnswer queues a. mu is held; somebody must call answered when a.pos is on disk.
func (s *Session) queueAnswer(a answer) {
	if a.suback {
		s.j.silent++
	}
	s.j.answers = append(s.j.answers, a)
}

// answered writes the answers that are due.
func (s *Session) answered(err error) {
	s.mu.Lock()
	var failed Conn
	var cause error
	for len(s.j.answers) > 0 {
		a := s.j.answers[0]
		settled, lost := s.m.store.log.Settled(a.pos)
		if !settled && err == nil {
			break
		}
		if !settled || lost != nil {
			// What the disk has failed to take stands in memory only.
			s.j.stale, failed, cause = true, a.conn, cmp.Or(lost, err)
			a.packet = nil
		}
		s.j.answers = s.j.answers[1:]
		if a.suback {
			s.j.silent--
		}
		if a.packet != nil && a.conn == s.link.conn {
			_, _ = a.conn.Write(a.packet)
		}
		if a.seq != 0 {
			s.m.store.release(a.seq)
		}
	}
	if len(s.j.answers) == 0 {
		s.j.answers = nil
	}
	s.wake.Broadcast()
	s.mu.Unlock()
	if failed != nil {
		failed.Fail(cause)
	}
}
