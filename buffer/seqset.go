package buffer

import "sort"

// span is a range of sequences, both ends included.
type span struct{ lo, hi Seq }

// seqSet holds the sequences a queue is done with: all up to floor, and the spans above it, which are sorted and never touch.
type seqSet struct {
	floor Seq
	spans []span
}

// search gives the first span that ends at or behind seq.
func (s *seqSet) search(seq Seq) int {
	return sort.Search(len(s.spans), func(i int) bool { return s.spans[i].hi >= seq })
}

func (s *seqSet) has(seq Seq) bool {
	if seq <= s.floor {
		return true
	}
	i := s.search(seq)
	return i < len(s.spans) && s.spans[i].lo <= seq
}

// count tells how many sequences of lo..hi are in the set.
func (s *seqSet) count(lo, hi Seq) uint64 {
	if hi < lo {
		return 0
	}
	var n uint64
	if lo <= s.floor {
		if hi <= s.floor {
			return uint64(hi - lo + 1)
		}
		n = uint64(s.floor - lo + 1)
		lo = s.floor + 1
	}
	for i := s.search(lo); i < len(s.spans) && s.spans[i].lo <= hi; i++ {
		n += uint64(min(hi, s.spans[i].hi) - max(lo, s.spans[i].lo) + 1)
	}
	return n
}

// missing appends the parts of lo..hi that are not in the set.
func (s *seqSet) missing(dst []span, lo, hi Seq) []span {
	lo = max(lo, s.floor+1)
	for i := s.search(lo); lo <= hi; i++ {
		if i == len(s.spans) || s.spans[i].lo > hi {
			return append(dst, span{lo, hi})
		}
		if s.spans[i].lo > lo {
			dst = append(dst, span{lo, s.spans[i].lo - 1})
		}
		lo = s.spans[i].hi + 1
	}
	return dst
}

// add puts lo..hi into the set.
func (s *seqSet) add(lo, hi Seq) {
	lo = max(lo, s.floor+1)
	if hi < lo {
		return
	}
	if len(s.spans) == 0 && lo == s.floor+1 {
		s.floor = hi
		return
	}
	// i is the first span that touches lo..hi, j the first one behind it.
	i := sort.Search(len(s.spans), func(i int) bool { return s.spans[i].hi+1 >= lo })
	j := i
	for j < len(s.spans) && s.spans[j].lo <= hi+1 {
		j++
	}
	switch {
	case i == j:
		s.spans = append(s.spans, span{})
		copy(s.spans[i+1:], s.spans[i:])
		s.spans[i] = span{lo, hi}
	default:
		s.spans[i] = span{min(lo, s.spans[i].lo), max(hi, s.spans[j-1].hi)}
		s.spans = append(s.spans[:i+1], s.spans[j:]...)
	}
	if s.spans[0].lo == s.floor+1 {
		s.floor = s.spans[0].hi
		s.spans = append(s.spans[:0], s.spans[1:]...)
	}
}

// join puts all of o into the set.
func (s *seqSet) join(o *seqSet) {
	s.add(1, o.floor)
	for _, p := range o.spans {
		if i := s.search(p.hi); i < len(s.spans) && s.spans[i].lo <= p.lo {
			continue // it is in one already, as nearly always
		}
		s.add(p.lo, p.hi)
	}
}

// upTo copies the set without what is behind seq.
func (s *seqSet) upTo(seq Seq) seqSet {
	c := seqSet{floor: min(s.floor, seq)}
	for _, p := range s.spans {
		if p.lo <= seq {
			c.spans = append(c.spans, span{p.lo, min(p.hi, seq)})
		}
	}
	return c
}
