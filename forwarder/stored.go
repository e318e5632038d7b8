package forwarder

import (
	"fmt"
	"strconv"

	"tidegate/buffer"
	"tidegate/message"
)

// Stored is what a record or a dead letter holds, for those who list or export the buffer.
type Stored struct {
	Route string
	// Reason says why it is a dead letter; empty for records.
	Reason string
	// Message is as it was to be sent. Its payload is a part of the bytes that were read.
	Message message.Message
}

// ReadRecord reads a record of an uplink's lane.
func ReadRecord(rec []byte) (Stored, error) {
	route, body, err := splitRecord(rec)
	if err != nil {
		return Stored{}, err
	}
	m, err := message.Decode(body)
	if err != nil {
		return Stored{}, fmt.Errorf("read record: %w", err)
	}
	return Stored{Route: string(route), Message: m}, nil
}

// ReadDeadLetter reads a record of an uplink's dead letters.
func ReadDeadLetter(b []byte) (Stored, error) {
	reason, rec, err := splitDeadLetter(b)
	if err != nil {
		return Stored{}, err
	}
	s, err := ReadRecord(rec)
	s.Reason = string(reason)
	return s, err
}

// SequenceText writes the tg-seq of a record: EPOCH-LANE-N.
func SequenceText(epoch uint64, lane string, seq buffer.Seq) string {
	b := make([]byte, 0, 40)
	b = strconv.AppendUint(b, epoch, 36)
	b = append(b, '-')
	b = append(b, lane...)
	b = append(b, '-')
	return string(strconv.AppendUint(b, uint64(seq), 10))
}

// epochText is how an epoch is written in identities and reports.
func epochText(epoch uint64) string { return strconv.FormatUint(epoch, 36) }
