package wire

import (
	"math/rand/v2"
	"testing"
	"unsafe"
)

func TestSlotsAreSmallAndHoldNoPointer(t *testing.T) {
	if n := unsafe.Sizeof(slot{}); n != 40 {
		t.Errorf("a slot has %d bytes, want 40", n)
	}
}

// put claims a slot for a request and answers it.
func put(r *ring, mid uint16, hash, now uint32, grow bool) *slot {
	e := r.claim(mid, now, func(from, _ int) bool { return grow || from == 0 })
	if e != nil {
		*e = slot{con: true, hash: hash, at: now, mid: mid, state: answered}
	}
	return e
}

func TestRingRemembersTheLatest(t *testing.T) {
	for _, step := range []uint16{1, 7, 16, 255} { // how peers count their message IDs
		var r ring
		for i := range uint16(10_000) {
			put(&r, i*step, uint32(i), uint32(i), true)
			if r.find(i*step, uint32(i), uint32(i)) == nil {
				t.Fatalf("step %d: %d is not found", step, i)
			}
		}
		if step%2 == 0 {
			continue // some sets stay empty
		}
		for i := uint16(10_000 - mostSlots); i < 10_000; i++ {
			if r.find(i*step, uint32(i), 10_000) == nil {
				t.Fatalf("step %d: %d of 10,000 is forgotten in a ring of %d", step, i, len(r))
			}
		}
	}
}

func TestRingGrowsOnlyForWhatIsYoung(t *testing.T) {
	var r ring
	for i := range uint16(1000) { // one in two minutes: three are remembered
		put(&r, i, uint32(i), uint32(i)*120_000, true)
	}
	if len(r) != firstSlots {
		t.Errorf("%d slots, want %d", len(r), firstSlots)
	}
	for i := range uint16(10) {
		put(&r, i, uint32(i), 2_000_000_000, true)
	}
	if len(r) != 16 {
		t.Errorf("%d slots, want 16", len(r))
	}
}

func TestRingKeepsWhatWaits(t *testing.T) {
	var r ring
	for i := range uint16(16) {
		put(&r, i, uint32(i), 0, true).state = waiting
	}
	r.set(3)[0].state = answered // the only one that may be overwritten
	mid := r.set(3)[0].mid
	if e := r.claim(99, 0, func(int, int) bool { return false }); e == nil || e.mid != mid {
		t.Fatalf("claimed %+v", e)
	}
	r.set(3)[0].state = accepted
	if e := r.claim(99, 1<<31, func(int, int) bool { return false }); e != nil {
		t.Errorf("claimed %+v, which waits for its answer", e)
	}
	if e := r.pending(mid, uint32(mid)); e == nil || e.state != accepted {
		t.Errorf("pending %+v", e)
	}
}

// TestRingAgainstAModel: what the ring finds was put there and is young, and it is never an older request of the same number.
func TestRingAgainstAModel(t *testing.T) {
	type key struct {
		mid  uint16
		hash uint32
	}
	for range 50 {
		var r ring
		model := map[key]uint32{}
		now := rand.Uint32() // millisecond counters begin again
		for range 3000 {
			now += rand.Uint32N(2000)
			k := key{uint16(rand.N(300)), rand.Uint32N(3)}
			at, known := model[k]
			young := known && now-at < exchangeLifetime
			found := r.find(k.mid, k.hash, now)
			if found != nil && (!young || found.at != at) {
				t.Fatalf("found %+v at %d, put there at %d (%v)", found, now, at, known)
			}
			if found == nil {
				if put(&r, k.mid, k.hash, now, rand.IntN(2) == 0) == nil {
					t.Fatal("no slot")
				}
				model[k] = now
			}
		}
	}
}

func TestStash(t *testing.T) {
	s := newStash(1000)
	numbers := map[uint32]byte{}
	var last uint32
	for i := range 5000 {
		b := make([]byte, 1+rand.IntN(200))
		b[0] = byte(i)
		n := s.put(b)
		if n <= last {
			t.Fatalf("number %d after %d", n, last)
		}
		last = n
		numbers[n] = byte(i)
		if s.bytes > 1000 {
			t.Fatalf("%d bytes", s.bytes)
		}
		if got := s.get(n); got == nil || got[0] != byte(i) {
			t.Fatalf("%d is %v", n, got)
		}
	}
	held := 0
	for n, first := range numbers {
		if b := s.get(n); b != nil {
			held++
			if b[0] != first {
				t.Errorf("%d is another one", n)
			}
		}
	}
	if held < 4 || len(s.held) > 2*held+2 {
		t.Errorf("%d held of %d", held, len(s.held))
	}
	if n := s.put(make([]byte, 1001)); n != 0 {
		t.Errorf("what is too large got the number %d", n)
	}
	if s.get(0) != nil || s.get(last+1) != nil {
		t.Error("found what was never put")
	}
	s.first = 1<<32 - 2 - uint32(len(s.held)) // the numbers begin again
	for range 5 {
		if n := s.put([]byte{7}); n == 0 || s.get(n)[0] != 7 {
			t.Errorf("number %d", n)
		}
	}
}
