package uplink

import (
	"net"
	"sync"
)

const (
	// outboxHigh is how many unwritten bytes make a sender wait.
	outboxHigh = 256 << 10
	// outboxKeep is the largest buffer that is kept for reuse after a burst of large messages.
	outboxKeep = 1 << 20
)

// outbox gathers bytes for one connection and writes them from one goroutine, everything that has gathered in one write:
// under load many packets share a system call, a TCP segment and a TLS record, and a lone packet still leaves at once.
//
// Appending never blocks. Senders of messages look at full first; the few packets that answer the peer (acknowledgements,
// pings) are appended regardless, their number is bounded by the windows of both sides.
type outbox struct {
	nc   net.Conn
	wake chan struct{} // capacity 1: there is something to do for run
	room chan struct{} // capacity 1: run took the gathered bytes, a waiting sender may look again

	mu    sync.Mutex
	buf   []byte // gathered, not yet taken by run
	spare []byte // the other buffer, nil while run writes it
	final bool   // run ends once everything is written
	dead  bool   // run ended: bytes go nowhere
}

func newOutbox(nc net.Conn) *outbox {
	return &outbox{nc: nc, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// Write appends p. It never blocks and never fails: that the connection is gone shows in run.
func (o *outbox) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.buf = append(o.buf, p...)
	o.mu.Unlock()
	signal(o.wake)
	return len(p), nil
}

// full reports whether a sender of messages should wait for room.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.buf) >= outboxHigh
}

// finish makes run end once everything that was appended before is written.
func (o *outbox) finish() {
	o.mu.Lock()
	o.final = true
	o.mu.Unlock()
	signal(o.wake)
}

// run writes until gone is closed, a write fails (it returns that error) or everything is written after finish.
func (o *outbox) run(gone <-chan struct{}) error {
	defer func() {
		o.mu.Lock()
		o.dead, o.buf, o.spare = true, nil, nil
		o.mu.Unlock()
	}()
	for {
		o.mu.Lock()
		b, final := o.buf, o.final
		o.buf, o.spare = o.spare[:0], nil
		o.mu.Unlock()
		if len(b) == 0 {
			o.giveBack(b)
			if final {
				return nil
			}
			select {
			case <-o.wake:
				continue
			case <-gone:
				return nil
			}
		}
		signal(o.room)
		if _, err := o.nc.Write(b); err != nil {
			return err
		}
		o.giveBack(b)
	}
}

// giveBack keeps a written buffer for reuse.
func (o *outbox) giveBack(b []byte) {
	if cap(b) > outboxKeep {
		b = nil
	}
	o.mu.Lock()
	if o.spare == nil {
		o.spare = b[:0]
	}
	o.mu.Unlock()
}

// signal marks a channel of capacity 1; a mark that is there already stands for this one too.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
