package config

import (
	"slices"
	"strings"
)

// nearest returns the candidate that name was probably meant to be, or "" when none is near. One edit is allowed for each
// three characters or part of them; the beginning of a candidate is near too.
func nearest(name string, candidates []string) string {
	slices.Sort(candidates) // of equally near ones always the same
	best, bestEdits := "", (len(name)+2)/3+1
	for _, c := range candidates {
		if e := edits(name, c); e < bestEdits {
			best, bestEdits = c, e
		}
	}
	if i := slices.IndexFunc(candidates, func(c string) bool { return strings.HasPrefix(c, name) }); best == "" && len(name) > 2 && i >= 0 {
		return candidates[i]
	}
	return best
}

// edits returns how many insertions, deletions, replacements and swaps of neighbours turn a into b.
func edits(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b) // nobody misspells that much
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
