package session

import (
	"sync"

	"tidegate/buffer"
)

// refs counts for each stored message how many sessions wait for it: in a few bytes for a run of messages for which as many wait, in four bytes
// for each where they differ.
type refs struct {
	mu    sync.Mutex
	pages map[buffer.Seq]*refPage
	// newest is the page that was added to last, of the sequences from on.
	newest *refPage
	from   buffer.Seq
}

// refPage counts for refPageLen sequences. Until they differ it has only the count of each of those from first up to end, which is same.
type refPage struct {
	counts     *[refPageLen]uint32 // nil: they do not
	first, end int
	same       uint32
	live       int // how many are not 0
}

const refPageLen = 256

// count returns the count of a place.
func (p *refPage) count(i int) uint32 {
	switch {
	case p.counts != nil:
		return p.counts[i]
	case p.first <= i && i < p.end:
		return p.same
	}
	return 0
}

// set changes the count of a place.
func (p *refPage) set(i int, n uint32) {
	before := p.count(i)
	switch {
	case before == n:
		return
	case before == 0:
		p.live++
	case n == 0:
		p.live--
	}
	if p.counts == nil {
		if p.live == 1 && before == 0 {
			p.first, p.end, p.same = i, i+1, n
			return
		}
		if i == p.end && n == p.same && p.end > p.first {
			p.end++
			return
		}
		p.counts = new([refPageLen]uint32)
		for k := p.first; k < p.end; k++ {
			p.counts[k] = p.same
		}
	}
	p.counts[i] = n
}

// add adds n sessions to those that wait for seq.
func (r *refs) add(seq buffer.Seq, n int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.newest
	if p == nil || seq/refPageLen != r.from/refPageLen {
		if p = r.pages[seq/refPageLen]; p == nil {
			if r.pages == nil {
				r.pages = make(map[buffer.Seq]*refPage)
			}
			p = &refPage{}
			r.pages[seq/refPageLen] = p
		}
		r.newest, r.from = p, seq
	}
	i := int(seq % refPageLen)
	p.set(i, p.count(i)+uint32(n))
}

// release takes one off and returns how many are left. known is false when nobody was known to wait.
func (r *refs) release(seq buffer.Seq) (left int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.count(seq)
	if n == 0 {
		return 0, false
	}
	r.set(seq, n-1)
	return int(n - 1), true
}

// take forgets seq and returns how many waited for it.
func (r *refs) take(seq buffer.Seq) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.count(seq)
	if n > 0 {
		r.set(seq, 0)
	}
	return int(n)
}

// known reports whether anybody waits for seq.
func (r *refs) known(seq buffer.Seq) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count(seq) > 0
}

// count is the count of seq. mu is held.
func (r *refs) count(seq buffer.Seq) uint32 {
	p := r.pages[seq/refPageLen]
	if p == nil {
		return 0
	}
	return p.count(int(seq % refPageLen))
}

// set changes the count of a sequence that has one. The page goes when all are 0. mu is held.
func (r *refs) set(seq buffer.Seq, n uint32) {
	p := r.pages[seq/refPageLen]
	if p.set(int(seq%refPageLen), n); p.live == 0 {
		delete(r.pages, seq/refPageLen)
		if r.newest == p {
			r.newest = nil
		}
	}
}
