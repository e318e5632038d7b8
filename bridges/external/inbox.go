package external

import "sync"

// overflowBytes is what may wait where a broker sends more than the Receive Maximum allows: the answer to the subscription may
// lie behind it.
const overflowBytes = 16 << 20

// inbox holds what the broker sent and nobody has looked at.
type inbox struct {
	limit int           // messages that may wait whatever their size
	ready chan struct{} // capacity 1: there is something
	room  chan struct{} // capacity 1: something was taken out

	mu    sync.Mutex
	list  []arrival
	bytes int64
}

func newInbox(limit int) *inbox {
	return &inbox{limit: limit, ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// push adds a; false: there is no room.
func (q *inbox) push(a arrival) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) >= q.limit && (a.id == 0 || q.bytes >= overflowBytes) {
		return false
	}
	q.list = append(q.list, a)
	q.bytes += sizeOf(&a.m)
	signal(q.ready)
	return true
}

// pop takes the oldest out; false: there is none.
func (q *inbox) pop() (arrival, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		q.list = nil
		return arrival{}, false
	}
	a := q.list[0]
	q.list[0], q.list = arrival{}, q.list[1:]
	q.bytes -= sizeOf(&a.m)
	signal(q.room)
	return a, true
}
