package session

import (
	"time"

	"tidegate/message"
)

// Subscription is one topic filter with its options. It is never changed once given to a Session.
type Subscription struct {
	// Filter is a valid topic filter, with its $share prefix for a shared subscription.
	Filter string
	QoS    message.QoS
	// NoLocal: not for what the client itself published [MQTT-3.8.3-3].
	NoLocal bool
	// RetainAsPublished keeps the retain flag of what is sent [MQTT-3.3.1-13].
	RetainAsPublished bool
	// RetainHandling says when retained messages are sent on SUBSCRIBE: 0 always, 1 when the subscription is new, 2 never.
	RetainHandling byte
	// ID is the subscription identifier; 0: none.
	ID uint32

	ids   []uint32
	fresh bool // it replaced none
	// denied says that the rules allow it no more, since the gateway was started: it is kept and brings nothing.
	denied bool
}

// Subscribe adds or replaces subscriptions, queues the retained messages they ask for, and writes ack (the SUBACK) to conn.
// A publisher that learnt of the SUBACK therefore reaches them, a retained message never overtakes a newer one, no message
// comes both as a retained one and as a new one, and nothing that the subscriptions bring arrives before the SUBACK. Nil entries of subs were refused.
//
// Where the session is kept, the SUBACK waits for the disk.
func (s *Session) Subscribe(conn Conn, subs []*Subscription, ack []byte) {
	add := func(b []byte) []byte {
		for _, sub := range subs {
			if sub != nil {
				b = appendSubscription(append(b, changeSubscribe), sub)
			}
		}
		return b
	}
	for {
		ok, err := s.subscribeNow(conn, subs, ack, add)
		if ok && s.j != nil {
			s.Ticket().Done(s.answered)
		}
		if err == nil || !s.awaitRoom(conn, err) {
			return
		}
	}
}

// subscribeNow makes one attempt at Subscribe.
func (s *Session) subscribeNow(conn Conn, subs []*Subscription, ack []byte, add func(b []byte) []byte) (ok bool, err error) {
	// What is published from here on either is retained before the subscriptions are there, or reaches them: never both.
	release := s.m.holdRetained()
	defer release()
	if s.j != nil {
		s.m.order.Lock() // retained messages are stored for the session
		defer s.m.order.Unlock()
	}
	return s.tryChange(conn, add, func() {
		s.subscribe(subs)
		if s.j != nil {
			// Nothing of the queue is sent before the answer.
			s.queueAnswer(answer{pos: s.j.pos, conn: conn, packet: ack, suback: true})
			s.queueStored(subs)
			return
		}
		for _, sub := range subs {
			s.queueRetained(sub)
		}
		release()
		_, _ = conn.Write(ack) // nothing of the queue is sent before it: that takes mu; a broken connection is found by its reader
	})
}

// subscribe adds or replaces subscriptions. mu is held.
func (s *Session) subscribe(subs []*Subscription) {
	for _, sub := range subs {
		if sub == nil {
			continue
		}
		if sub.ID > 0 {
			sub.ids = []uint32{sub.ID}
		}
		old, had := s.filters[sub.Filter]
		sub.fresh = !had
		if s.filters[sub.Filter] = sub; !had {
			s.addLevels(levelsOf(sub.Filter))
		}
		if group, _ := splitShared(sub.Filter); (!had || old.denied) && group == "" {
			s.subs.Add(1)
		}
		s.m.tree.add(s, sub)
	}
}

// wantsRetained says whether sub, which may be nil, asks for retained messages: never for a shared subscription (MQTT 5, 4.8.2).
func (sub *Subscription) wantsRetained() bool {
	if sub == nil || sub.RetainHandling == 2 || sub.RetainHandling == 1 && !sub.fresh {
		return false
	}
	group, _ := splitShared(sub.Filter)
	return group == ""
}

// queueRetained queues the retained messages that sub asks for. mu is held.
func (s *Session) queueRetained(sub *Subscription) {
	if !sub.wantsRetained() {
		return
	}
	s.m.retained.match(sub.Filter, time.Now(), func(m *message.Message) {
		if s.may(m.Topic) {
			e := Entry{Msg: m, QoS: min(m.QoS, sub.QoS), Retain: true, IDs: sub.ids, Stored: true}
			if !s.fits(e.Size()) {
				s.m.drop(dropFull, 1)
				return
			}
			s.queue.Append(e)
		}
	})
	s.wake.Signal()
}

// retainedChunk is about how many bytes of retained messages are stored in one step.
const retainedChunk = 256 << 10

// queueStored queues the retained messages that subs ask for, those with QoS above 0 stored for the session. What the store
// does not take at once is in memory only. The Manager's order and mu are held.
func (s *Session) queueStored(subs []*Subscription) {
	var entries []Entry
	for _, sub := range subs {
		if !sub.wantsRetained() {
			continue
		}
		s.m.retained.match(sub.Filter, time.Now(), func(m *message.Message) {
			entries = append(entries, Entry{Msg: m, QoS: min(m.QoS, sub.QoS), Retain: true, IDs: sub.ids, Stored: true})
		})
	}
	for len(entries) > 0 {
		n, size := 0, int64(0)
		for n < len(entries) && size < retainedChunk {
			size += sizeOf(entries[n].Msg)
			n++
		}
		s.queueChunk(entries[:n])
		entries = entries[n:]
	}
}

func (s *Session) queueChunk(entries []Entry) {
	recs := make([]Record, 0, len(entries))
	kept := entries[:0]
	for _, e := range entries {
		switch {
		case !s.may(e.Msg.Topic):
		case !s.fits(e.Size()):
			s.m.drop(dropFull, 1)
		default:
			kept = append(kept, e)
			if e.QoS > 0 {
				b, _ := appendStored(nil, []taking{{s: s, ids: e.IDs, qos: e.QoS, retain: e.Retain}}, e.Msg) // it was stored before
				recs = append(recs, Record{Queue: s.m.store.messages, Data: b, Lifetime: lifetime(e.Msg)})
			}
		}
	}
	if len(recs) > 0 {
		if _, _, err := s.m.store.append(recs...); err != nil {
			clear(recs)
		}
	}
	for _, e := range kept {
		if e.QoS > 0 {
			e.seq, recs = recs[0].Seq, recs[1:]
		}
		if e.seq != 0 {
			s.m.store.last.Store(uint64(e.seq))
			s.m.store.refs.add(e.seq, 1)
			s.j.last = e.seq
		}
		s.queue.Append(e)
	}
	s.wake.Signal()
}

// Unsubscribe removes a subscription and reports whether there was one. The UNSUBACK is to be written by Answer.
func (s *Session) Unsubscribe(conn Conn, filter string) bool {
	s.mu.Lock()
	sub, had := s.filters[filter]
	s.mu.Unlock()
	if !had {
		return false
	}
	return s.change(conn, func(b []byte) []byte { return appendString(append(b, changeUnsubscribe), filter) }, func() { s.forget(filter, sub) })
}
