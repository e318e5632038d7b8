package buffer

// fetchGap is how many unwanted records between two wanted ones are read along rather than jumped over.
const fetchGap = 256

// Fetch calls f with those of seqs, which must rise, that are stored and durable, in order. What was acknowledged, evicted, purged or
// damaged is left out, and so is what is not durable yet: see Stored. It seeks to where the records are, does not disturb Next, and any
// number of goroutines may run it at the same time, each with a Batch of its own, whose memory is used. Rec.Data is valid during the call.
// With an error, which is one of the disk, ErrClosed, ErrDropped or a KeyError, f was not called with all of them; nothing is given up.
func (q *Queue) Fetch(seqs []Seq, b *Batch, f func(r Rec)) error {
	var at place
	defer func() { q.log.closeIdle(at.segment()) }()
	for i := 0; i < len(seqs); {
		last := i
		for last+1 < len(seqs) && seqs[last+1]-seqs[last] <= fetchGap {
			last++
		}
		left := at.segment()
		found, err := q.pullTo(seqs[i]-1, seqs[last], b, &at, false)
		if left != at.segment() {
			q.log.closeIdle(left)
		}
		if err != nil {
			return err
		}
		if !found {
			i = last + 1
			continue
		}
		for _, r := range b.Recs {
			for i < len(seqs) && seqs[i] < r.Seq {
				i++
			}
			if i < len(seqs) && seqs[i] == r.Seq {
				f(r)
				i++
			}
		}
	}
	return nil
}
