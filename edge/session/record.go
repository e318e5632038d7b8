package session

import (
	"encoding/binary"
	"errors"
	"fmt"

	"tidegate/message"
)

// This file owns the bytes of stored messages, state.go those of sessions. Numbers are unsigned varints of encoding/binary
// unless said otherwise, a text is its length and its bytes, durations are milliseconds. Each record begins with its version.
//
// A record of session/messages is a message with those who take it:
//
//	+---------+--------+------------------------------------------------------------------------+---------------+
//	| version | takers | { session | flags 1 byte | [ids count, { id } ] | [filter text] }  ... | message       |
//	| 1 byte  |        | flags: QoS (2 bits), 4 retain, 8 ids, 16 filter ($share/GROUP/FILTER)  | message/codec |
//	+---------+--------+------------------------------------------------------------------------+---------------+
//
// A record of session/retained is one byte of version and the message; one without payload says that its topic has none.
const recordVersion = 1

const (
	takerQoS    = 3 // two bits
	takerRetain = 1 << 2
	takerIDs    = 1 << 3
	takerShared = 1 << 4
	takerKnown  = 1<<5 - 1
)

// taker is one session that takes a stored message, as it is read back.
type taker struct {
	number uint64
	qos    message.QoS
	retain bool
	ids    []uint32
	share  string // the filter of the shared subscription it came through; empty: its own
}

// appendTakers appends what stands before the message in a record.
func appendTakers(b []byte, takers []taking) []byte {
	b = append(b, recordVersion)
	b = binary.AppendUvarint(b, uint64(len(takers)))
	for i := range takers {
		t := &takers[i]
		flags := byte(t.qos) & takerQoS
		if t.retain {
			flags |= takerRetain
		}
		if len(t.ids) > 0 {
			flags |= takerIDs
		}
		if t.share != nil {
			flags |= takerShared
		}
		b = append(binary.AppendUvarint(b, t.s.j.number), flags)
		if len(t.ids) > 0 {
			b = binary.AppendUvarint(b, uint64(len(t.ids)))
			for _, id := range t.ids {
				b = binary.AppendUvarint(b, uint64(id))
			}
		}
		if t.share != nil {
			b = appendString(b, t.share.filter)
		}
	}
	return b
}

// appendStored appends the record of m for takers.
func appendStored(b []byte, takers []taking, m *message.Message) ([]byte, error) {
	return m.AppendBinary(appendTakers(b, takers))
}

// decodeStored reads what appendStored wrote. The payload and the correlation data are parts of b. Bytes that it cannot have
// written give an error, never a panic.
func decodeStored(b []byte) ([]taker, message.Message, error) {
	d := decoder{b: b}
	d.version()
	n := d.uvarint()
	if n > uint64(len(d.b)/2) {
		d.fail()
	}
	if d.err != nil {
		return nil, message.Message{}, d.err
	}
	takers := make([]taker, 0, n)
	for range n {
		t := taker{number: d.uvarint()}
		flags := d.byte()
		t.qos, t.retain = message.QoS(flags&takerQoS), flags&takerRetain != 0
		if flags&^takerKnown != 0 || t.qos > 2 {
			d.fail()
		}
		if flags&takerIDs != 0 {
			t.ids = d.ids()
		}
		if flags&takerShared != 0 {
			t.share = d.text()
		}
		takers = append(takers, t)
	}
	if d.err != nil {
		return nil, message.Message{}, d.err
	}
	m, err := message.Decode(d.b)
	m.ID = m.ID.Copy(0) // the bytes may be those of a copy (Riders.Message)
	return takers, m, err
}

// appendRetained appends the record of the retained message m.
func appendRetained(b []byte, m *message.Message) ([]byte, error) {
	return m.AppendBinary(append(b, recordVersion))
}

// decodeRetained reads what appendRetained wrote.
func decodeRetained(b []byte) (message.Message, error) {
	d := decoder{b: b}
	if d.version(); d.err != nil {
		return message.Message{}, d.err
	}
	return message.Decode(d.b)
}

var errCut = errors.New("session: decode record: it is cut short or damaged")

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, part []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(part))), part...)
}

// decoder takes parts off the front of b until one does not fit; after that every part is empty and err says so.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errCut
	}
	d.b = nil
}

func (d *decoder) version() {
	if v := d.byte(); d.err == nil && v != recordVersion {
		d.fail()
		d.err = fmt.Errorf("session: decode record: version %d, want %d", v, recordVersion)
	}
}

func (d *decoder) take(n uint64) []byte {
	if d.err != nil || n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	part := d.b[:n:n]
	d.b = d.b[n:]
	return part
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

// id reads a packet identifier.
func (d *decoder) id() uint16 {
	v := d.uvarint()
	if v > lastID {
		d.fail()
	}
	return uint16(v)
}

// count reads how many things of at least one byte follow.
func (d *decoder) count() int {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

// ids reads subscription identifiers.
func (d *decoder) ids() []uint32 {
	ids := make([]uint32, 0, d.count())
	for range cap(ids) {
		ids = append(ids, uint32(d.uvarint()))
	}
	return ids
}
