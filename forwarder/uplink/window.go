package uplink

import "time"

const (
	// autoWindow is the most messages in flight where max_in_flight is "auto": enough for 40 000 messages a second
	// over a line with a round trip of 200 ms.
	autoWindow = 8192
	// autoWindow311 is the same on MQTT 3.1.1, where a broker cannot say what it grants: 5000 messages a second at
	// 200 ms, and little enough that a resend after a lost connection stays short.
	autoWindow311 = 1000
	// maxWindow is the most that can be configured; packet identifiers end at 65535.
	maxWindow = 32000
	// exactlyOnceWindow is the most QoS 2 messages in flight. Their identifiers are 1 to this number on every
	// connection, so that on a resumed session all that an earlier connection can have left at the broker is released
	// with as many PUBRELs. Brokers that bound unreleased messages on MQTT 5 start at 10 and say so.
	exactlyOnceWindow = 100
	// exactlyOnceWindow311 is the same on MQTT 3.1.1, where a broker cannot say its bound and cannot refuse either:
	// mosquitto answers a message above max_inflight_messages (20 unless told otherwise) with a PUBREC that means
	// "refused" on MQTT 5 and nothing at all on 3.1.1, and drops it. The smallest default found is HiveMQ's 10.
	exactlyOnceWindow311 = 10
	// subscribeID is the packet identifier of the one SUBSCRIBE of a connection; no PUBLISH has it.
	subscribeID = 65535
)

// slot is one message in flight.
type slot struct {
	id       uint16 // packet identifier, 0: the slot is free
	qos      byte
	released bool // QoS 2: PUBREC came and PUBREL was sent
	done     func(error)
	// prev and next link the busy slots in the order of sending; slot number + 1, 0: none.
	prev, next int32
}

// window holds the messages in flight of one connection, found by packet identifier and linked in the order of sending.
// Identifiers go round through their whole range, so that one is used again as late as possible: a stray second
// acknowledgement then finds nobody. It is not safe for concurrent use.
type window struct {
	slots      []slot // a power of two, at least twice limit; an identifier lives at identifier modulo length
	limit      int
	busy       int
	head, tail int32 // oldest and newest busy slot + 1, 0: none
	headSince  time.Time
	exactly    uint16 // QoS 2 messages take the identifiers 1 to exactly
	busyExact  uint16 // and that many are in flight
	last       uint16 // the identifier given last for QoS 1
	lastExact  uint16 // and for QoS 2
}

// newWindow makes a window for limit messages, at most exactly of them with QoS 2.
func newWindow(limit, exactly int) *window {
	limit = min(max(limit, 1), maxWindow)
	n := 64
	for n < 2*limit {
		n *= 2
	}
	w := &window{slots: make([]slot, n), limit: limit, exactly: uint16(min(limit, exactly, exactlyOnceWindow))}
	w.last = exactlyOnceWindow
	return w
}

// take finds a free packet identifier for a message; false when the window is full.
func (w *window) take(qos byte, done func(error)) (uint16, bool) {
	if w.busy >= w.limit || qos == 2 && w.busyExact >= w.exactly {
		return 0, false
	}
	id, ok := w.free(qos)
	if !ok {
		return 0, false
	}
	i := w.index(id)
	w.slots[i] = slot{id: id, qos: qos, done: done, prev: w.tail}
	if w.tail != 0 {
		w.slots[w.tail-1].next = i + 1
	} else {
		w.head, w.headSince = i+1, time.Now()
	}
	w.tail = i + 1
	w.busy++
	if qos == 2 {
		w.busyExact++
	}
	return id, true
}

// free returns the next identifier of the range for qos whose slot is free.
func (w *window) free(qos byte) (uint16, bool) {
	from, to, last, tries := uint16(exactlyOnceWindow), uint16(subscribeID-1), &w.last, 2*len(w.slots)
	if qos == 2 {
		from, to, last, tries = 0, w.exactly, &w.lastExact, int(w.exactly)
	}
	for range tries {
		if *last >= to {
			*last = from
		}
		*last++
		if w.slots[w.index(*last)].id == 0 {
			return *last, true
		}
	}
	return 0, false
}

// find returns the message in flight under id, nil if there is none.
func (w *window) find(id uint16) *slot {
	if s := &w.slots[w.index(id)]; s.id == id && id != 0 {
		return s
	}
	return nil
}

// release frees the slot and returns its done. now is the time of the acknowledgement.
func (w *window) release(s *slot, now time.Time) func(error) {
	done := s.done
	if s.prev != 0 {
		w.slots[s.prev-1].next = s.next
	} else {
		w.head, w.headSince = s.next, now
	}
	if s.next != 0 {
		w.slots[s.next-1].prev = s.prev
	} else {
		w.tail = s.prev
	}
	if s.qos == 2 {
		w.busyExact--
	}
	*s = slot{}
	w.busy--
	return done
}

// oldest says since when the oldest message in flight has been the oldest; false when nothing is in flight. Counting from
// there and not from its sending keeps a slow line, on which a full window takes longer than ack_timeout, from looking
// like a lost acknowledgement.
func (w *window) oldest() (time.Time, bool) { return w.headSince, w.head != 0 }

// drain empties the window and returns every done in the order of sending.
func (w *window) drain() []func(error) {
	dones := make([]func(error), 0, w.busy)
	for w.head != 0 {
		dones = append(dones, w.release(&w.slots[w.head-1], w.headSince))
	}
	return dones
}

func (w *window) index(id uint16) int32 { return int32(id) & int32(len(w.slots)-1) }
