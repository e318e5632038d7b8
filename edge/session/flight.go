package session

// flight holds what was sent with QoS above 0 and is not finished, in the order of first sending. Packet identifiers
// follow that order, 1 to 65535 and round again, so that the position of an identifier is a subtraction; a finished
// message in the middle leaves a hole that goes when it comes to the front.
type flight struct {
	ring  ring[outgoing]
	first uint16 // identifier of the oldest element
	next  uint16 // identifier of the next message; 0 stands for 1 before the first use
	// open counts against the client's Receive Maximum: sent on this connection and not answered.
	open int
	// resend is the position of the next element to be sent again on this connection.
	resend int
	window int
	// bytes is what the messages take that the client has not got for sure; atMost is its bound, which the last one sent may
	// pass.
	bytes, atMost int64
}

// outgoing is one message in flight.
type outgoing struct {
	entry Entry
	state stage
	open  bool  // counted in flight.open
	size  int64 // counted in flight.bytes
}

type stage byte

const (
	finished stage = iota // a hole
	sent                  // PUBLISH sent, PUBACK or PUBREC awaited
	released              // PUBREC received, PUBCOMP awaited
)

const lastID = 65535

// maxWindow bounds what is in flight for one client, whatever it allows.
const maxWindow = 1024

// full reports whether nothing new may be sent: the window or the bytes are used up, or the identifiers would collide.
func (f *flight) full() bool {
	return f.open >= f.window || f.bytes >= f.atMost || f.ring.len() >= lastID-1
}

// add appends e and returns its packet identifier.
func (f *flight) add(e Entry) uint16 {
	id := f.next
	if id == 0 {
		id = 1
	}
	if f.ring.len() == 0 {
		f.first = id
	}
	size := e.Size()
	if e.seq != 0 {
		e.Msg, e.IDs, e.size = nil, nil, size // it is read again where it has to be sent again
	}
	f.ring.push(outgoing{entry: e, state: sent, open: true, size: size})
	f.bytes += size
	f.open++
	f.resend = f.ring.len()
	f.next = id%lastID + 1
	return id
}

// find returns the element with identifier id, or nil.
func (f *flight) find(id uint16) *outgoing {
	if id == 0 || f.ring.len() == 0 {
		return nil
	}
	i := f.place(id)
	if i >= f.ring.len() || f.ring.at(i).state == finished {
		return nil
	}
	return f.ring.at(i)
}

// place returns the position at which identifier id stands, or would.
func (f *flight) place(id uint16) int { return (int(id) - int(f.first) + lastID) % lastID }

// id returns the packet identifier of the element at position i.
func (f *flight) id(i int) uint16 { return uint16((int(f.first)-1+i)%lastID + 1) }

// release notes that the client has o's message and only the end of the exchange is due.
func (f *flight) release(o *outgoing) {
	f.bytes -= o.size
	o.state, o.size = released, 0
	o.entry = Entry{QoS: 2}
}

// finish makes o a hole and drops the holes at the front.
func (f *flight) finish(o *outgoing) {
	f.close(o)
	f.bytes -= o.size
	*o = outgoing{}
	for f.ring.len() > 0 && f.ring.at(0).state == finished {
		f.ring.pop()
		f.first = f.first%lastID + 1
		f.resend = max(0, f.resend-1)
	}
}

func (f *flight) close(o *outgoing) {
	if o.open {
		o.open = false
		f.open--
	}
}

// restart prepares for a new connection: everything is to be sent again, within the new window.
func (f *flight) restart(window int) {
	f.window = window
	f.open, f.resend = 0, 0
	for i := range f.ring.len() {
		f.ring.at(i).open = false
	}
}
