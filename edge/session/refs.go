package session

import (
	"sync"

	"tidegate/buffer"
)

// refs counts for each stored message how many sessions wait for it, in four bytes for each.
type refs struct {
	mu    sync.Mutex
	pages map[buffer.Seq]*refPage
	// newest is the page that was added to last, of the sequences from on.
	newest *refPage
	from   buffer.Seq
}

// refPage counts for a run of sequences; it goes when all are 0.
type refPage struct {
	counts [refPageLen]uint32
	live   int
}

const refPageLen = 256

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
	c := &p.counts[seq%refPageLen]
	if *c == 0 {
		p.live++
	}
	*c += uint32(n)
}

// release takes one off and returns how many are left. known is false when nobody was known to wait.
func (r *refs) release(seq buffer.Seq) (left int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pages[seq/refPageLen]
	if p == nil || p.counts[seq%refPageLen] == 0 {
		return 0, false
	}
	c := &p.counts[seq%refPageLen]
	if *c--; *c == 0 {
		r.empty(seq, p)
	}
	return int(*c), true
}

// take forgets seq and returns how many waited for it.
func (r *refs) take(seq buffer.Seq) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pages[seq/refPageLen]
	if p == nil {
		return 0
	}
	n := p.counts[seq%refPageLen]
	if n > 0 {
		p.counts[seq%refPageLen] = 0
		r.empty(seq, p)
	}
	return int(n)
}

// known reports whether anybody waits for seq.
func (r *refs) known(seq buffer.Seq) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pages[seq/refPageLen]
	return p != nil && p.counts[seq%refPageLen] > 0
}

func (r *refs) empty(seq buffer.Seq, p *refPage) {
	if p.live--; p.live == 0 {
		delete(r.pages, seq/refPageLen)
		if r.newest == p {
			r.newest = nil
		}
	}
}
