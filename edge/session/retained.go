package session

import (
	"strings"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// retainedStore keeps the last retained message of each topic, at most limit of them and maxBytes together. What would
// pass a bound is not kept, and neither is what its topic had before, which is outdated; the caller counts it.
type retainedStore struct {
	limit    int
	maxBytes int64

	mu    sync.RWMutex
	root  leaf
	n     int
	bytes int64
	next  time.Time // no message expires before; zero: none ever does
}

// leaf is one level of a topic.
type leaf struct {
	children branches[leaf]
	msg      *message.Message
	seq      buffer.Seq // of its record in the store; 0: there is none
}

// fits reports whether there is room for m.
func (r *retainedStore) fits(m *message.Message) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(m.Payload) == 0 || r.room(m)
}

// has reports whether topic has a message.
func (r *retainedStore) has(topic string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	l := r.get(topic)
	return l != nil && l.msg != nil
}

// levelOverhead is what one level of a topic takes that no other topic shares.
const levelOverhead = 96

// retainedSize returns the bytes of memory that m takes in the store, at most.
func retainedSize(m *message.Message) int64 {
	return sizeOf(m) + levelOverhead*int64(1+strings.Count(m.Topic, "/"))
}

func (r *retainedStore) room(m *message.Message) bool {
	n, bytes := r.n+1, r.bytes+retainedSize(m)
	if had := r.get(m.Topic); had != nil && had.msg != nil {
		n, bytes = r.n, bytes-retainedSize(had.msg)
	}
	return n <= r.limit && bytes <= r.maxBytes
}

// set keeps m, whose record in the store is seq, or forgets the topic's message when m has no payload [MQTT-3.3.1-6]. It
// reports whether there was room, and the record of what the topic had before.
func (r *retainedStore) set(m *message.Message, seq buffer.Seq) (kept bool, old buffer.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(m.Payload) == 0 {
		return true, r.remove(m.Topic)
	}
	if !r.room(m) {
		return false, r.remove(m.Topic)
	}
	n, bytes := r.n+1, r.bytes+retainedSize(m)
	l := &r.root
	for rest, more := m.Topic, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		c := l.children.get(level)
		if c == nil {
			c = &leaf{}
			l.children.set(level, c)
		}
		l = c
	}
	if l.msg != nil {
		n, bytes = r.n, bytes-retainedSize(l.msg)
	}
	old = l.seq
	l.msg, l.seq = m, seq
	r.n, r.bytes = n, bytes
	r.noteExpiry(m)
	return true, old
}

func (r *retainedStore) noteExpiry(m *message.Message) {
	if !m.Expires.IsZero() && (r.next.IsZero() || m.Expires.Before(r.next)) {
		r.next = m.Expires
	}
}

// get returns the leaf of topic, nil when there is none.
func (r *retainedStore) get(topic string) *leaf {
	l := &r.root
	for rest, more := topic, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if l = l.children.get(level); l == nil {
			return nil
		}
	}
	return l
}

// remove forgets the message of topic and the levels that are empty without it, and returns its record in the store.
func (r *retainedStore) remove(topic string) buffer.Seq {
	m, seq := r.root.remove(topic, true)
	if m != nil {
		r.n--
		r.bytes -= retainedSize(m)
	}
	return seq
}

func (l *leaf) remove(rest string, more bool) (found *message.Message, seq buffer.Seq) {
	if !more {
		found, seq = l.msg, l.seq
		l.msg, l.seq = nil, 0
		return found, seq
	}
	level, rest, more := strings.Cut(rest, "/")
	c := l.children.get(level)
	if c == nil {
		return nil, 0
	}
	found, seq = c.remove(rest, more)
	if c.msg == nil && c.children.none() {
		l.children.drop(level)
	}
	return found, seq
}

// match calls yield with every retained message that filter selects and that has not expired.
func (r *retainedStore) match(filter string, now time.Time, yield func(*message.Message)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.root.match(filter, true, true, func(m *message.Message) {
		if m.Expires.IsZero() || now.Before(m.Expires) {
			yield(m)
		}
	})
}

func (l *leaf) match(filter string, more, first bool, yield func(*message.Message)) {
	if !more {
		if l.msg != nil {
			yield(l.msg)
		}
		return
	}
	level, rest, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		if !first && l.msg != nil {
			yield(l.msg) // a/# selects a as well
		}
		for name, c := range l.children.each() {
			if !first || !strings.HasPrefix(name, "$") { // [MQTT-4.7.2-1]
				c.match("#", true, false, yield)
			}
		}
	case "+":
		for name, c := range l.children.each() {
			if !first || !strings.HasPrefix(name, "$") {
				c.matchRest(rest, more, yield)
			}
		}
	default:
		if c := l.children.get(level); c != nil {
			c.matchRest(rest, more, yield)
		}
	}
}

func (l *leaf) matchRest(rest string, more bool, yield func(*message.Message)) {
	l.match(rest, more, false, yield)
}

// sweep forgets messages whose expiry interval has passed [MQTT-3.3.2-5], and returns their records in the store.
func (r *retainedStore) sweep(now time.Time) (seqs []buffer.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next.IsZero() || now.Before(r.next) {
		return nil
	}
	var gone []string
	r.next = time.Time{}
	r.root.match("#", true, false, func(m *message.Message) {
		if !m.Expires.IsZero() && !now.Before(m.Expires) {
			gone = append(gone, m.Topic)
			return
		}
		r.noteExpiry(m)
	})
	for _, topic := range gone {
		if seq := r.remove(topic); seq != 0 {
			seqs = append(seqs, seq)
		}
	}
	return seqs
}

func (r *retainedStore) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.n
}
