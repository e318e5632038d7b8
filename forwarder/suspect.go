package forwarder

import (
	"math/rand/v2"
	"time"
)

// A broker of MQTT 3.1.1 has no words to refuse a record: it closes the connection, and with many records in flight it
// does not say over which one. The connection is made again, the records are sent again, and it closes again.
//
// So the first unanswered record is suspected when the peer closed the connection over it suspectCloses times in a row. From
// then on records are sent one at a time. Only a close that follows at once on the suspected record, alone in flight on a
// connection that had shown that it works, is evidence against it; a line or a broker that comes and goes gives none. After
// condemnCloses such closes it is refused, which makes it a dead letter as far as the cloud is to be believed (blame.go). The
// connection has to stand three times as long before each try, so that a peer that closes every connection after some fixed
// time is not taken for one that dislikes the record.
const (
	suspectCloses = 3
	condemnCloses = 3
)

// suspicion follows one record.
type suspicion struct {
	key      recordKey
	closes   int // connections closed with the record unanswered and first in line
	evidence int // those of them that can only be about the record
}

func (s *suspicion) closed(key recordKey, evidence bool) {
	if key != s.key {
		*s = suspicion{key: key}
	}
	s.closes++
	if evidence {
		s.evidence++
	}
}

// active reports whether records must be sent alone.
func (s *suspicion) active() bool {
	return s.closes >= suspectCloses && s.evidence < condemnCloses
}

// condemned reports whether the record is to become a dead letter.
func (s *suspicion) condemned(key recordKey) bool {
	return s.evidence >= condemnCloses && key == s.key
}

// standing is how long a connection must have stood before the record is sent on it.
func (s *suspicion) standing(least time.Duration) time.Duration {
	for range s.evidence {
		least *= 3
	}
	return least + rand.N(least/2+1)
}

// clear ends the suspicion of a record that was answered.
func (s *suspicion) clear(key recordKey) {
	if key == s.key {
		*s = suspicion{}
	}
}
