package wire

import (
	"hash/maphash"
	"net/netip"
	"time"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// origin is what an answer has to know of its request.
type origin struct {
	server   *Server
	socket   *socket
	path     Path
	peer     *peer // nil: there was no room to remember it
	received time.Time
	hash     uint32
	mid      uint16
	token    [coap.MaxTokenSize]byte
	tokenLen uint8
	con      bool
	kept     bool // there is a slot for it
	silence  silence
}

// head returns the beginning of a message to the peer that belongs to the request.
func (o *origin) head(typ coap.Type, mid uint16) head {
	return head{typ: typ, mid: mid, token: o.token[:o.tokenLen]}
}

// silence is the value of a No-Response option (RFC 7967): the classes of response that the peer does not want.
type silence uint8

// covers reports whether a response of that code is not wanted.
func (n silence) covers(code codes.Code) bool {
	class := byte(code) >> 5
	return class > 0 && n>>(class-1)&1 == 1
}

// onAcknowledgement reports whether the acknowledgement is all that tells the peer of a success. It must not leave before the
// request has succeeded then.
func (n silence) onAcknowledgement() bool { return n.covers(codes.Changed) }

// silenceOf looks for the option. It is an elective one: a value that it cannot have is as good as none (5.4.1).
func silenceOf(options coap.Options) silence {
	for i := len(options) - 1; i >= 0 && options[i].ID >= coap.NoResponse; i-- {
		if o := options[i]; o.ID == coap.NoResponse && len(o.Value) == 1 {
			return silence(o.Value[0])
		}
	}
	return 0
}

// take deals with one datagram. r is used for a request again and again.
//
// Nothing is kept of what is not a well-formed request: a peer comes into being by a request alone.
func (s *Server) take(r *Request, b []byte, c *socket, path Path, at time.Time) {
	h, rest, is := readHead(b)
	switch is {
	case request:
		var err error
		if r.Options, r.Payload, err = readOptions(r.Options, rest); err != nil {
			s.malformed.Add(1)
			s.reject(h, c, path)
			return
		}
		s.request(r, b, h, c, path, at)
	case acknowledgement, reset:
		s.settleOutgoing(endpoint{path.Remote, c.number}, h.mid, is == reset)
	case ignored:
		if len(b) < headLen || b[0]>>6 != version || b[0]&0xf > coap.MaxTokenSize {
			s.malformed.Add(1)
		} else {
			s.unexpected.Add(1)
		}
	case broken:
		s.malformed.Add(1)
		s.reject(h, c, path)
	case rejected:
		s.unexpected.Add(1)
		s.reject(h, c, path)
	}
}

// reject sends a reset for a confirmable message. Others are rejected in silence (4.3).
func (s *Server) reject(h head, c *socket, path Path) {
	if h.typ == coap.Confirmable {
		b := empty(coap.Reset, h.mid)
		s.send(c, b[:], path)
	}
}

// request gives a request to the handler, or a duplicate what the first one got.
func (s *Server) request(r *Request, b []byte, h head, c *socket, path Path, at time.Time) {
	r.origin = origin{
		server: s, socket: c, path: path, received: at, hash: s.hash(b, path), mid: h.mid,
		tokenLen: uint8(len(h.token)), con: h.typ == coap.Confirmable, silence: silenceOf(r.Options),
	}
	copy(r.token[:], h.token)
	r.Code, r.state = codes.Code(h.code), open
	again, duplicate := s.remember(r)
	if duplicate {
		s.duplicates.Add(1)
		s.send(c, again, path)
		return
	}
	s.o.Handler(r)
	if r.state == open {
		r.Reply(Response{Code: codes.InternalServerError}) // the handler broke its promise; the peer need not wait for it
	}
	r.Payload = nil
}

// hash tells requests of one peer and message ID apart: by all of their bytes, and by the address of ours that they came to,
// which for the peer is another endpoint.
func (s *Server) hash(b []byte, path Path) uint32 {
	h := maphash.Bytes(s.seed, b)
	if path.Local.IsValid() {
		h ^= maphash.Comparable(s.seed, path.Local)
	}
	return uint32(h)
}

// remember finds the request among those of its peer, or keeps it there. For a duplicate it returns what is to be sent,
// which may be nothing.
func (s *Server) remember(r *Request) (again []byte, duplicate bool) {
	now := s.millis(r.received)
	e := endpoint{r.path.Remote, r.socket.number}
	sh := s.table.shard(e)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r.busy = s.stopping.Load() || s.parked.Load() >= int64(s.o.MaxParked)
	p := sh.admit(e, now, randomID)
	if p == nil {
		r.busy = true
		return nil, false
	}
	r.peer = p
	found := p.ring.find(r.mid, r.hash, now)
	if found != nil {
		if again, ok := s.again(r, found); ok {
			return again, true
		}
	} else if found = sh.claim(p, r.mid, now); found == nil {
		r.busy = true
		return nil, false
	}
	*found = slot{con: r.con, hash: r.hash, at: now, mid: r.mid, state: waiting}
	r.kept = true
	r.busy = r.busy || int(p.owed) >= max(s.o.MaxParked/4, 1)
	return nil, false
}

// again returns what a duplicate is answered with. It is not ok where the answer to a GET is not remembered any more: that
// is asked for again, which changes nothing (4.5). The caller holds the shard's mu.
func (s *Server) again(r *Request, e *slot) (b []byte, ok bool) {
	if e.state == waiting {
		return nil, true // its answer is on its way, or its acknowledgement
	}
	if e.large != 0 {
		if b := s.stash.get(e.large); b != nil {
			return b, true
		}
		if r.Code == codes.GET {
			return nil, false
		}
	}
	return append(r.scratch[:0], e.reply[:e.n]...), true
}

// progress of a request within its handler.
type progress uint8

const (
	open progress = iota
	replied
	parked
)

// Request is a request that is being handled. Its fields are not to be changed, and point into a buffer that is used again.
type Request struct {
	Code    codes.Code
	Options coap.Options // in the order of their numbers
	Payload []byte       // nil: none
	origin
	busy    bool
	state   progress
	scratch []byte // what is sent is put together here
}

// Confirmable reports whether the peer asked for an acknowledgement.
func (r *Request) Confirmable() bool { return r.con }

// Remote is the peer's address.
func (r *Request) Remote() netip.AddrPort { return r.path.Remote }

// Received is when the request came.
func (r *Request) Received() time.Time { return r.received }

// Busy reports whether too many requests wait already, of all peers or of this one. Such a request is not to be parked but
// answered, with 5.03.
func (r *Request) Busy() bool { return r.busy }

// Reply answers the request.
func (r *Request) Reply(resp Response) {
	if r.state != open {
		return
	}
	r.state = replied
	r.scratch = r.answer(nil, resp, r.scratch[:0])
	r.server.send(r.socket, r.scratch, r.path)
}

// Reject answers a request that nobody can make sense of: with a reset (4.2, 4.3).
func (r *Request) Reject() {
	if r.state != open {
		return
	}
	r.state = replied
	b := empty(coap.Reset, r.mid)
	r.keep(b[:])
	r.server.send(r.socket, b[:], r.path)
}

// Park keeps the request to be answered later. A confirmable one is acknowledged when that takes longer than a second.
func (r *Request) Park() *Exchange {
	x := &Exchange{origin: r.origin, request: r.Code}
	x.timer.exchange = x
	if r.state != open {
		x.done.Store(true)
		return x
	}
	r.state = parked
	x.park()
	return x
}
