package uplink

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// This file owns the bytes of the packets that are sent and received in numbers: PUBLISH and the four acknowledgements.
//
//	PUBLISH   0x30 | dup<<3 | qos<<1 | retain, remaining length, topic, identifier, [5: properties], payload
//	PUBACK    0x40, remaining length, identifier [5: reason code [, properties]]
//	PUBREC    0x50, PUBREL 0x62, PUBCOMP 0x70: as PUBACK
//
// The packets of a connection's start and end go through mochi's codec, in handshake.go.

// The protocol levels of a CONNECT.
const (
	version311 = 4
	version5   = 5
)

// The property identifiers of a PUBLISH (MQTT 5.0, 2.2.2.2).
const (
	propPayloadFormat   = 1
	propExpiry          = 2
	propContentType     = 3
	propResponseTopic   = 8
	propCorrelationData = 9
	propUser            = 38
)

const (
	// maxText is the longest string or binary value (MQTT 5.0, 1.5.4).
	maxText = 65535
	// maxRemaining is the largest remaining length (MQTT 5.0, 1.5.5).
	maxRemaining = 268435455
	// maxIncoming bounds a packet from the broker; a larger one ends the connection. It is announced on MQTT 5.
	maxIncoming = 16 << 20
)

// publication is what is needed to write one PUBLISH.
type publication struct {
	m        *message.Message
	identity Identity
	packetID uint16
	qos      byte
	retain   bool
}

// appendPublish appends the PUBLISH to b. The caller has made sure by check that it can be written.
func appendPublish(b []byte, version byte, p publication) []byte {
	flags := p.qos << 1
	if p.retain {
		flags |= 1
	}
	props := propertiesLen(p)
	n := 2 + len(p.m.Topic) + 2 + len(p.m.Payload)
	if version == version5 {
		n += lengthLen(props) + props
	}
	b = append(b, packets.Publish<<4|flags)
	b = appendLength(b, n)
	b = appendText(b, p.m.Topic)
	b = binary.BigEndian.AppendUint16(b, p.packetID)
	if version == version5 {
		b = appendLength(b, props)
		b = appendProperties(b, p)
	}
	return append(b, p.m.Payload...)
}

// check reports why p cannot be written as a PUBLISH of at most limit bytes (0: no limit); nil when it can.
func check(version byte, p publication, limit uint32) error {
	if err := message.ValidName(p.m.Topic); err != nil {
		return &RefusedError{Code: codeTopicInvalid, Reason: err.Error(), Local: true}
	}
	n := 2 + len(p.m.Topic) + 2 + len(p.m.Payload)
	if version == version5 {
		if len(p.m.ContentType) > maxText || len(p.m.ResponseTopic) > maxText || len(p.m.CorrelationData) > maxText {
			return &RefusedError{Code: codePacketTooLarge, Reason: "a property is longer than 65535 bytes", Local: true}
		}
		for _, u := range p.m.Properties {
			if len(u.Key) > maxText || len(u.Value) > maxText {
				return &RefusedError{Code: codePacketTooLarge, Reason: "a user property is longer than 65535 bytes", Local: true}
			}
		}
		props := propertiesLen(p)
		n += lengthLen(props) + props
	}
	if n > maxRemaining || limit > 0 && uint64(n)+uint64(1+lengthLen(n)) > uint64(limit) {
		return &RefusedError{Code: codePacketTooLarge, Reason: fmt.Sprintf("%d bytes, the broker takes %d", n, limit), Local: true}
	}
	return nil
}

// responseTopic is empty where the message has none that may be sent: one with wildcards would make the broker end the
// connection ([MQTT-3.3.2-14]), again and again.
func responseTopic(m *message.Message) string {
	if strings.ContainsAny(m.ResponseTopic, "+#") {
		return ""
	}
	return m.ResponseTopic
}

// identityKey reports whether key is one of those that appendProperties writes itself. A device cannot forge them: its
// own properties of that name are left out when there is an identity.
func identityKey(key string) bool {
	return key == "tg-id" || key == "tg-seq" || key == "tg-src" || key == "tg-up"
}

func (i Identity) properties() [4]message.Property {
	return [4]message.Property{
		{Key: "tg-id", Value: i.ID}, {Key: "tg-seq", Value: i.Seq}, {Key: "tg-src", Value: i.Src}, {Key: "tg-up", Value: i.Up},
	}
}

func propertiesLen(p publication) int {
	n := 0
	if p.m.PayloadUTF8 {
		n += 2
	}
	if !p.m.Expires.IsZero() {
		n += 5
	}
	if p.m.ContentType != "" {
		n += 3 + len(p.m.ContentType)
	}
	if t := responseTopic(p.m); t != "" {
		n += 3 + len(t)
	}
	if p.m.CorrelationData != nil {
		n += 3 + len(p.m.CorrelationData)
	}
	for _, u := range p.m.Properties {
		if p.identity.ID == "" || !identityKey(u.Key) {
			n += 5 + len(u.Key) + len(u.Value)
		}
	}
	for _, u := range p.identity.properties() {
		if u.Value != "" {
			n += 5 + len(u.Key) + len(u.Value)
		}
	}
	return n
}

func appendProperties(b []byte, p publication) []byte {
	if p.m.PayloadUTF8 {
		b = append(b, propPayloadFormat, 1)
	}
	if !p.m.Expires.IsZero() {
		b = append(b, propExpiry)
		b = binary.BigEndian.AppendUint32(b, remaining(p.m.Expires, time.Now()))
	}
	if p.m.ContentType != "" {
		b = appendText(append(b, propContentType), p.m.ContentType)
	}
	if t := responseTopic(p.m); t != "" {
		b = appendText(append(b, propResponseTopic), t)
	}
	if p.m.CorrelationData != nil {
		b = append(b, propCorrelationData)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.m.CorrelationData)))
		b = append(b, p.m.CorrelationData...)
	}
	for _, u := range p.m.Properties {
		if p.identity.ID == "" || !identityKey(u.Key) {
			b = appendText(appendText(append(b, propUser), u.Key), u.Value)
		}
	}
	for _, u := range p.identity.properties() {
		if u.Value != "" {
			b = appendText(appendText(append(b, propUser), u.Key), u.Value)
		}
	}
	return b
}

// remaining is the message expiry interval that is left at now, in whole seconds, at least 1: the user of the Link
// decides what is not worth sending any more.
func remaining(expires, now time.Time) uint32 {
	left := (expires.Sub(now) + time.Second - 1) / time.Second
	return uint32(min(max(left, 1), 1<<32-1))
}

// appendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP. A reason code other than 0 needs MQTT 5.
func appendAck(b []byte, kind byte, id uint16, code byte) []byte {
	first := kind << 4
	if kind == packets.Pubrel {
		first |= 2 // [MQTT-3.6.1-1]
	}
	if code == 0 {
		return append(b, first, 2, byte(id>>8), byte(id))
	}
	return append(b, first, 3, byte(id>>8), byte(id), code)
}

// ack is a PUBACK, PUBREC, PUBREL or PUBCOMP from the broker.
type ack struct {
	kind   byte
	id     uint16
	code   byte
	reason string
}

// parseAck reads the body of an acknowledgement. body may be reused after it returns.
func parseAck(kind byte, version byte, body []byte) (ack, error) {
	if len(body) < 2 || version != version5 && len(body) != 2 {
		return ack{}, fmt.Errorf("%s of %d bytes", packets.PacketNames[kind], len(body))
	}
	a := ack{kind: kind, id: binary.BigEndian.Uint16(body)}
	if len(body) > 2 {
		a.code = body[2]
	}
	if a.id == 0 {
		return ack{}, fmt.Errorf("%s with packet identifier 0", packets.PacketNames[kind])
	}
	if len(body) > 3 { // rare: a reason string or user properties
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: kind, Remaining: len(body)}, ProtocolVersion: version}
		if err := decode(pk.PubackDecode, bytes.Clone(body)); err != nil {
			return ack{}, fmt.Errorf("%s: %w", packets.PacketNames[kind], err)
		}
		a.reason = pk.Properties.ReasonString
	}
	return a, nil
}

var errTooLong = errors.New("remaining length has more than four bytes")

// readHeader reads the fixed header of a packet: its first byte and the number of bytes that follow.
func readHeader(r *bufio.Reader) (first byte, n int, err error) {
	first, err = r.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, 0, unexpected(err)
		}
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return first, n, nil
		}
	}
	return 0, 0, errTooLong
}

// unexpected makes an end of file in mid-packet what it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func lengthLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}
