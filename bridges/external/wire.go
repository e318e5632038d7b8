package external

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

const (
	// version5 is the protocol level of a CONNECT.
	version5 = 5
	// maxCold bounds every packet of the broker but a PUBLISH.
	maxCold = 1 << 20
	// maxText is the longest string or binary value (MQTT 5.0, 1.5.4).
	maxText = 65535
)

// User properties of messages on the broker.
const (
	// propertyVia marks what members of a group publish, with the group's name: for its members it is no message of a device.
	// Brokers hand user properties on unaltered [MQTT-3.3.2-17].
	propertyVia = "tg-via"
	// propertySource names the device.
	propertySource = "tg-src"
)

// Subscription identifiers tell by which kind of subscription a message came.
const (
	idShared = 1 // one copy for the whole group, or for a gateway alone
	idLocal  = 2 // a copy for this gateway alone
)

// head is a fixed header.
type head struct {
	first  byte
	length int
}

var errLength = errors.New("a remaining length of more than four bytes")

// readHead reads the fixed header of a packet.
func readHead(r *bufio.Reader) (head, error) {
	first, err := r.ReadByte()
	if err != nil {
		return head{}, err
	}
	h := head{first: first}
	for shift := 0; shift < 28; shift += 7 { // a variable byte integer [MQTT-1.5.5-1]
		c, err := r.ReadByte()
		if err != nil {
			return head{}, cutShort(err)
		}
		h.length |= int(c&0x7F) << shift
		if c < 0x80 {
			return h, nil
		}
	}
	return head{}, errLength
}

// cutShort says that a packet has no end.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decode runs a decoder of mochi's over what the broker sent. One that fails over its input costs that connection and not the
// process.
func decode(with func([]byte) error, body []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder failed: %v", r)
		}
	}()
	return with(body)
}

// arrival is a message of the broker that has no acknowledgement yet.
type arrival struct {
	m      message.Message
	id     uint16 // packet identifier, 0 for QoS 0
	shared bool   // by a shared subscription
	local  bool   // by one of this gateway alone
	via    string // the group whose member published it; empty: none
	bad    error  // why it cannot be taken, whatever happens
}

// parsePublish reads a PUBLISH. The message shares the memory of body.
func parsePublish(first byte, body []byte, now time.Time) (arrival, error) {
	pk := packets.Packet{ProtocolVersion: version5}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return arrival{}, fmt.Errorf("publish: %w", err)
	}
	pk.FixedHeader.Remaining = len(body)
	if err := decode(pk.PublishDecode, body); err != nil {
		return arrival{}, fmt.Errorf("publish: %w", err)
	}
	p := &pk.Properties
	switch {
	case pk.FixedHeader.Qos > 0 && pk.PacketID == 0:
		return arrival{}, errors.New("publish with packet identifier 0") // [MQTT-2.2.1-3]
	case p.TopicAliasFlag: // none were granted [MQTT-3.1.2-26]
		return arrival{}, errors.New("publish with a topic alias")
	}
	a := arrival{id: pk.PacketID, m: message.Message{
		ID: message.NewIDAt(now), Topic: pk.TopicName, Payload: pk.Payload, QoS: message.QoS(pk.FixedHeader.Qos),
		Retain: pk.FixedHeader.Retain, ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData,
		PayloadUTF8: p.PayloadFormatFlag && p.PayloadFormat == 1, Received: now,
		Source: message.Source{Protocol: message.MQTT, Client: pk.TopicName},
	}}
	a.bad = message.ValidName(a.m.Topic)
	if p.MessageExpiryInterval > 0 {
		a.m.Expires = now.Add(time.Duration(p.MessageExpiryInterval) * time.Second)
	}
	for _, u := range p.User {
		switch {
		case u.Key == propertyVia:
			a.via = u.Val
		case u.Key == propertySource && u.Val != "":
			a.m.Source.Client = u.Val
		default:
			a.m.Properties = append(a.m.Properties, message.Property{Key: u.Key, Value: u.Val})
		}
	}
	a.shared, a.local = slices.Contains(p.SubscriptionIdentifier, idShared), slices.Contains(p.SubscriptionIdentifier, idLocal)
	a.shared = a.shared || !a.local // where identifiers are not in use, every subscription is shared
	return a, nil
}

// skipPublish reads the topic and the identifier of a PUBLISH that is too large, and passes over the rest.
func skipPublish(r *bufio.Reader, h head, limit int, now time.Time) (arrival, error) {
	qos := h.first >> 1 & 3
	if qos == 3 {
		return arrival{}, errors.New("publish: QoS 3") // [MQTT-3.3.1-4]
	}
	left := h.length
	take := func(n int) []byte {
		b := make([]byte, n)
		if n > left {
			return nil
		}
		left -= n
		if _, err := io.ReadFull(r, b); err != nil {
			return nil
		}
		return b
	}
	size := take(2)
	if size == nil {
		return arrival{}, errors.New("publish: cut short")
	}
	topic := take(int(binary.BigEndian.Uint16(size)))
	var id []byte
	if qos > 0 {
		id = take(2)
	}
	if topic == nil || qos > 0 && id == nil {
		return arrival{}, errors.New("publish: cut short")
	}
	if _, err := r.Discard(left); err != nil {
		return arrival{}, cutShort(err)
	}
	a := arrival{shared: true, bad: fmt.Errorf("%w: a packet of %d bytes, max_packet is %d", message.ErrTooLarge, h.length, limit)}
	a.m = message.Message{Topic: string(topic), QoS: message.QoS(qos), Received: now}
	if id != nil {
		a.id = binary.BigEndian.Uint16(id)
		if a.id == 0 {
			return arrival{}, errors.New("publish with packet identifier 0") // [MQTT-2.2.1-3]
		}
	}
	return a, nil
}

// appendAck appends a PUBACK, PUBREC or PUBCOMP.
func appendAck(b []byte, kind byte, id uint16, code byte) []byte {
	if code == 0 {
		return append(b, kind<<4, 2, byte(id>>8), byte(id))
	}
	return append(b, kind<<4, 3, byte(id>>8), byte(id), code)
}

// readAck reads the body of a PUBACK, PUBREL or UNSUBACK as far as it matters: the identifier and the reason code.
func readAck(body []byte) (id uint16, code byte, err error) {
	if len(body) < 2 {
		return 0, 0, fmt.Errorf("an acknowledgement of %d bytes", len(body))
	}
	if len(body) > 2 {
		code = body[2]
	}
	return binary.BigEndian.Uint16(body), code, nil
}

// encode makes the PUBLISH of an outgoing message, marked as the group's. The error says why the broker would not take it.
func encode(o *outgoing, group string, g grant, now time.Time) ([]byte, error) {
	m := &o.m
	if err := message.ValidName(m.Topic); err != nil {
		return nil, err
	}
	pk := packets.Packet{
		ProtocolVersion: version5, TopicName: m.Topic, Payload: m.Payload, PacketID: o.id, Mods: packets.Mods{AllowResponseInfo: true},
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: byte(min(m.QoS, 1)), Retain: m.Retain && g.retain, Dup: o.again},
	}
	p := &pk.Properties
	p.PayloadFormatFlag, p.ContentType, p.CorrelationData = m.PayloadUTF8, m.ContentType, m.CorrelationData
	if m.PayloadUTF8 {
		p.PayloadFormat = 1
	}
	if !strings.ContainsAny(m.ResponseTopic, "+#") { // [MQTT-3.3.2-14]
		p.ResponseTopic = m.ResponseTopic
	}
	if !m.Expires.IsZero() {
		left := (m.Expires.Sub(now) + time.Second - 1) / time.Second
		p.MessageExpiryInterval = uint32(min(max(left, 1), 1<<32-1))
	}
	for _, u := range m.Properties {
		if u.Key != propertyVia && u.Key != propertySource {
			p.User = append(p.User, packets.UserProperty{Key: u.Key, Val: u.Value})
		}
	}
	if source := m.Source.Name(); source != "" {
		p.User = append(p.User, packets.UserProperty{Key: propertySource, Val: source})
	}
	if group != "" {
		p.User = append(p.User, packets.UserProperty{Key: propertyVia, Val: group})
	}
	for _, text := range append([]string{m.ContentType, m.ResponseTopic, string(m.CorrelationData)}, texts(p.User)...) {
		if len(text) > maxText {
			return nil, fmt.Errorf("%w: a property of %d bytes", message.ErrTooLarge, len(text))
		}
	}
	var b bytes.Buffer
	if err := pk.PublishEncode(&b); err != nil {
		return nil, fmt.Errorf("%w: %w", message.ErrInvalid, err)
	}
	if g.maxPacket > 0 && uint64(b.Len()) > uint64(g.maxPacket) {
		return nil, fmt.Errorf("%w: a packet of %d bytes, the broker takes %d", message.ErrTooLarge, b.Len(), g.maxPacket)
	}
	return b.Bytes(), nil
}

func texts(list []packets.UserProperty) []string {
	out := make([]string, 0, 2*len(list))
	for _, u := range list {
		out = append(out, u.Key, u.Val)
	}
	return out
}

// subscribePacket asks for filters with one subscription identifier; 0: none.
func subscribePacket(packetID uint16, filters []packets.Subscription, identifier int) []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: version5, PacketID: packetID,
		Filters: filters,
	}
	if identifier > 0 {
		pk.Properties.SubscriptionIdentifier = []int{identifier}
	}
	var b bytes.Buffer
	_ = pk.SubscribeEncode(&b) // its only error is a missing packet identifier
	return b.Bytes()
}

func unsubscribePacket(packetID uint16, filters []string) []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, ProtocolVersion: version5, PacketID: packetID,
	}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
	}
	var b bytes.Buffer
	_ = pk.UnsubscribeEncode(&b) // likewise
	return b.Bytes()
}

// suback returns the identifier and the reason codes of a SUBACK, one for each filter.
func suback(body []byte) (uint16, []byte, error) {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Suback, Remaining: len(body)}, ProtocolVersion: version5,
	}
	if err := decode(pk.SubackDecode, body); err != nil {
		return 0, nil, fmt.Errorf("suback: %w", err)
	}
	return pk.PacketID, pk.ReasonCodes, nil
}

// disconnectError says why the broker sends us away.
func disconnectError(body []byte) error {
	var code byte
	if len(body) > 0 {
		code = body[0]
	}
	err := fmt.Errorf("the broker sent disconnect (%#x, %s)", code, codeText(code))
	if code == codeTakenOver {
		return &refusal{code: code, text: err.Error()}
	}
	return err
}
