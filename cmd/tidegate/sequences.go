package main

// sequences is what is known of the numbers of one lane of one uplink. Each number from the lowest to the highest that came has
// come, or is missing, or is excused: it is missing and the gateway said that it will not come. What has come needs no memory of
// its own, so a lane of which everything came takes none, and one that loses records takes that of its gaps.
type sequences struct {
	low, high uint64 // the lowest and the highest that came; 0: none did
	missing   ranges
	excused   ranges
	announced ranges // what the gateway said below low and above high

	// The bounds of the memory leave these. Nothing here is taken for a loss, and nothing for proved.

	dropped  uint64  // missing, and let go of: of these only the number is known
	droppedT uint64  // the highest of them
	late     uint64  // numbers among the dropped ones that came or were announced after all, or came again: nobody knows
	unlisted uint64  // excused, and let go of
	blurred  [2]span // announced below low, and above high, and let go of: from where to where
	doubtful uint64  // missing, where it is not known any more whether they were announced
}

// span covers numbers without saying which; the zero value covers none.
type span numbers

func (s *span) cover(x numbers) {
	if s.to == 0 {
		*s = span(x)
		return
	}
	s.from, s.to = min(s.from, x.from), max(s.to, x.to)
}

// arrive notes a number that came and reports whether it is the first time.
func (s *sequences) arrive(n uint64) bool {
	switch {
	case s.high == 0:
		s.low, s.high = n, n
	case n > s.high:
		s.open(s.high+1, n-1)
		s.high = n
	case n < s.low:
		s.open(n+1, s.low-1)
		s.low = n
	case s.missing.remove(n), s.excused.remove(n):
		return true
	default:
		if n <= s.droppedT {
			s.late++
		}
		return false
	}
	s.announced.remove(n)
	return true
}

// open notes that the numbers between two that came have not come.
func (s *sequences) open(from, to uint64) {
	if from > to {
		return
	}
	said := s.announced.cut(from, to)
	for _, x := range said {
		s.excused.add(x.from, x.to)
	}
	for _, x := range without(from, to, said) {
		sure := s.sure(x)
		for _, x := range sure {
			s.missing.add(x.from, x.to)
		}
		s.doubtful += x.count() - countOf(sure)
	}
}

// sure is what of x is in no blurred span.
func (s *sequences) sure(x numbers) []numbers {
	var blur ranges
	for _, b := range s.blurred {
		if b.to > 0 {
			blur.add(b.from, b.to)
		}
	}
	return without(x.from, x.to, blur.within(x.from, x.to))
}

// announce notes that the gateway said that numbers will not come.
func (s *sequences) announce(from, to uint64) {
	if s.high == 0 {
		s.announced.add(from, to)
		return
	}
	if from < s.low {
		s.announced.add(from, min(to, s.low-1))
	}
	if to > s.high {
		s.announced.add(max(from, s.high+1), to)
	}
	from, to = max(from, s.low), min(to, s.high)
	if from > to {
		return
	}
	for _, x := range s.missing.cut(from, to) {
		s.excused.add(x.from, x.to)
	}
	if to = min(to, s.droppedT); from <= to {
		s.late += to - from + 1 - countOf(s.excused.within(from, to))
	}
}

// large reports whether there are more than limit ranges of a kind.
func (s *sequences) large(limit int) bool {
	return max(len(s.missing.list), len(s.excused.list), len(s.announced.list)) > limit
}

// trim halves what has more than limit ranges. Numbers below judged are none that a loss is told of.
func (s *sequences) trim(limit int, judged uint64) {
	if k := len(s.missing.list); k > limit {
		for _, x := range s.missing.list[:k/2] {
			s.droppedT = x.to
			if x.to >= judged {
				s.dropped += x.to - max(x.from, judged) + 1
			}
		}
		s.missing.drop(0, k/2)
	}
	if k := len(s.excused.list); k > limit {
		s.unlisted += countOf(s.excused.list[:k/2])
		s.excused.drop(0, k/2)
	}
	if k := len(s.announced.list); k > limit {
		// The furthest ones go: those that matter next stay.
		below := s.announced.at(s.low)
		side, from, to := 1, below+(k-below)/2, k
		if below > k/2 {
			side, from, to = 0, 0, below/2
		}
		for _, x := range s.announced.list[from:to] {
			s.blurred[side].cover(x)
		}
		s.announced.drop(from, to)
	}
}

// unsure counts the missing numbers of which it is not known whether they were announced or came.
func (s *sequences) unsure() uint64 { return s.doubtful + min(s.late, s.dropped) }

// lost counts the missing numbers from judged on that nobody announced.
func (s *sequences) lost(judged uint64) uint64 {
	return s.dropped - min(s.late, s.dropped) + countOf(s.missing.within(judged, maxSequence))
}
