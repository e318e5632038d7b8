package edge

import "sync"

// aheadBytes is how much is read at a time from a client that sends without pause.
const aheadBytes = 32 << 10

// readAhead lets a busy connection be read in large pieces, while an idle one costs no more than the library's own small
// buffer: only after a read that filled the caller's buffer, more is read at once than was asked for. It belongs to the
// goroutine that reads the connection.
type readAhead struct {
	pool *sync.Pool // of *[]byte
	busy bool
	lent *[]byte // what rest is part of; nil: nothing is left
	rest []byte
	err  error // came with rest, and follows it
}

// read fills b from what is left, or with read.
func (r *readAhead) read(b []byte, read func([]byte) (int, error)) (int, error) {
	if r.lent == nil && !r.busy {
		n, err := read(b)
		r.busy = n == len(b)
		return n, err
	}
	if r.lent == nil {
		r.borrow()
		n, err := read(*r.lent)
		r.busy = n > len(b)
		r.rest, r.err = (*r.lent)[:n], err
	}
	n := copy(b, r.rest)
	if r.rest = r.rest[n:]; len(r.rest) > 0 {
		return n, nil
	}
	r.giveBack()
	return n, r.err
}

func (r *readAhead) borrow() {
	p, ok := r.pool.Get().(*[]byte)
	if !ok {
		fresh := make([]byte, aheadBytes)
		p = &fresh
	}
	r.lent = p
}

// giveBack returns the buffer; what is left in it is lost.
func (r *readAhead) giveBack() {
	if r.lent != nil {
		r.pool.Put(r.lent)
		r.lent, r.rest = nil, nil
	}
}
