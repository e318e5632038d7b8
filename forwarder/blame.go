package forwarder

import "errors"

// A cloud broker refuses a record by a reason code, or by closing the connection over it (suspect.go). Either is evidence
// against the record only while the same broker takes others: one with a broken rule or a sick back end refuses all of them,
// in the same words, and the buffer must not be emptied into the dead letters over that.
//
// So only a few records in a row become dead letters while nothing else is taken: where there are several servers one, by the
// word of two of them or of one that has taken others over the same connection. A further one that is refused stays in the buffer
// and is skipped, and those behind it are tried. When one of these is taken, the skipped ones are sent once more, and become dead
// letters if they are refused again. When none is, the broker is at fault: the uplink is given the chance to use another server,
// sending pauses with an alarm, and begins again with the first record. The price: a record that is taken in the moment in which
// a broker recovers comes before those that were skipped.
const (
	// blameByCode and blameByClose are how many records in a row may be blamed with no other one taken.
	blameByCode  = 32
	blameByClose = 3
	// skipByCode and skipByClose are how many are skipped before the broker is at fault; twice as many in the next round, up to
	// skipMost, so that a long run of bad records is passed in the end.
	skipByCode  = 1000
	skipByClose = 2
	skipMost    = 16000
)

// blame decides between the records and the broker. The zero value is ready; it belongs to the drain's goroutine.
type blame struct {
	several bool                   // there are several servers
	by      map[recordKey]string   // where they are: which server refused a record first, since one was taken
	blamed  map[recordKey]struct{} // made dead letters since a record was taken
	skipped map[recordKey]struct{} // refused since then and kept
	again   map[recordKey]struct{} // those that were skipped when a record was taken
	rounds  int                    // that ended with the broker at fault, in a row
}

// due reports whether a record that a server refused is to become a dead letter. limit is how many in a row may, and proven
// says whether anything was taken over the connection.
func (b *blame) due(key recordKey, limit int, server string, proven bool) bool {
	if _, known := b.again[key]; known {
		return true
	}
	if b.several {
		first, known := b.by[key]
		if limit = 0; proven || known && first != server {
			limit = 1
		}
		if !known && len(b.by) < skipMost {
			if b.by == nil {
				b.by = map[recordKey]string{}
			}
			b.by[key] = server
		}
	}
	if _, known := b.blamed[key]; known { // the disk did not take it the last time
		return true
	}
	if len(b.blamed) >= limit {
		return false
	}
	if b.blamed == nil {
		b.blamed = map[recordKey]struct{}{}
	}
	b.blamed[key] = struct{}{}
	return true
}

// skip keeps a refused record. It reports false when there are too many of them: the broker is at fault, and all is forgiven.
func (b *blame) skip(key recordKey, first int) bool {
	if b.skipped == nil {
		b.skipped = map[recordKey]struct{}{}
	}
	b.skipped[key] = struct{}{}
	if len(b.skipped) < min(first<<min(b.rounds, 16), skipMost) {
		return true
	}
	b.rounds++
	b.forgive()
	return false
}

// skips reports whether a record is to be passed over.
func (b *blame) skips(key recordKey) bool {
	if len(b.skipped) == 0 {
		return false
	}
	_, ok := b.skipped[key]
	return ok
}

// taken notes that the cloud took a record. It reports whether skipped ones are to be sent again now.
func (b *blame) taken(key recordKey) bool {
	b.rounds = 0
	clear(b.blamed)
	clear(b.by)
	delete(b.again, key)
	if len(b.skipped) == 0 {
		return false
	}
	b.again, b.skipped = b.skipped, nil
	return true
}

// buried notes that a record is a dead letter.
func (b *blame) buried(key recordKey) { delete(b.again, key) }

// forgive lets everything that was refused be sent again.
func (b *blame) forgive() { b.skipped, b.again = nil, nil }

// local reports whether it was the link that refused a record, knowing what the cloud takes: then there is no doubt.
func local(err error) bool {
	var l interface{ Local() bool }
	return errors.As(err, &l) && l.Local()
}
