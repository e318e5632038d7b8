package external

import (
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// receipts are the messages of one connection that the broker has no acknowledgement of. Acknowledgements leave in the order
// in which the messages came [MQTT-4.6.0-2], each once the disk has its record.
type receipts struct {
	answer func([]byte)  // writes acknowledgements; called with mu held
	idle   chan struct{} // capacity 1: nothing waits for the disk
	failed chan struct{} // capacity 1: the disk did not take a message

	mu   sync.Mutex
	open map[uint16]struct{} // identifiers in use, of QoS 2 until the PUBREL
	wait []*receipt          // in the order of arrival
}

// receipt is one message that waits for the disk.
type receipt struct {
	a    arrival // to be offered again should the disk fail
	kind byte    // of the acknowledgement
	code byte
	done bool
	lost error // why the disk did not take it
}

// begin notes the identifier of a message that was read. It is false where that is in use: the broker repeated itself.
func (r *receipts) begin(id uint16) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, used := r.open[id]; used {
		return false
	}
	r.open[id] = struct{}{}
	return true
}

// end frees the identifier of a QoS 2 message.
func (r *receipts) end(id uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, id)
}

// add takes a message's place in the order of acknowledgements; settle is due for it then. It is called in the order of
// arrival, with QoS 1 and 2.
func (r *receipts) add(a *arrival) *receipt {
	p := &receipt{a: *a, kind: packets.Puback}
	if a.m.QoS == 2 {
		p.kind = packets.Pubrec
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wait = append(r.wait, p)
	return p
}

// settle is told what became of a message: nil when the disk has its record, or when it is refused for good with code; an error
// when the disk did not take it, see nextLost. It does not block.
func (r *receipts) settle(p *receipt, code byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		p.lost = err
		signal(r.failed)
		return
	}
	p.done, p.code, p.a.m = true, code, message.Message{}
	n := 0
	var acks []byte
	for ; n < len(r.wait) && r.wait[n].done; n++ {
		w := r.wait[n]
		acks = appendAck(acks, w.kind, w.a.id, w.code)
		if w.kind == packets.Puback || w.code != 0 { // a PUBREC that refuses ends it too [MQTT-4.3.3-9]
			delete(r.open, w.a.id)
		}
		r.wait[n] = nil
	}
	if n == 0 {
		return
	}
	if r.wait = r.wait[n:]; len(r.wait) == 0 {
		r.wait = nil
		signal(r.idle)
	}
	r.answer(acks)
}

// anyLost returns why the disk did not take a message that waits to be offered again; nil: there is none.
func (r *receipts) anyLost() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.wait {
		if p.lost != nil {
			return p.lost
		}
	}
	return nil
}

// nextLost gives out the oldest message that the disk did not take, to be offered and settled again; nil when there is none.
func (r *receipts) nextLost() *receipt {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.wait {
		if p.lost != nil {
			p.lost = nil
			return p
		}
	}
	return nil
}

// waiting is how many messages wait for the disk.
func (r *receipts) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wait)
}

// settled waits until nothing waits for the disk, for as long as patience.
func (r *receipts) settled(patience time.Duration) {
	t := time.NewTimer(patience)
	defer t.Stop()
	for r.waiting() > 0 {
		select {
		case <-r.idle:
		case <-t.C:
			return
		}
	}
}

// held are the QoS 2 messages that were taken and that the broker has not released: one that comes again under such an
// identifier is the same message [MQTT-4.3.3-10]. They belong to the session and outlive connections.
type held struct {
	mu      sync.Mutex
	tickets map[uint16]message.Ticket
}

// find returns the ticket of the message that was taken under id.
func (h *held) find(id uint16) (message.Ticket, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.tickets[id]
	return t, ok
}

// keep notes that a message was taken under id. Should its record not reach the disk, it was not.
func (h *held) keep(id uint16, t message.Ticket) {
	h.mu.Lock()
	if h.tickets == nil {
		h.tickets = map[uint16]message.Ticket{}
	}
	h.tickets[id] = t
	h.mu.Unlock()
	if t.Durable() {
		return
	}
	t.Done(func(err error) {
		if err == nil {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.tickets[id] == t {
			delete(h.tickets, id)
		}
	})
}

// release ends the use of id.
func (h *held) release(id uint16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tickets, id)
}

// forget ends the use of every identifier: the broker has no session.
func (h *held) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tickets = nil
}
