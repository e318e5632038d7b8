package session

import (
	"hash/maphash"

	"tidegate/buffer"
	"tidegate/message"
)

// retain keeps msg, or forgets its topic's when it has no payload. seq is its record in the store, appended at pos; 0: it
// could not be stored. The lock of the topic is held.
func (m *Manager) retain(msg *message.Message, seq buffer.Seq, pos buffer.Pos) {
	room, old := m.retained.set(msg, seq)
	if !room {
		m.drop(dropRetained, 1)
	}
	if m.store != nil && kept(msg) {
		m.retainedStored(msg.Topic, room && len(msg.Payload) > 0, seq, old, pos)
	}
}

// kept says whether a retained message is kept over a restart. What the gateway says of itself is not: it says it anew.
func kept(msg *message.Message) bool { return msg.Source.Protocol != message.Self }

// retainedStored follows when what the topic has is on its way to the disk as seq: what it had is needed no more then. A record
// that says that the topic has nothing goes with it.
func (m *Manager) retainedStored(topic string, something bool, seq, old buffer.Seq, pos buffer.Pos) {
	m.mu.Lock()
	late := m.unkept[topic]
	delete(m.unkept, topic)
	if old != 0 {
		late = append(late, old)
	}
	m.mu.Unlock()
	if seq == 0 && (something || len(late) > 0) {
		m.unkeep(topic, late...) // the next Flush tries again
		late = nil
	}
	if seq != 0 && !something {
		late = append(late, seq)
	}
	if len(late) > 0 {
		m.store.later(retainedTopic{m, topic}, m.store.retained, pos, late...)
	}
}

// retainedTopic is a topic with records of which one is enough.
type retainedTopic struct {
	m     *Manager
	topic string
}

// regain takes records back that another was to replace which is not on disk: the next Flush writes what the topic has.
func (t retainedTopic) regain(seqs []buffer.Seq) { t.m.unkeep(t.topic, seqs...) }

// unkeep has the next Flush write what topic has, in the place of seqs.
func (m *Manager) unkeep(topic string, seqs ...buffer.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unkept == nil {
		m.unkept = make(map[string][]buffer.Seq)
	}
	m.unkept[topic] = append(m.unkept[topic], seqs...)
}

// unretain gives up the records of retained messages that have expired.
func (m *Manager) unretain(seqs []buffer.Seq) {
	if m.store != nil && len(seqs) > 0 {
		m.store.retained.Ack(seqs...)
	}
}

// owes reports whether the disk has records of topic that are outdated, for all that is known in memory. What is stored for the topic next
// takes their place.
func (m *Manager) owes(topic string) bool {
	m.giveBack()
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.unkept[topic]) > 0
}

// flushRetained stores what could not be stored when it was retained, or is lost from the disk.
func (m *Manager) flushRetained(lost []buffer.Seq) {
	for topic, seq := range m.retained.where(lost) {
		m.unkeep(topic, seq)
	}
	m.mu.Lock()
	topics := make([]string, 0, len(m.unkept))
	for topic := range m.unkept {
		topics = append(topics, topic)
	}
	m.mu.Unlock()
	for _, topic := range topics {
		if !m.storeRetained(topic) {
			return
		}
	}
}

// storeRetained appends what topic has now.
func (m *Manager) storeRetained(topic string) bool {
	mu := &m.retaining[maphash.String(m.seed, topic)%uint64(len(m.retaining))]
	mu.Lock()
	defer mu.Unlock()
	msg := m.retained.message(topic)
	something := msg != nil
	if !something {
		msg = &message.Message{Topic: topic}
	}
	b, err := appendRetained(nil, msg)
	if err != nil {
		return true
	}
	recs := []Record{{Queue: m.store.retained, Data: b, Lifetime: lifetime(msg)}}
	_, pos, err := m.store.append(recs...)
	if err != nil {
		return false
	}
	var old buffer.Seq
	if something {
		_, old = m.retained.set(msg, recs[0].Seq)
	}
	m.retainedStored(topic, something, recs[0].Seq, old, pos)
	return true
}

// gone says that the topic of m has no retained message.
func gone(m *message.Message) *message.Message { return &message.Message{Topic: m.Topic} }

// message returns what topic has; nil: nothing.
func (r *retainedStore) message(topic string) *message.Message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if l := r.get(topic); l != nil {
		return l.msg
	}
	return nil
}

// where returns the topics whose messages have one of the records seqs.
func (r *retainedStore) where(seqs []buffer.Seq) map[string]buffer.Seq {
	if len(seqs) == 0 {
		return nil
	}
	wanted := make(map[buffer.Seq]bool, len(seqs))
	for _, s := range seqs {
		wanted[s] = true
	}
	out := make(map[string]buffer.Seq)
	r.mu.RLock()
	defer r.mu.RUnlock()
	var walk func(l *leaf)
	walk = func(l *leaf) {
		if l.msg != nil && wanted[l.seq] {
			out[l.msg.Topic] = l.seq
		}
		for _, c := range l.children.each() {
			walk(c)
		}
	}
	walk(&r.root)
	return out
}
