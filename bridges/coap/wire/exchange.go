package wire

import (
	"sync/atomic"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// acknowledgeAfter is how long a confirmable request may wait for an answer that its acknowledgement can carry. The peer
// sends it again after 2 to 3 s (ACK_TIMEOUT, 4.8).
const acknowledgeAfter = time.Second

// Exchange is a parked request.
type Exchange struct {
	origin
	request codes.Code
	done    atomic.Bool // Reply was called
	timer   timer

	// What follows is of its separate response, guarded by the shard's mu.
	next     *Exchange // behind it in the outbox
	datagram []byte    // as it is sent
	own      uint16    // its message ID
	tries    int       // so often it was sent again
	wait     time.Duration
}

// park begins the waiting.
func (x *Exchange) park() {
	s := x.server
	s.parked.Add(1)
	if x.peer == nil {
		return
	}
	x.peer.shard.mu.Lock()
	defer x.peer.shard.mu.Unlock()
	x.peer.shard.owe(x.peer)
	if x.kept && x.con && !x.silence.onAcknowledgement() {
		s.wheel.set(&x.timer, acknowledgeAfter)
	}
}

// Request is the method of the request.
func (x *Exchange) Request() codes.Code { return x.request }

// Reply answers the request. It may be called from any goroutine and does not block; only the first call counts. The server
// owns the response from then on.
func (x *Exchange) Reply(r Response) {
	if x.done.CompareAndSwap(false, true) {
		x.server.answers.add(answer{x, r})
	}
}

// release ends the waiting. The caller holds the shard's mu, if there is a peer.
func (x *Exchange) release() {
	s := x.server
	if x.peer != nil {
		s.wheel.clear(&x.timer)
		x.peer.shard.settle(x.peer)
	}
	if s.parked.Add(-1) == 0 && s.stopping.Load() {
		select {
		case s.settled <- struct{}{}:
		default: // signalled already
		}
	}
}

// acknowledge sends the empty acknowledgement of a request that waits for its answer. Not when the server stops: the peer is
// to send its request again then, to whoever comes after.
func (x *Exchange) acknowledge() {
	sh := x.peer.shard
	sh.mu.Lock()
	e := x.peer.ring.pending(x.mid, x.hash)
	due := e != nil && e.state == waiting && !x.server.stopping.Load()
	b := empty(coap.Acknowledgement, x.mid)
	if due {
		e.state = accepted
		e.n = uint8(copy(e.reply[:], b[:]))
	}
	sh.mu.Unlock()
	if due {
		x.server.send(x.socket, b[:], x.path)
	}
}

// answer puts together in b what is to be sent for an answer; empty: nothing. x is the exchange of a parked request, else nil.
func (o *origin) answer(x *Exchange, r Response, b []byte) []byte {
	if o.peer == nil {
		if x != nil {
			x.release()
		}
		return o.direct(randomID, r, b)
	}
	sh := o.peer.shard
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var e *slot
	if o.kept {
		e = o.peer.ring.pending(o.mid, o.hash)
	}
	if x != nil && e != nil && e.state == accepted {
		return x.separate(r, e, b)
	}
	if x != nil {
		x.release()
	}
	b = o.direct(o.peer.nextID, r, b)
	if e != nil {
		o.store(e, b)
	}
	return b
}

// direct is the answer to a request that was not acknowledged: in a message like its own, or on the acknowledgement.
func (o *origin) direct(id func() uint16, r Response, b []byte) []byte {
	muted := o.silence.covers(r.Code)
	switch {
	case !o.con && muted:
		return b[:0]
	case !o.con:
		return o.append(b, o.head(coap.NonConfirmable, id()), r)
	case muted:
		ack := empty(coap.Acknowledgement, o.mid)
		return append(b, ack[:]...)
	}
	return o.append(b, o.head(coap.Acknowledgement, o.mid), r)
}

// append appends the bytes of a response, or of 5.00 where there is no way to send it.
func (o *origin) append(b []byte, h head, r Response) []byte {
	out, err := appendMessage(b, h, r)
	if err != nil {
		out, _ = appendMessage(b, h, Response{Code: codes.InternalServerError}) // a head and a token: cannot fail
	}
	return out
}

// keep notes what a request was answered with.
func (o *origin) keep(b []byte) {
	if !o.kept {
		return
	}
	sh := o.peer.shard
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e := o.peer.ring.pending(o.mid, o.hash); e != nil {
		o.store(e, b)
	}
}

// store puts an answer into a slot, for duplicates. A duplicate of a non-confirmable request gets none (4.5). Of an answer that
// is too large for the slot it has the beginning, without options and payload, for when the stash has no room for the whole.
func (o *origin) store(e *slot, b []byte) {
	e.state, e.n, e.large = answered, 0, 0
	switch {
	case !o.con:
	case len(b) <= smallReply:
		e.n = uint8(copy(e.reply[:], b))
	default:
		e.large = o.server.stash.put(append([]byte(nil), b...))
		e.n = uint8(copy(e.reply[:], b[:headLen+int(o.tokenLen)]))
	}
}
