package wire

import "sync"

// stash keeps the answers that are too large for a slot, those of all peers, until their bytes pass its bound; then the
// oldest make room. A slot names its answer by a number that is given once.
type stash struct {
	// mu is the last to be taken: nothing is called with it held.
	mu    sync.Mutex
	bound int
	bytes int
	first uint32 // number of held[0]
	held  [][]byte
	gone  int // held[:gone] made room
}

func newStash(bound int) *stash { return &stash{bound: bound, first: 1} }

// put keeps b, which it owns from then on, and returns its number, or 0 when b alone is larger than the bound.
func (s *stash) put(b []byte) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b) > s.bound {
		return 0
	}
	if s.first+uint32(len(s.held)) == 0 { // the numbers begin again, and 0 is none of them
		s.held = append(s.held, nil)
	}
	s.held = append(s.held, b)
	s.bytes += len(b)
	for s.bytes > s.bound {
		s.bytes -= len(s.held[s.gone])
		s.held[s.gone] = nil
		s.gone++
	}
	if s.gone > len(s.held)/2 { // each is moved once, on average
		s.first += uint32(s.gone)
		n := copy(s.held, s.held[s.gone:])
		clear(s.held[n:])
		s.held, s.gone = s.held[:n], 0
	}
	return s.first + uint32(len(s.held)) - 1
}

// get returns what put kept under a number, or nil when it made room. It must not be changed.
func (s *stash) get(number uint32) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := number - s.first; int64(i) < int64(len(s.held)) {
		return s.held[i]
	}
	return nil
}
