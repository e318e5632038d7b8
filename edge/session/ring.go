package session

// ring is a queue of values in order, with access by position. It grows by doubling and gives its memory back when it
// runs empty. It is not safe for concurrent use.
type ring[T any] struct {
	buf  []T
	head int
	n    int
}

const ringMin = 8

func (r *ring[T]) len() int { return r.n }

// at returns the element at position i, 0 being the oldest. i must be below len.
func (r *ring[T]) at(i int) *T { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring[T]) push(v T) {
	if r.n == len(r.buf) {
		grown := make([]T, max(ringMin, 2*len(r.buf)))
		for i := range r.n {
			grown[i] = *r.at(i)
		}
		r.buf, r.head = grown, 0
	}
	r.n++
	*r.at(r.n - 1) = v
}

// pop removes and returns the oldest element; the ring must not be empty.
func (r *ring[T]) pop() T {
	var zero T
	p := r.at(0)
	v := *p
	*p = zero
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	if r.n == 0 && len(r.buf) > 4*ringMin {
		*r = ring[T]{}
	}
	return v
}
