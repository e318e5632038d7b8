package wire

// Requests of one peer are remembered in a ring of slots, so that a duplicate is recognized and answered with the bytes that
// the first one was answered with (RFC 7252, 4.5).
//
// A peer that sends now and then has few requests within EXCHANGE_LIFETIME, one that sends without a pause has thousands:
// a ring begins small and grows while what it would have to forget is still young. It is cut into sets of setSlots; the
// message ID chooses the set, so that peers that count their message IDs up, as nearly all do, use the sets in turn.
const (
	firstSlots = 4
	setSlots   = 16
	mostSlots  = 4096
)

// smallReply is the largest answer that a slot holds itself: everything but payloads.
const smallReply = 23

// state of a slot.
type state uint8

const (
	vacant   state = iota
	waiting        // for an answer; nothing was sent
	accepted       // for an answer; a confirmable request got its empty acknowledgement
	answered       // what was sent is remembered
)

// slot is one request. It holds no pointer, so that the collector has nothing to look at in a ring.
type slot struct {
	reply [smallReply]byte
	con   bool
	hash  uint32 // of the whole datagram
	at    uint32 // when it came, in milliseconds of the server
	large uint32 // the answer in the stash, 0: it is in reply
	mid   uint16
	n     uint8 // bytes of reply
	state state
}

// Lifetimes of RFC 7252, 4.8.2, in milliseconds.
const (
	exchangeLifetime = 247_000
	nonLifetime      = 145_000
)

// past reports whether what comes now can be no duplicate of the request any more.
func (e *slot) past(now uint32) bool {
	age := now - e.at
	return e.state == answered && (age >= exchangeLifetime || !e.con && age >= nonLifetime)
}

// ring is a set of slots or several. nil: nothing was ever remembered.
type ring []slot

// set returns the slots where a message ID may be.
func (r ring) set(mid uint16) []slot {
	if len(r) <= setSlots {
		return r
	}
	at := int(mid) % (len(r) / setSlots) * setSlots
	return r[at : at+setSlots]
}

// find returns the slot of a request that is still remembered, or nil.
//
// The hash is one of the whole datagram. A retransmission repeats it byte by byte; a device that starts again and counts its
// message IDs from the beginning does not, and must not get the answer to what it sent before: that would acknowledge a
// message that nobody took.
func (r ring) find(mid uint16, hash uint32, now uint32) *slot {
	set := r.set(mid)
	for i := range set {
		if e := &set[i]; e.mid == mid && e.hash == hash && e.state != vacant && !e.past(now) {
			return e
		}
	}
	return nil
}

// pending returns the slot of a request that is not answered yet.
func (r ring) pending(mid uint16, hash uint32) *slot {
	set := r.set(mid)
	for i := range set {
		if e := &set[i]; e.mid == mid && e.hash == hash && (e.state == waiting || e.state == accepted) {
			return e
		}
	}
	return nil
}

// claim returns a slot for a new request: a free one, or the one that was answered longest ago, unless grow is told to find
// more room instead. It returns nil when all of them wait for their answers.
func (r *ring) claim(mid uint16, now uint32, grow func(from, to int) bool) *slot {
	for {
		free, oldest := r.candidates(mid, now)
		if free != nil {
			return free
		}
		to := max(firstSlots, 4*len(*r))
		if to > mostSlots || !grow(len(*r), to) {
			return oldest
		}
		r.resize(to, now)
	}
}

func (r ring) candidates(mid uint16, now uint32) (free, oldest *slot) {
	set := r.set(mid)
	for i := range set {
		e := &set[i]
		switch {
		case e.state == vacant || e.past(now):
			return e, nil
		case e.state == answered && (oldest == nil || now-e.at > now-oldest.at):
			oldest = e
		}
	}
	return nil, oldest
}

// resize moves what is remembered to a ring of n slots. A set of the old ring is spread over four of the new one, so there
// is room for all.
func (r *ring) resize(n int, now uint32) {
	old := *r
	*r = make(ring, n)
	for i := range old {
		if old[i].state == vacant || old[i].past(now) {
			continue
		}
		if free, _ := r.candidates(old[i].mid, now); free != nil {
			*free = old[i]
		}
	}
}
