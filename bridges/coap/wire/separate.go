package wire

import (
	"math/rand/v2"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
)

// Transmission parameters of RFC 7252, 4.8.
const (
	acknowledgeTimeout = 2 * time.Second
	randomFactor       = 1.5
	maxRetransmit      = 4
)

// outbox holds the separate responses to one peer. Only the first of them is under way (NSTART, 4.7).
type outbox struct{ first, last *Exchange }

// separate answers a request that was acknowledged, by a confirmable message of its own. It returns what is to be sent now.
// The caller holds the shard's mu.
func (x *Exchange) separate(r Response, e *slot, b []byte) []byte {
	e.state = answered // and for duplicates still the empty acknowledgement
	if x.silence.covers(r.Code) {
		x.release()
		return b[:0]
	}
	p := x.peer
	x.own = p.nextID()
	if x.server.stopping.Load() { // nobody hears an acknowledgement any more: it is sent once
		x.release()
		return x.append(b, x.head(coap.Confirmable, x.own), r)
	}
	x.datagram = x.append(nil, x.head(coap.Confirmable, x.own), r)
	if p.out != nil {
		p.out.last.next = x
		p.out.last = x
		return b[:0]
	}
	p.out = &outbox{x, x}
	return append(b, x.transmit()...)
}

// transmit begins the sending of x, which is the first in the outbox. The caller holds the shard's mu.
func (x *Exchange) transmit() []byte {
	x.tries = 0
	x.wait = time.Duration(float64(acknowledgeTimeout) * (1 + (randomFactor-1)*rand.Float64())) //nolint:gosec // jitter
	x.server.wheel.set(&x.timer, x.wait)
	return x.datagram
}

// pop takes the first response out of the outbox and returns the next one that is worth sending. The caller holds the
// shard's mu.
func (s *Server) pop(p *peer) *Exchange {
	for {
		x := p.out.first
		p.out.first = x.next
		x.next = nil
		x.release()
		if p.out.first == nil {
			p.out = nil
			return nil
		}
		if time.Since(p.out.first.received) < exchangeLifetime*time.Millisecond {
			return p.out.first
		}
		s.givenUp.Add(1) // its peer does not know it any more
	}
}

// settleOutgoing takes an acknowledgement or a reset of a separate response: either ends it.
func (s *Server) settleOutgoing(e endpoint, mid uint16, isReset bool) {
	sh := s.table.shard(e)
	sh.mu.Lock()
	p := sh.peers[e]
	if p == nil || p.out == nil || p.out.first.own != mid {
		sh.mu.Unlock()
		s.unexpected.Add(1) // or it came twice
		return
	}
	if isReset {
		s.givenUp.Add(1)
	}
	s.sendNext(sh, p)
}

// sendNext ends the response that is under way and sends the next. The caller holds the shard's mu, which is released.
func (s *Server) sendNext(sh *shard, p *peer) {
	next := s.pop(p)
	if next == nil {
		sh.mu.Unlock()
		return
	}
	b := next.transmit()
	sh.mu.Unlock()
	s.send(next.socket, b, next.path)
}

// due is called when the deadline of x has passed.
func (s *Server) due(x *Exchange) {
	sh := x.peer.shard
	sh.mu.Lock()
	if x.datagram == nil {
		sh.mu.Unlock()
		x.acknowledge()
		return
	}
	if x.peer.out == nil || x.peer.out.first != x {
		sh.mu.Unlock() // acknowledged meanwhile
		return
	}
	if x.tries == maxRetransmit {
		s.givenUp.Add(1)
		s.sendNext(sh, x.peer)
		return
	}
	x.tries++
	x.wait *= 2
	s.wheel.set(&x.timer, x.wait)
	sh.mu.Unlock()
	s.retransmissions.Add(1)
	s.send(x.socket, x.datagram, x.path)
}

// flush sends every separate response that waits for its turn, once, and ends the waiting for acknowledgements: nobody reads
// them any more.
func (s *Server) flush() {
	for i := range s.table.shards {
		sh := &s.table.shards[i]
		var rest []*Exchange
		sh.mu.Lock()
		for _, p := range sh.peers {
			if p.out == nil {
				continue
			}
			for x := p.out.first; x != nil; x = x.next {
				if x != p.out.first {
					rest = append(rest, x)
				}
			}
			for p.out != nil {
				_ = s.pop(p)
			}
		}
		sh.mu.Unlock()
		for _, x := range rest {
			s.send(x.socket, x.datagram, x.path)
		}
	}
}
