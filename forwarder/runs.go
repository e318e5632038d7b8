package forwarder

import (
	"cmp"
	"slices"

	"tidegate/buffer"
)

// runs is a set of sequences that mostly grows at its end.
type runs struct{ list []run }

type run struct{ from, to buffer.Seq }

func (r *runs) add(seq buffer.Seq) {
	for i := len(r.list) - 1; i >= 0; i-- {
		o := &r.list[i]
		switch {
		case seq > o.to+1:
			r.insert(i+1, seq)
			return
		case seq == o.to+1:
			o.to = seq
			r.join(i)
			return
		case seq >= o.from:
			return
		case seq == o.from-1:
			o.from = seq
			if i > 0 {
				r.join(i - 1)
			}
			return
		}
	}
	r.insert(0, seq)
}

func (r *runs) insert(i int, seq buffer.Seq) {
	r.list = append(r.list, run{})
	copy(r.list[i+1:], r.list[i:])
	r.list[i] = run{seq, seq}
}

// join unites run i with the one behind it where they touch.
func (r *runs) join(i int) {
	if i+1 < len(r.list) && r.list[i].to+1 == r.list[i+1].from {
		r.list[i].to = r.list[i+1].to
		r.list = append(r.list[:i+1], r.list[i+2:]...)
	}
}

func (r *runs) has(seq buffer.Seq) bool {
	for i := len(r.list) - 1; i >= 0; i-- {
		if seq > r.list[i].to {
			return false
		}
		if seq >= r.list[i].from {
			return true
		}
	}
	return false
}

// continues reports whether adding seq would make no run more.
func (r *runs) continues(seq buffer.Seq) bool {
	if n := len(r.list); n == 0 || seq > r.list[n-1].to+1 {
		return false
	}
	return r.has(seq) || r.has(seq-1) || r.has(seq+1)
}

// union adds what is in o.
func (r *runs) union(o runs) {
	all := append(slices.Clone(r.list), o.list...)
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.from, b.from) })
	r.list = r.list[:0:0]
	for _, x := range all {
		if n := len(r.list); n > 0 && x.from <= r.list[n-1].to+1 {
			r.list[n-1].to = max(r.list[n-1].to, x.to)
		} else {
			r.list = append(r.list, x)
		}
	}
}
