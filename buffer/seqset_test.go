package buffer

import (
	"math/rand/v2"
	"testing"
)

// TestSeqSet compares the set with a plain one.
func TestSeqSet(t *testing.T) {
	const top = 60
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var s seqSet
		var plain [top + 2]bool
		for range 40 {
			lo := Seq(1 + r.IntN(top))
			hi := min(lo+Seq(r.IntN(5)), top)
			missing := s.missing(nil, lo, hi)
			i := 0
			for seq := lo; seq <= hi; seq++ {
				if plain[seq] {
					continue
				}
				for i < len(missing) && missing[i].hi < seq {
					i++
				}
				if i == len(missing) || missing[i].lo > seq {
					t.Fatalf("seed %d: %d is missing in %d..%d, told %v", seed, seq, lo, hi, missing)
				}
			}
			s.add(lo, hi)
			for seq := lo; seq <= hi; seq++ {
				plain[seq] = true
			}
			n := uint64(0)
			a := Seq(1 + r.IntN(top))
			b := a + Seq(r.IntN(20))
			for seq := Seq(1); seq <= top; seq++ {
				if plain[seq] != s.has(seq) {
					t.Fatalf("seed %d: has(%d) is %v in %+v", seed, seq, s.has(seq), s)
				}
				if plain[seq] && seq >= a && seq <= b {
					n++
				}
			}
			if s.count(a, b) != n {
				t.Fatalf("seed %d: count(%d, %d) is %d, want %d in %+v", seed, a, b, s.count(a, b), n, s)
			}
			at := s.floor
			for _, p := range s.spans {
				if p.lo <= at+1 || p.hi < p.lo {
					t.Fatalf("seed %d: %+v", seed, s)
				}
				at = p.hi
			}
			if plain[s.floor+1] {
				t.Fatalf("seed %d: the floor of %+v is too low", seed, s)
			}
		}
	}
}

// TestSeqSetJoin: what is in either set is in the joined one, and nothing else.
func TestSeqSetJoin(t *testing.T) {
	const top = 60
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 2))
		var sets [2]seqSet
		for i := range sets {
			for range r.IntN(12) {
				lo := Seq(1 + r.IntN(top))
				sets[i].add(lo, lo+Seq(r.IntN(5)))
			}
		}
		joined := sets[0].upTo(1 << 20)
		joined.join(&sets[1])
		for seq := Seq(1); seq <= top+6; seq++ {
			if joined.has(seq) != (sets[0].has(seq) || sets[1].has(seq)) {
				t.Fatalf("seed %d: has(%d) is %v in %+v of %+v", seed, seq, joined.has(seq), joined, sets)
			}
		}
	}
}
