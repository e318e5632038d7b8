package external

import (
	"slices"
	"sync"
	"time"

	"tidegate/message"
)

// outgoing is a message for the broker.
type outgoing struct {
	m     message.Message
	size  int64
	done  func(error) // told once what became of it; nil: nobody waits, and it is sent again after a lost connection
	told  bool        // a state: repeated from outbox.told on every connection
	id    uint16      // packet identifier; 0: not sent, or QoS 0
	again bool        // it was sent before in this session
}

// lastID is the largest packet identifier of a message; those above belong to subscriptions.
const lastID = 60000

// outbox holds what goes to the broker, across connections: what waits, what is in flight, and the states that every
// connection begins with. Commands and states leave before what bridges publish.
type outbox struct {
	limit   int64         // bytes of what waits
	changed chan struct{} // capacity 1: send may look again
	// settled counts what became of messages. It is called without mu.
	settled func(o *outgoing, err error)

	mu      sync.Mutex
	linked  bool // there is a connection
	over    bool // Run has ended
	urgent  []*outgoing
	waiting []*outgoing
	bytes   int64 // of waiting
	flight  []*outgoing
	since   time.Time // when flight[0] became the oldest
	nextID  uint16
	told    map[string]message.Message
}

func newOutbox(limit int64, settled func(*outgoing, error)) *outbox {
	return &outbox{limit: limit, settled: settled, changed: make(chan struct{}, 1), told: map[string]message.Message{}}
}

// more wakes up send.
func (q *outbox) more() { signal(q.changed) }

// forward queues a message of a bridge, and drops the oldest ones where there is no room. QoS 0 is not kept for a broker that
// is away.
func (q *outbox) forward(m message.Message) {
	o := &outgoing{m: m, size: sizeOf(&m)}
	var dropped []*outgoing
	q.mu.Lock()
	if q.over || !q.linked && m.QoS == 0 {
		dropped = append(dropped, o)
	} else {
		q.waiting = append(q.waiting, o)
		q.bytes += o.size
		for q.bytes > q.limit {
			oldest := q.waiting[0]
			q.waiting[0], q.waiting = nil, q.waiting[1:]
			q.bytes -= oldest.size
			dropped = append(dropped, oldest)
		}
	}
	q.mu.Unlock()
	for _, d := range dropped {
		q.settled(d, errDropped)
	}
	q.more()
}

// sizeOf is about what a message takes in memory.
func sizeOf(m *message.Message) int64 {
	n := 256 + len(m.Topic) + len(m.Payload) + len(m.ContentType) + len(m.ResponseTopic) + len(m.CorrelationData)
	for _, p := range m.Properties {
		n += 32 + len(p.Key) + len(p.Value)
	}
	return int64(n)
}

// deliver queues a message in front of those of bridges; done is told what became of it. False: there is no connection, and
// done is not called.
func (q *outbox) deliver(m message.Message, done func(error)) (*outgoing, bool) {
	o := &outgoing{m: m, done: done}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over || !q.linked {
		return nil, false
	}
	q.urgent = append(q.urgent, o)
	q.more()
	return o, true
}

// cancel takes o back where it was not sent.
func (q *outbox) cancel(o *outgoing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.urgent, o); i >= 0 {
		q.urgent = slices.Delete(q.urgent, i, i+1)
	}
}

// tell keeps a state, which is sent now if there is a connection, and again on every one to come.
func (q *outbox) tell(m message.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told[m.Topic] = m
	if q.linked && !q.over {
		q.urgent = append(q.urgent, &outgoing{m: m, told: true})
		q.more()
	}
}

// begin is the start of a connection: what was in flight is sent again, with its packet identifier where the broker has the
// session still [MQTT-4.4.0-1], then the states.
func (q *outbox) begin(present bool) (again []*outgoing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.linked, q.since = true, time.Now()
	for _, o := range q.flight {
		o.again = present
	}
	q.urgent = q.urgent[:0]
	topics := make([]string, 0, len(q.told))
	for t := range q.told {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	for _, t := range topics {
		q.urgent = append(q.urgent, &outgoing{m: q.told[t], told: true})
	}
	return slices.Clone(q.flight)
}

// next gives out a message for which there is room in the window, with a packet identifier; nil when there is none.
func (q *outbox) next(window int) *outgoing {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.linked || len(q.flight) >= window {
		return nil
	}
	var o *outgoing
	switch {
	case len(q.urgent) > 0:
		o, q.urgent[0], q.urgent = q.urgent[0], nil, q.urgent[1:]
	case len(q.waiting) > 0:
		o, q.waiting[0], q.waiting = q.waiting[0], nil, q.waiting[1:]
		q.bytes -= o.size
	default:
		return nil
	}
	if o.m.QoS > 0 {
		o.id = q.freeID()
		if len(q.flight) == 0 {
			q.since = time.Now()
		}
		q.flight = append(q.flight, o)
	}
	return o
}

// freeID returns the next identifier that nothing in flight has; the window is far smaller than their number.
func (q *outbox) freeID() uint16 {
	for {
		if q.nextID >= lastID {
			q.nextID = 0
		}
		q.nextID++
		if !slices.ContainsFunc(q.flight, func(o *outgoing) bool { return o.id == q.nextID }) {
			return q.nextID
		}
	}
}

// acked completes the message in flight under id. One that is not is a stray and changes nothing.
func (q *outbox) acked(id uint16, code byte) {
	q.mu.Lock()
	i := slices.IndexFunc(q.flight, func(o *outgoing) bool { return o.id == id })
	if i < 0 {
		q.mu.Unlock()
		return
	}
	o := q.flight[i]
	q.flight = slices.Delete(q.flight, i, i+1)
	if i == 0 {
		q.since = time.Now()
	}
	q.mu.Unlock()
	q.more()
	q.finish(o, answerError(code))
}

// unsent completes a message that cannot be sent.
func (q *outbox) unsent(o *outgoing, err error) {
	q.mu.Lock()
	if i := slices.Index(q.flight, o); i >= 0 {
		q.flight = slices.Delete(q.flight, i, i+1)
	}
	q.mu.Unlock()
	q.finish(o, err)
}

func (q *outbox) finish(o *outgoing, err error) {
	q.settled(o, err)
	if o.done != nil {
		o.done(err)
	}
}

// overdue reports whether the oldest message in flight has had no answer for that long.
func (q *outbox) overdue(limit time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.flight) > 0 && time.Since(q.since) >= limit
}

// lost is the end of a connection. What somebody waits for is given back; the rest in flight is sent again.
func (q *outbox) lost() {
	q.mu.Lock()
	q.linked = false
	var back []*outgoing
	keep := q.flight[:0]
	for _, o := range q.flight {
		if o.done == nil && !o.told {
			keep = append(keep, o)
		} else if o.done != nil {
			back = append(back, o)
		}
	}
	clear(q.flight[len(keep):])
	q.flight = keep
	for _, o := range q.urgent {
		if o.done != nil {
			back = append(back, o)
		}
	}
	q.urgent = nil
	q.mu.Unlock()
	for _, o := range back {
		q.finish(o, errAway)
	}
}

// end drops what waits when no connection will come any more.
func (q *outbox) end() {
	q.mu.Lock()
	q.over = true
	left := append(q.flight, q.waiting...)
	q.flight, q.waiting, q.bytes = nil, nil, 0
	q.mu.Unlock()
	for _, o := range left {
		q.settled(o, errDropped)
	}
}

// pending is how many messages of bridges wait or are in flight.
func (q *outbox) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) + len(q.flight)
}
