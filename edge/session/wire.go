package session

import (
	"encoding/binary"
	"time"

	"tidegate/message"
)

// Fixed header bytes of the packets a session writes.
const (
	headPublish = 0x30
	headPubrel  = 0x62 // the reserved bits of PUBREL are 0010 [MQTT-3.6.1-1]

	flagDup    = 0x08
	flagRetain = 0x01
)

// Identifiers of the MQTT 5 properties a PUBLISH carries.
const (
	propPayloadFormat = 1
	propExpiry        = 2
	propContentType   = 3
	propResponseTopic = 8
	propCorrelation   = 9
	propSubscription  = 11
	propTopicAlias    = 35
	propUser          = 38
)

// publish is all that varies between the copies of one message.
type publish struct {
	version byte
	id      uint16 // packet identifier, 0 with QoS 0
	qos     message.QoS
	dup     bool
	retain  bool
	subs    []uint32 // subscription identifiers
	alias   uint16   // 0: none
	known   bool     // the client knows the alias: the topic name is left out
}

// appendPublish appends the PUBLISH packet of m to dst.
func appendPublish(dst []byte, m *message.Message, p publish, now time.Time) []byte {
	topic := m.Topic
	if p.known {
		topic = ""
	}
	props := 0
	if p.version == 5 {
		props = propertyLen(m, p)
	}
	n := 2 + len(topic) + len(m.Payload)
	if p.qos > 0 {
		n += 2
	}
	if p.version == 5 {
		n += varintLen(props) + props
	}
	head := byte(headPublish) | byte(p.qos)<<1
	if p.dup {
		head |= flagDup
	}
	if p.retain {
		head |= flagRetain
	}
	dst = append(dst, head)
	dst = appendVarint(dst, n)
	dst = appendText(dst, topic)
	if p.qos > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.id)
	}
	if p.version == 5 {
		dst = appendVarint(dst, props)
		dst = appendProperties(dst, m, p, now)
	}
	return append(dst, m.Payload...)
}

func propertyLen(m *message.Message, p publish) int {
	n := 0
	if m.PayloadUTF8 {
		n += 2
	}
	if !m.Expires.IsZero() {
		n += 5
	}
	if m.ContentType != "" {
		n += 3 + len(m.ContentType)
	}
	if m.ResponseTopic != "" {
		n += 3 + len(m.ResponseTopic)
	}
	if m.CorrelationData != nil {
		n += 3 + len(m.CorrelationData)
	}
	for _, id := range p.subs {
		n += 1 + varintLen(int(id))
	}
	if p.alias > 0 {
		n += 3
	}
	for _, u := range m.Properties {
		n += 5 + len(u.Key) + len(u.Value)
	}
	return n
}

func appendProperties(dst []byte, m *message.Message, p publish, now time.Time) []byte {
	if m.PayloadUTF8 {
		dst = append(dst, propPayloadFormat, 1)
	}
	if !m.Expires.IsZero() {
		// What remains of the interval is passed on [MQTT-3.3.2-6]; a message is not sent with 0.
		left := max(1, (m.Expires.Sub(now)+time.Second-1)/time.Second)
		dst = append(dst, propExpiry)
		dst = binary.BigEndian.AppendUint32(dst, uint32(min(left, 1<<32-1)))
	}
	if m.ContentType != "" {
		dst = appendText(append(dst, propContentType), m.ContentType)
	}
	if m.ResponseTopic != "" {
		dst = appendText(append(dst, propResponseTopic), m.ResponseTopic)
	}
	if m.CorrelationData != nil {
		dst = append(dst, propCorrelation)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(m.CorrelationData)))
		dst = append(dst, m.CorrelationData...)
	}
	for _, id := range p.subs {
		dst = appendVarint(append(dst, propSubscription), int(id))
	}
	if p.alias > 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, propTopicAlias), p.alias)
	}
	for _, u := range m.Properties {
		dst = appendText(append(dst, propUser), u.Key)
		dst = appendText(dst, u.Value)
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// appendVarint appends n as a variable byte integer [MQTT-1.5.5-1].
func appendVarint(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

func varintLen(n int) int {
	l := 1
	for n >>= 7; n > 0; n >>= 7 {
		l++
	}
	return l
}

// appendPubrel appends the PUBREL packet that answers a PUBREC; without properties it is the same in both versions.
func appendPubrel(dst []byte, id uint16) []byte {
	return append(dst, headPubrel, 2, byte(id>>8), byte(id))
}
