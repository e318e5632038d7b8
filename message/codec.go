package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Bytes of a message on disk, version 1. Numbers are unsigned varints unless said otherwise; a text is its length and
// its bytes; times are signed varints of nanoseconds since 1970 and are there only when their flag is set.
//
//	+---------+-------+------+----------+-------+----------+--------+------+------------+
//	| version | flags | ID   | received | topic | protocol | client | user | optional … |
//	| 1 byte  |       | 16 B | time     | text  | text     | text   | text |            |
//	+---------+-------+------+----------+-------+----------+--------+------+------------+
//
// Optional, in the order of their flags: source time, expires, content type, response topic, correlation data,
// user properties (count, then key and value each). The payload is all that follows.
const codecVersion = 1

const (
	flagQoS         = 3 << 0 // two bits
	flagRetain      = 1 << 2
	flagUTF8        = 1 << 3
	flagSourceTime  = 1 << 4
	flagExpires     = 1 << 5
	flagContentType = 1 << 6
	flagResponse    = 1 << 7
	flagCorrelation = 1 << 8
	flagProperties  = 1 << 9
	flagReceived    = 1 << 10
	knownFlags      = 1<<11 - 1
)

var errCut = errors.New("cut short")

// AppendHead appends the first part of what AppendBinary does: version, flags and ID. What follows is the same for two messages that differ
// in nothing but ID, QoS and the retain flag.
func (m *Message) AppendHead(b []byte) []byte {
	b = append(b, codecVersion)
	b = binary.AppendUvarint(b, m.flags())
	return append(b, m.ID[:]...)
}

// Rest gives what follows the head in the bytes that AppendBinary wrote, as a part of b; nil where b is shorter than a head.
func Rest(b []byte) []byte {
	n := 1 // the version; then the flags
	for n < len(b) && b[n] >= 0x80 {
		n++
	}
	if n += 1 + len(ID{}); n > len(b) {
		return nil
	}
	return b[n:]
}

// AppendBinary appends the bytes of m to b. Decode reads them back. It fails only where a part is too long to be MQTT.
func (m *Message) AppendBinary(b []byte) ([]byte, error) {
	if len(m.Topic) > maxTopicBytes {
		return b, fmt.Errorf("message: encode %s: %w: topic of %d bytes", m.ID, ErrInvalid, len(m.Topic))
	}
	flags := m.flags()
	b = m.AppendHead(b)
	if flags&flagReceived != 0 {
		b = binary.AppendVarint(b, m.Received.UnixNano())
	}
	b = appendText(b, m.Topic)
	b = appendText(b, string(m.Source.Protocol))
	b = appendText(b, m.Source.Client)
	b = appendText(b, m.Source.User)
	if flags&flagSourceTime != 0 {
		b = binary.AppendVarint(b, m.SourceTime.UnixNano())
	}
	if flags&flagExpires != 0 {
		b = binary.AppendVarint(b, m.Expires.UnixNano())
	}
	if flags&flagContentType != 0 {
		b = appendText(b, m.ContentType)
	}
	if flags&flagResponse != 0 {
		b = appendText(b, m.ResponseTopic)
	}
	if flags&flagCorrelation != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.CorrelationData)))
		b = append(b, m.CorrelationData...)
	}
	if flags&flagProperties != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Properties)))
		for _, p := range m.Properties {
			b = appendText(b, p.Key)
			b = appendText(b, p.Value)
		}
	}
	return append(b, m.Payload...), nil
}

func (m *Message) flags() uint64 {
	flags := uint64(m.QoS) & flagQoS
	if m.Retain {
		flags |= flagRetain
	}
	if m.PayloadUTF8 {
		flags |= flagUTF8
	}
	if !m.SourceTime.IsZero() {
		flags |= flagSourceTime
	}
	if !m.Expires.IsZero() {
		flags |= flagExpires
	}
	if m.ContentType != "" {
		flags |= flagContentType
	}
	if m.ResponseTopic != "" {
		flags |= flagResponse
	}
	if m.CorrelationData != nil {
		flags |= flagCorrelation
	}
	if len(m.Properties) > 0 {
		flags |= flagProperties
	}
	if !m.Received.IsZero() {
		flags |= flagReceived
	}
	return flags
}

// Decode reads what AppendBinary wrote. The payload and the correlation data are parts of b, which must not change
// while they are used; texts are copied. Bytes that AppendBinary cannot have written give an error, never a panic.
func Decode(b []byte) (Message, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != codecVersion {
		return Message{}, fmt.Errorf("message: decode: version %d, want %d", v, codecVersion)
	}
	flags := d.uvarint()
	if d.err == nil && (flags&^knownFlags != 0 || flags&flagQoS == flagQoS) {
		return Message{}, fmt.Errorf("message: decode: flags %#x are not known", flags)
	}
	m := Message{QoS: QoS(flags & flagQoS), Retain: flags&flagRetain != 0, PayloadUTF8: flags&flagUTF8 != 0}
	copy(m.ID[:], d.take(uint64(len(m.ID))))
	if flags&flagReceived != 0 {
		m.Received = d.time()
	}
	m.Topic = d.text()
	m.Source = Source{Protocol: Protocol(d.text()), Client: d.text(), User: d.text()}
	if flags&flagSourceTime != 0 {
		m.SourceTime = d.time()
	}
	if flags&flagExpires != 0 {
		m.Expires = d.time()
	}
	if flags&flagContentType != 0 {
		m.ContentType = d.text()
	}
	if flags&flagResponse != 0 {
		m.ResponseTopic = d.text()
	}
	if flags&flagCorrelation != 0 {
		m.CorrelationData = d.take(d.uvarint())
	}
	if flags&flagProperties != 0 {
		m.Properties = d.properties()
	}
	if d.err != nil {
		return Message{}, fmt.Errorf("message: decode %d bytes: %w", len(b), d.err)
	}
	m.Payload = d.b
	return m, nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decoder takes parts off the front of b until one does not fit; after that every part is empty and err says so.
type decoder struct {
	b   []byte
	err error
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

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errCut
	}
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
	d.take(uint64(n))
	return v
}

func (d *decoder) time() time.Time {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return time.Time{}
	}
	d.take(uint64(n))
	return time.Unix(0, v)
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

// properties reads a count that a hostile or damaged record may have made huge: it never reserves more than the bytes
// left could hold.
func (d *decoder) properties() []Property {
	n := d.uvarint()
	if n > uint64(len(d.b)/2) || n > math.MaxInt32 {
		d.fail()
		return nil
	}
	props := make([]Property, 0, n)
	for range n {
		props = append(props, Property{Key: d.text(), Value: d.text()})
	}
	return props
}
