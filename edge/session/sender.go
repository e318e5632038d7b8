package session

import (
	"encoding/binary"
	"time"

	"tidegate/message"
)

// batchBytes is about how much is encoded before it is handed to the connection.
const batchBytes = 16 << 10

// Send writes to conn what the session has for it, until conn is closed or is no longer the session's connection. It is
// the only one that sends PUBLISH packets; the caller runs it on a goroutine of its own once CONNACK is written.
func (s *Session) Send(conn Conn) {
	for {
		s.restock(conn)
		p, ok := s.m.batches.Get().(*[]byte)
		if !ok {
			fresh := make([]byte, 0, batchBytes+4096)
			p = &fresh
		}
		b, current := s.encode(conn, (*p)[:0])
		s.handOn()
		if len(b) > 0 {
			if err := s.secured(); err != nil {
				conn.Fail(err)
				current = false
			} else if _, err := conn.Write(b); err != nil {
				current = false
			}
		}
		if cap(b) <= 4*batchBytes {
			*p = b
			s.m.batches.Put(p)
		}
		if !current || conn.WaitWritable() != nil || !s.await(conn) {
			return
		}
	}
}

// await blocks until there is something to send and reports whether conn is still the session's connection.
func (s *Session) await(conn Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.link.conn == conn && (!s.ready() || s.silent()) {
		s.wake.Wait()
	}
	return s.link.conn == conn
}

// silent says that a SUBACK waits for the disk, before which nothing is sent. mu is held.
func (s *Session) silent() bool { return s.j != nil && s.j.silent > 0 }

// ready reports whether the next packet may be sent now.
func (s *Session) ready() bool {
	if s.flight.resend < s.flight.ring.len() {
		return s.flight.ring.at(s.flight.resend).state != sent || s.flight.open < s.flight.window
	}
	e := s.queue.Peek()
	return e != nil && (e.QoS == 0 || !s.flight.full() && !s.sated())
}

// encode appends packets to b as far as the window and the size of a batch allow. What was in flight before the
// connection comes first, in its old order [MQTT-4.4.0-1] [MQTT-4.6.0-1].
func (s *Session) encode(conn Conn, b []byte) (_ []byte, current bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.conn != conn {
		return b, false
	}
	now := time.Now()
	exactly := false
	for len(b) < batchBytes && !s.silent() && s.ready() && s.stocked() {
		n := len(b)
		if s.flight.resend < s.flight.ring.len() {
			b = s.again(b, now)
		} else {
			b = s.first(b, now)
		}
		exactly = exactly || len(b) > n && (b[n]&0xf0 == headPubrel&0xf0 || b[n]&0x06 == 4)
	}
	if s.j != nil && len(b) > 0 {
		s.j.moved = true
		s.j.exactly = exactly
	}
	s.account()
	return b, true
}

// again appends the next packet that has to be repeated on a new connection.
func (s *Session) again(b []byte, now time.Time) []byte {
	i := s.flight.resend
	s.flight.resend++
	switch o := s.flight.ring.at(i); o.state {
	case sent:
		e := o.entry
		if !s.load(&e) {
			s.flight.finish(o) // it is on the disk no more
			return b
		}
		if s.withheld(&e) {
			s.flight.finish(o)
			return b
		}
		o.open = true
		s.flight.open++
		n := len(b)
		if b = s.appendEntry(b, &e, s.flight.id(i), true, now); len(b) == n {
			s.done(&o.entry)
			s.flight.finish(o)
		}
	case released:
		return appendPubrel(b, s.flight.id(i))
	}
	return b
}

// first appends the oldest entry of the queue, unless it is not worth sending any more.
func (s *Session) first(b []byte, now time.Time) []byte {
	stale := s.revoked.before > 0
	e := s.pop()
	read := e.Msg == nil
	if !s.load(&e) {
		return b // counted when the store lost it
	}
	if exp := e.Msg.Expires; !exp.IsZero() && !now.Before(exp) {
		if s.done(&e) {
			s.m.drop(dropExpired, 1)
		}
		return b
	}
	if (read || stale) && s.withheld(&e) {
		return b
	}
	if e.QoS == 0 {
		return s.appendEntry(b, &e, 0, false, now)
	}
	n := len(b)
	id := s.flight.add(e)
	if b = s.appendEntry(b, &e, id, e.dup, now); len(b) == n {
		s.done(&e)
		s.flight.finish(s.flight.find(id)) // too large for this client: as if delivered
	}
	return b
}

// appendEntry encodes e for the connection. A packet above the client's Maximum Packet Size is left out and counted
// [MQTT-3.1.2-24].
func (s *Session) appendEntry(b []byte, e *Entry, id uint16, dup bool, now time.Time) []byte {
	p := publish{version: s.link.version, id: id, qos: e.QoS, dup: dup, retain: e.Retain, subs: e.IDs}
	fresh := false
	if s.link.aliasMax > 0 {
		p.alias, p.known = s.link.aliases[e.Msg.Topic], true
		if p.alias == 0 {
			p.known = false
			if fresh = len(s.link.aliases) < int(s.link.aliasMax); fresh {
				p.alias = uint16(len(s.link.aliases) + 1)
			}
		}
	}
	n := len(b)
	b = appendPublish(b, e.Msg, p, now)
	if s.link.maxPacket > 0 && uint32(len(b)-n) > s.link.maxPacket {
		s.m.drop(dropTooLarge, 1)
		return b[:n]
	}
	if fresh {
		s.link.aliases[e.Msg.Topic] = p.alias
	}
	return b
}

// Puback takes the client's PUBACK for a QoS 1 message; a failure code ends the delivery as well [MQTT-4.3.2-2]. Unknown
// identifiers are ignored.
func (s *Session) Puback(conn Conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.flight.find(id); s.link.conn == conn && o != nil && o.entry.QoS == 1 && o.open {
		s.done(&o.entry)
		s.flight.finish(o)
		s.account()
		s.wake.Signal()
	}
}

// Pubrec takes the client's PUBREC for a QoS 2 message. ok false is a failure code, which ends the delivery
// [MQTT-4.3.3-4]. It reports whether a PUBREL has to be sent (known), by Answer — for an identifier that is not in flight a
// version 5 client is told so by the caller.
func (s *Session) Pubrec(conn Conn, id uint16, ok bool) (known bool) {
	s.mu.Lock()
	o := s.flight.find(id)
	if s.link.conn != conn || o == nil || o.entry.QoS != 2 {
		s.mu.Unlock()
		return false
	}
	if !ok {
		s.done(&o.entry)
		s.flight.finish(o)
		s.account()
		s.wake.Signal()
		s.mu.Unlock()
		return false
	}
	if o.state == released {
		s.mu.Unlock()
		return true
	}
	s.mu.Unlock()
	var t message.Ticket
	known = s.change(conn, func(b []byte) []byte { return binary.AppendUvarint(append(b, changePubrec), uint64(id)) }, func() {
		o := s.flight.find(id) // only this goroutine finishes it
		if s.j != nil {
			// The message is needed until it is on disk that the client has it.
			s.queueAnswer(answer{pos: s.j.pos, conn: conn, seq: o.entry.seq})
			t = s.m.store.ticket(s.j.pos)
		}
		s.flight.release(o)
		s.account()
		s.wake.Signal() // there may be room for more
	})
	if s.j != nil && known {
		t.Done(s.answered)
	}
	return known
}

// Pubcomp takes the client's PUBCOMP, the end of a QoS 2 delivery.
func (s *Session) Pubcomp(conn Conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.flight.find(id); s.link.conn == conn && o != nil && o.state == released {
		s.flight.finish(o)
		if s.j != nil {
			s.j.moved = true
		}
		s.wake.Signal()
	}
}
