package session

import (
	"math/rand/v2"
	"testing"

	"tidegate/buffer"
)

// TestRefs: the counts are those of a plain map, in whatever order they change, and nothing is left of what is 0.
func TestRefs(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		var r refs
		want := map[buffer.Seq]int{}
		next, some := buffer.Seq(1+rnd.IntN(300)), 1+rnd.IntN(3)
		for range 20_000 {
			seq := next - buffer.Seq(rnd.IntN(600))
			switch {
			case rnd.IntN(4) < 2:
				if rnd.IntN(50) == 0 {
					some = 1 + rnd.IntN(3)
				}
				r.add(next, some)
				want[next] += some
				next++
			case seq > next: // below 0
			case rnd.IntN(8) == 0:
				r.add(seq, 1)
				want[seq]++
			case rnd.IntN(8) == 0:
				if got := r.take(seq); got != want[seq] {
					t.Fatalf("%d: took %d, want %d", seq, got, want[seq])
				}
				delete(want, seq)
			default:
				left, known := r.release(seq)
				if known != (want[seq] > 0) || known && left != want[seq]-1 {
					t.Fatalf("%d: released, %d left, %v; there were %d", seq, left, known, want[seq])
				}
				if want[seq]--; want[seq] <= 0 {
					delete(want, seq)
				}
			}
			if r.known(seq) != (want[seq] > 0) {
				t.Fatalf("%d: known %v, want %d", seq, r.known(seq), want[seq])
			}
		}
		for seq, n := range want {
			if got := r.take(seq); got != n {
				t.Fatalf("%d: %d, want %d", seq, got, n)
			}
		}
		if len(r.pages) != 0 || r.newest != nil {
			t.Errorf("%d pages are left of nothing", len(r.pages))
		}
	}
}
