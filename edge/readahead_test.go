package edge

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

// Whatever the pieces in which bytes come and are asked for, they come out unchanged, and the error after them.
func TestReadAhead(t *testing.T) {
	var pool sync.Pool
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		want := make([]byte, rnd.IntN(300_000))
		for i := range want {
			want[i] = byte(rnd.Uint32())
		}
		end := errors.New("end")
		together := rnd.IntN(2) == 0 // the error comes with the last bytes
		left := want
		source := func(b []byte) (int, error) {
			if len(left) == 0 {
				return 0, end
			}
			n := copy(b, left[:min(len(left), 1+rnd.IntN(40_000))])
			left = left[n:]
			if together && len(left) == 0 {
				return n, end
			}
			return n, nil
		}
		r := readAhead{pool: &pool}
		var got []byte
		b := make([]byte, 4096)
		for {
			n, err := r.read(b[:1+rnd.IntN(len(b))], source)
			got = append(got, b[:n]...)
			if err != nil {
				if !errors.Is(err, end) {
					t.Fatal(err)
				}
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes differ from the %d sent", len(got), len(want))
		}
		if r.lent != nil {
			t.Fatal("the buffer was not given back")
		}
	}
}
