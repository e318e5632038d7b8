package edge

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The library's decoder reads what it looks for and passes over much that a packet must not have: bytes behind its end, properties
// twice, values that are not allowed, lengths that do not fit. Packets are looked through for that first. Which property a packet may
// have, and that text is UTF-8, the library sees.

// What makes a packet malformed (MQTT 5.0, 1.2; 3.1.1, 4.8).
var (
	errCut      = errors.New("ends in the middle")
	errSurplus  = errors.New("has bytes behind its end")
	errReserved = errors.New("has reserved bits or values")
	errTwice    = errors.New("has a property twice")
	errLonger   = errors.New("has a length in more bytes than it needs")
	errFlags    = errors.New("has flags that exclude each other")
	errText     = errors.New("has a text that is no UTF-8")
)

// wellFormed looks through the body of a packet that a client sends.
func wellFormed(head packets.FixedHeader, version byte, body []byte) error {
	f := fields{rest: body}
	switch head.Type {
	case packets.Connect:
		f.connect()
	case packets.Publish:
		f.text()
		if head.Qos > 0 {
			f.take(2)
		}
		f.properties(version)
		return f.err // the rest is payload
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		f.take(2)
		f.reason(version)
	case packets.Subscribe:
		f.take(2)
		f.properties(version)
		for f.more() {
			f.text()
			if o := f.byte(); version == 5 && o&0xc0 != 0 || version < 5 && o&0xfc != 0 { // [MQTT-3.8.3-5], [MQTT-3.8.3-4] of 3.1.1
				f.fail(errReserved)
			}
		}
	case packets.Unsubscribe:
		f.take(2)
		f.properties(version)
		for f.more() {
			f.text()
		}
	case packets.Disconnect, packets.Auth:
		f.reason(version)
	}
	if f.more() {
		return errSurplus
	}
	return f.err
}

// fields takes the fields of a packet off its front. After an error there are no more.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) fail(err error) {
	if f.err == nil {
		f.err = err
	}
	f.rest = nil
}

func (f *fields) more() bool { return len(f.rest) > 0 }

func (f *fields) take(n int) []byte {
	if n > len(f.rest) {
		f.fail(errCut)
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

// text takes a text or binary data: two bytes of length and so many more.
func (f *fields) text() []byte {
	if b := f.take(2); b != nil {
		return f.take(int(binary.BigEndian.Uint16(b)))
	}
	return nil
}

// length takes a variable byte integer [MQTT-1.5.5-1].
func (f *fields) length() (n int) {
	for shift := 0; shift < 28; shift += 7 {
		b := f.byte()
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			if b == 0 && shift > 0 {
				f.fail(errLonger)
			}
			return n
		}
	}
	f.fail(errReserved)
	return 0
}

// connect takes a CONNECT.
func (f *fields) connect() {
	const user, password, willRetain, willQoS, will, reserved = 0x80, 0x40, 0x20, 0x18, 0x04, 0x01
	f.text()
	version, flags := f.byte(), f.byte()
	f.take(2)
	switch {
	case version > 5 && f.err == nil:
		f.rest = nil // of another protocol; it is answered
		return
	case flags&reserved != 0: // [MQTT-3.1.2-3]
		f.fail(errReserved)
	case flags&will == 0 && flags&(willRetain|willQoS) != 0: // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
		f.fail(errFlags)
	case version < 5 && flags&user == 0 && flags&password != 0: // [MQTT-3.1.2-22] of 3.1.1
		f.fail(errFlags)
	}
	f.properties(version)
	f.text()
	if flags&will != 0 {
		f.properties(version)
		f.text()
		f.text()
	}
	if flags&user != 0 {
		if name := f.text(); !utf8.Valid(name) { // [MQTT-3.1.3-12]
			f.fail(errText)
		}
	}
	if flags&password != 0 {
		f.text()
	}
}

// reason takes the reason code and properties of an acknowledgement, a DISCONNECT or an AUTH, each of which may be left out, and
// which are there in version 5 only.
func (f *fields) reason(version byte) {
	if version < 5 || !f.more() {
		return
	}
	f.byte()
	if f.more() {
		f.properties(version)
	}
}

// Kinds of a property's value (MQTT 5.0, 2.2.2.2).
const (
	flagKind   = iota + 1 // a byte, 0 or 1
	shortKind             // two bytes
	longKind              // four bytes
	lengthKind            // a variable byte integer
	textKind              // text or binary data
	pairKind              // two texts
)

// Properties that are looked at by their identifier.
const (
	propUser       = 0x26
	propReceive    = 0x21
	propMaxPacket  = 0x27
	propAuthMethod = 0x15
	propAuthData   = 0x16
	propLast       = 0x2a
)

// kinds has the kind of each property; 0: there is no such property.
var kinds = [propLast + 1]byte{
	0x01: flagKind, 0x02: longKind, 0x03: textKind, 0x08: textKind, 0x09: textKind, 0x0b: lengthKind, 0x11: longKind, 0x12: textKind,
	0x13: shortKind, propAuthMethod: textKind, propAuthData: textKind, 0x17: flagKind, 0x18: longKind, 0x19: flagKind, 0x1a: textKind,
	0x1c: textKind, 0x1f: textKind, propReceive: shortKind, 0x22: shortKind, 0x23: shortKind, 0x24: flagKind, 0x25: flagKind,
	propUser: pairKind, propMaxPacket: longKind, 0x28: flagKind, 0x29: flagKind, 0x2a: flagKind,
}

// properties takes the properties of a version 5 packet; there are none in others.
func (f *fields) properties(version byte) {
	if version < 5 {
		return
	}
	p := fields{rest: f.take(f.length())}
	var seen uint64
	for p.more() {
		id := p.length()
		if id > propLast || kinds[id] == 0 {
			p.fail(errReserved)
			break
		}
		if seen&(1<<id) != 0 && id != propUser {
			p.fail(errTwice)
		}
		seen |= 1 << id
		p.property(id)
	}
	if seen&(1<<propAuthData) != 0 && seen&(1<<propAuthMethod) == 0 { // 3.1.2.11.10
		p.fail(errFlags)
	}
	if p.err != nil {
		f.fail(p.err)
	}
}

// property takes the value of one property.
func (f *fields) property(id int) {
	switch kinds[id] {
	case flagKind:
		if f.byte() > 1 {
			f.fail(errReserved)
		}
	case shortKind:
		if b := f.take(2); b != nil && id == propReceive && b[0]|b[1] == 0 { // 3.1.2.11.3
			f.fail(errReserved)
		}
	case longKind:
		if b := f.take(4); b != nil && id == propMaxPacket && binary.BigEndian.Uint32(b) == 0 { // 3.1.2.11.4
			f.fail(errReserved)
		}
	case lengthKind:
		f.length()
	case textKind:
		f.text()
	case pairKind:
		f.text()
		f.text()
	}
}
