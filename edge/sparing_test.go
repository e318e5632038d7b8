package edge

import (
	"fmt"
	"testing"
	"time"
)

// One client's refusals do not hide another's, the table is bounded, and what is kept silent is counted.
func TestSparing(t *testing.T) {
	var s sparing
	now := time.Now()
	due := func(client string, after time.Duration, want bool, silent int) {
		t.Helper()
		n, ok := s.due(event{"refused", "busy", client}, now.Add(after))
		if ok != want || n != silent {
			t.Errorf("%s after %v: %v with %d silent, want %v with %d", client, after, ok, n, want, silent)
		}
	}
	due("a", 0, true, 0)
	due("b", 0, true, 0)
	due("a", time.Second, false, 0)
	due("a", 2*time.Second, false, 0)
	due("a", sparingEvery, true, 2)
	due("a", sparingEvery+1, false, 0)
	for i := range 3 * sparingMost { // after the time of "b", before that of "a"
		s.due(event{"refused", "busy", fmt.Sprint(i)}, now.Add(sparingEvery+time.Second))
	}
	if n := len(s.last); n > sparingMost+1 {
		t.Errorf("%d entries", n)
	}
	// "b" made room for one of them. All others that found none count for the next one that is logged, but the first of
	// them, which was logged itself.
	due("0", 3*sparingEvery, true, 3*sparingMost-(sparingMost-1)-1)
}
