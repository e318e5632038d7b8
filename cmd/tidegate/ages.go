package main

import (
	"math"
	"slices"
	"time"
)

// ages tells which records of a lane were made after the watch began. It compares the clock of the gateway, which stands in the
// tg-id of each record, with that of this machine: the two may differ by any time, because only the shortest way of a record from
// the one to the other counts. What had arrived before the watch began was on its way for at least that long, so it was made
// earlier. Sequences are given in order, hence behind one that was made later than that all were.
type ages struct {
	quickest time.Duration // from made to arrived, by two clocks
	marks    []mark        // rising in n
	stride   uint64        // between two marks
}

type mark struct {
	n    uint64
	made time.Time
}

const (
	maxMarks   = 1024
	exactMarks = 256 // the lowest ones stay when room is made
	// ageSlack is how much quicker than any that was seen a record may have been before the watch began.
	ageSlack = 2 * time.Second
	// maxOff is how far a clock may be off; what is further is no time.
	maxOff = 200 * 365 * 24 * time.Hour
)

// note takes in a record that says when it was made.
func (a *ages) note(n uint64, made, arrived time.Time) {
	took := arrived.Sub(made)
	if took.Abs() > maxOff {
		return
	}
	switch k := len(a.marks); {
	case k == 0:
		a.quickest, a.stride = took, 1
		a.marks = []mark{{n, made}}
		return
	case n < a.marks[0].n:
		a.marks = slices.Insert(a.marks, 0, mark{n, made})
	case n >= a.marks[k-1].n+a.stride:
		a.marks = append(a.marks, mark{n, made})
	}
	a.quickest = min(a.quickest, took)
	if len(a.marks) > maxMarks {
		kept := a.marks[:exactMarks]
		for i := exactMarks; i < len(a.marks); i += 2 {
			kept = append(kept, a.marks[i])
		}
		a.marks = kept
		a.stride *= 2
	}
}

// since is the first sequence that was surely given after begun.
func (a *ages) since(begun time.Time) uint64 {
	least := begun.Add(ageSlack - a.quickest)
	for _, m := range a.marks {
		if m.made.After(least) {
			return m.n
		}
	}
	return math.MaxUint64
}
