package main

import (
	"slices"
	"sort"
)

// ranges is a set of numbers as ascending ranges that do not touch. No number is larger than maxSequence, so that one more can be
// added to it.
type ranges struct{ list []numbers }

type numbers struct{ from, to uint64 }

func (n numbers) count() uint64 { return n.to - n.from + 1 }

// at is the index of the first range that ends at n or behind it.
func (r *ranges) at(n uint64) int {
	if k := len(r.list); k == 0 || r.list[k-1].to < n {
		return k
	}
	return sort.Search(len(r.list), func(i int) bool { return r.list[i].to >= n })
}

// add adds the numbers from to to, both included.
func (r *ranges) add(from, to uint64) {
	i := r.at(from)
	if i > 0 && r.list[i-1].to+1 == from {
		i--
	}
	j := i
	for j < len(r.list) && r.list[j].from <= to+1 {
		from, to = min(from, r.list[j].from), max(to, r.list[j].to)
		j++
	}
	if i == j {
		r.list = slices.Insert(r.list, i, numbers{from, to})
		return
	}
	r.list[i] = numbers{from, to}
	r.list = slices.Delete(r.list, i+1, j)
}

// remove takes one number out and reports whether it was there.
func (r *ranges) remove(n uint64) bool {
	i := r.at(n)
	if i == len(r.list) || r.list[i].from > n {
		return false
	}
	switch x := &r.list[i]; {
	case x.from == x.to:
		r.drop(i, i+1)
	case x.from == n:
		x.from++
	case x.to == n:
		x.to--
	default:
		behind := numbers{n + 1, x.to}
		x.to = n - 1
		r.list = slices.Insert(r.list, i+1, behind)
	}
	return true
}

// cut takes out what lies in from to to, both included, and returns it.
func (r *ranges) cut(from, to uint64) []numbers {
	out := r.within(from, to)
	if len(out) == 0 {
		return nil
	}
	i := r.at(from)
	j := i + len(out)
	var rest []numbers
	if x := r.list[i]; x.from < from {
		rest = append(rest, numbers{x.from, from - 1})
	}
	if x := r.list[j-1]; x.to > to {
		rest = append(rest, numbers{to + 1, x.to})
	}
	if len(rest) == 0 {
		r.drop(i, j)
	} else {
		r.list = slices.Replace(r.list, i, j, rest...)
	}
	return out
}

// drop removes list[i:j]. At the front, where most of it happens, that moves nothing.
func (r *ranges) drop(i, j int) {
	if i == 0 {
		r.list = r.list[j:]
		return
	}
	r.list = slices.Delete(r.list, i, j)
}

// within is what lies in from to to, both included; nothing does where to is in front of from.
func (r *ranges) within(from, to uint64) []numbers {
	var out []numbers
	if from > to {
		return nil
	}
	for i := r.at(from); i < len(r.list) && r.list[i].from <= to; i++ {
		out = append(out, numbers{max(r.list[i].from, from), min(r.list[i].to, to)})
	}
	return out
}

// countOf is how many numbers ranges have.
func countOf(list []numbers) (n uint64) {
	for _, x := range list {
		n += x.count()
	}
	return n
}

// without is what of from to to is in none of the ascending ranges.
func without(from, to uint64, list []numbers) (out []numbers) {
	for _, x := range list {
		if x.from > from {
			out = append(out, numbers{from, x.from - 1})
		}
		from = x.to + 1
	}
	if from <= to {
		out = append(out, numbers{from, to})
	}
	return out
}

// pairs are ranges as a report lists them.
func pairs(list []numbers) [][2]uint64 {
	out := [][2]uint64{}
	for _, x := range list[:min(len(list), maxRangesListed)] {
		out = append(out, [2]uint64{x.from, x.to})
	}
	return out
}
