package forwarder

import (
	"encoding/binary"
	"errors"
	"fmt"

	"tidegate/message"
)

// A record is what the buffer keeps of one copy, and exactly what will be sent: the message is stored as its route shaped
// it, so a change of the configuration does not change what is already on disk.
//
//	+---------------------+-------+--------------------------+
//	| length of the route | route | message, see the package |
//	| uvarint             | name  | message for its bytes    |
//	+---------------------+-------+--------------------------+
//
// A dead letter is a reason in front of a record:
//
//	+----------------------+--------+--------+
//	| length of the reason | reason | record |
//	| uvarint              |        |        |
//	+----------------------+--------+--------+

var errRecordCut = errors.New("record is cut short")

// appendRecord appends the record of m, shaped by the route, to b. It also returns where in that the message begins.
func appendRecord(b []byte, route string, m *message.Message) (rec []byte, at int, err error) {
	rec = appendText(b, route)
	at = len(rec)
	if rec, err = m.AppendBinary(rec); err != nil {
		return b, 0, err
	}
	return rec, at, nil
}

// splitRecord takes a record apart without decoding its message. Both parts alias rec.
func splitRecord(rec []byte) (route, msg []byte, err error) {
	route, msg, err = cutText(rec)
	if err != nil {
		return nil, nil, fmt.Errorf("read route of a record of %d bytes: %w", len(rec), err)
	}
	return route, msg, nil
}

// appendDeadLetter appends a dead letter to b.
func appendDeadLetter(b []byte, reason string, rec []byte) []byte {
	return append(appendText(b, reason), rec...)
}

// splitDeadLetter takes a dead letter apart. Both parts alias b.
func splitDeadLetter(b []byte) (reason, rec []byte, err error) {
	reason, rec, err = cutText(b)
	if err != nil {
		return nil, nil, fmt.Errorf("read reason of a dead letter of %d bytes: %w", len(b), err)
	}
	return reason, rec, nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func cutText(b []byte) (text, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, errRecordCut
	}
	return b[w : w+int(n)], b[w+int(n):], nil
}
