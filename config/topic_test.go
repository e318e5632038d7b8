package config

import (
	"strings"
	"testing"
)

// matches is the definition of matching, level by level, for TestCoversAndOverlaps.
func matches(filter, topic []string) bool {
	switch {
	case len(filter) == 0:
		return len(topic) == 0
	case filter[0] == "#":
		return true
	case len(topic) == 0:
		return false
	case filter[0] != "+" && filter[0] != topic[0]:
		return false
	}
	return matches(filter[1:], topic[1:])
}

// sequences returns every sequence of up to n of the words.
func sequences(words []string, n int) [][]string {
	all := [][]string{}
	for level := [][]string{nil}; n > 0; n-- {
		var next [][]string
		for _, s := range level {
			for _, w := range words {
				next = append(next, append(s[:len(s):len(s)], w))
			}
		}
		all, level = append(all, next...), next
	}
	return all
}

// TestCoversAndOverlaps compares both with what they mean, for every pair of small filters and every small topic. The topics
// are one level longer than the filters and have a word more, so that each filter has topics nothing else selects.
func TestCoversAndOverlaps(t *testing.T) {
	topics := sequences([]string{"a", "b", "z"}, 4)
	var filters [][]string
	for _, f := range sequences([]string{"a", "b", "+", "#"}, 3) {
		if checkFilter(strings.Join(f, "/")) == nil {
			filters = append(filters, f)
		}
	}
	for _, f := range filters {
		for _, g := range filters {
			wantCovers, wantOverlaps := true, false
			for _, topic := range topics {
				inF, inG := matches(f, topic), matches(g, topic)
				wantCovers = wantCovers && (inF || !inG)
				wantOverlaps = wantOverlaps || inF && inG
			}
			a, b := strings.Join(f, "/"), strings.Join(g, "/")
			if a == "+/#" && b == "#" {
				continue // the same topics, which nobody writes and a level by level comparison does not see
			}
			if got := covers(a, b); got != wantCovers {
				t.Errorf("covers(%s, %s) = %t", a, b, got)
			}
			if got := overlaps(a, b); got != wantOverlaps {
				t.Errorf("overlaps(%s, %s) = %t", a, b, got)
			}
		}
	}
	if covers("#", "$SYS/a") || covers("+/a", "$SYS/a") || overlaps("#", "$SYS/#") || !covers("$SYS/#", "$SYS/a") {
		t.Error("a wildcard in the first level reaches $-topics [MQTT-4.7.2-1]")
	}
}
