package uplink

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
	"tidegate/message"
)

// refusal is a CONNACK with a reason code other than success.
type refusal struct {
	version byte
	code    byte
	reason  string
}

func (r *refusal) Error() string {
	text := refusalText(r.version, r.code)
	if r.reason != "" {
		text += ": " + said(r.reason)
	}
	return fmt.Sprintf("the broker refuses the connection (%#x, %s)", r.code, text)
}

// lasting reports whether the same CONNECT is likely to be refused again: the client has to be let in first, or the
// configuration be changed.
func (r *refusal) lasting() bool {
	if r.version == version311 {
		return r.code != 3 // 3 is "server unavailable"
	}
	switch r.code {
	case 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x9B:
		return true
	}
	return false
}

// refusalText names the codes of MQTT 3.1.1, 3.2.2.3 and MQTT 5.0, 3.2.2.2 that a person can do something about.
func refusalText(version, code byte) string {
	if version == version311 {
		switch code {
		case 1:
			return "protocol version not accepted"
		case 2:
			return "client identifier rejected"
		case 3:
			return "server unavailable"
		case 4:
			return "bad user name or password"
		case 5:
			return "not authorized"
		}
		return "unknown return code"
	}
	switch code {
	case 0x84:
		return "protocol version not accepted"
	case 0x85:
		return "client identifier not valid"
	case 0x86:
		return "bad user name or password"
	case codeNotAuthorized:
		return "not authorized"
	case 0x88:
		return "server unavailable"
	case 0x89:
		return "server busy"
	case 0x8A:
		return "banned"
	case codeQuota:
		return "quota exceeded"
	case codeRetainUnsupported:
		return "retained messages not supported"
	case 0x9C, 0x9D:
		return "use another server"
	case 0x9F:
		return "connection rate exceeded"
	}
	return "see MQTT 5.0, 3.2.2.2"
}

// grant is what a CONNACK grants.
type grant struct {
	present   bool // the broker has a session of this client
	receive   int  // Receive Maximum, 0: not said
	maxPacket uint32
	maxQoS    byte
	retain    bool
	keepAlive time.Duration
}

// connect says CONNECT and waits for the CONNACK.
func connect(ctx context.Context, s *settings, nc net.Conn, r *bufio.Reader, h hello) (grant, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := nc.Write(connectPacket(s, h)); err != nil {
		return grant{}, ended(endNetwork, "send connect: %w", timedOut(ctx, err))
	}
	first, n, err := readHeader(r)
	if err != nil {
		return grant{}, ended(endNetwork, "wait for connack: %w", timedOut(ctx, err))
	}
	if first != packets.Connack<<4 || n > maxIncoming {
		return grant{}, ended(endProtocol, "want connack, got packet type %d of %d bytes", first>>4, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return grant{}, ended(endNetwork, "read connack: %w", timedOut(ctx, err))
	}
	if !stop() {
		return grant{}, ended(endNetwork, "wait for connack: %w", context.Cause(ctx))
	}
	return granted(s, body)
}

// timedOut prefers the end of ctx, which made the deadline pass, over the error it caused.
func timedOut(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return unexpected(err)
}

func connectPacket(s *settings, h hello) []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: s.version,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: s.clientID, Clean: !s.resumes(),
			Keepalive: uint16(min(max(s.keepAlive/time.Second, 1), 65535)),
		},
	}
	if h.probe {
		pk.Connect.ClientIdentifier, pk.Connect.Clean = probeID(s.clientID), true
	} else {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, h.will.Topic, h.will.Payload
		pk.Connect.WillQos, pk.Connect.WillRetain = 1, h.will.Retain
	}
	if h.login.username != "" {
		pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(h.login.username)
	}
	if h.login.password.IsSet() {
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(h.login.password.Reveal())
	}
	if s.version == version5 {
		pk.Properties.ReceiveMaximum = commandWindow
		pk.Properties.MaximumPacketSize = maxIncoming
		if s.resumes() && !h.probe {
			pk.Properties.SessionExpiryInterval = uint32(sessionExpiry / time.Second)
			pk.Properties.SessionExpiryIntervalFlag = true
		}
	}
	var b bytes.Buffer
	_ = pk.ConnectEncode(&b) // it has no error to report
	return b.Bytes()
}

// granted reads the body of a CONNACK.
func granted(s *settings, body []byte) (grant, error) {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connack, Remaining: len(body)}, ProtocolVersion: s.version,
	}
	if len(body) == 2 { // a broker that knows no MQTT 5 says so in the words of 3.1.1
		pk.ProtocolVersion = version311
	}
	if err := decode(pk.ConnackDecode, body); err != nil {
		return grant{}, ended(endProtocol, "read connack: %w", err)
	}
	p := &pk.Properties
	if pk.ReasonCode != 0 {
		return grant{}, &endError{
			label: endRefused, err: &refusal{version: pk.ProtocolVersion, code: pk.ReasonCode, reason: p.ReasonString},
		}
	}
	if pk.ProtocolVersion != s.version {
		return grant{}, ended(endProtocol, "the broker answers in another version of MQTT")
	}
	g := grant{
		present: pk.SessionPresent, receive: int(p.ReceiveMaximum), maxPacket: p.MaximumPacketSize, maxQoS: 2, retain: true,
		keepAlive: s.keepAlive,
	}
	if p.MaximumQosFlag {
		g.maxQoS = p.MaximumQos
	}
	if p.RetainAvailableFlag {
		g.retain = p.RetainAvailable == 1
	}
	if p.ServerKeepAliveFlag {
		g.keepAlive = time.Duration(p.ServerKeepAlive) * time.Second // 0: the broker wants no keep alive
	}
	if g.maxQoS == 0 {
		return grant{}, ended(endRefused, "the broker takes no QoS above 0, so it acknowledges nothing")
	}
	return g, nil
}

// subscribePacket asks for the commands with QoS 1. On MQTT 5: No Local, so that nothing this gateway publishes
// comes back, and Retain Handling 1, so that a retained command is not carried out again after every reconnect.
func subscribePacket(version byte, filters []string) []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: version, PacketID: subscribeID,
	}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{
			Filter: f, Qos: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 1,
		})
	}
	var b bytes.Buffer
	_ = pk.SubscribeEncode(&b) // its only error is a missing packet identifier
	return b.Bytes()
}

// limit takes back what a service does not take although its broker grants it.
func (g *grant) limit(l config.Limits) {
	if l.MaxQoS > 0 {
		g.maxQoS = min(g.maxQoS, byte(l.MaxQoS))
	}
	if l.MaxPacket > 0 && (g.maxPacket == 0 || g.maxPacket > uint32(l.MaxPacket)) {
		g.maxPacket = uint32(l.MaxPacket)
	}
	g.retain = g.retain && !l.NoRetain
}

// decode runs a decoder of mochi's over what a broker sent. One that fails over its input must cost that connection and not
// the process.
func decode(with func([]byte) error, body []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder failed: %v", r)
		}
	}()
	return with(body)
}

// parseSuback returns the reason codes of a SUBACK, one for each filter.
func parseSuback(version byte, body []byte) ([]byte, error) {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Suback, Remaining: len(body)}, ProtocolVersion: version,
	}
	if err := decode(pk.SubackDecode, body); err != nil {
		return nil, fmt.Errorf("suback: %w", err)
	}
	if pk.PacketID != subscribeID {
		return nil, fmt.Errorf("suback for packet identifier %d", pk.PacketID)
	}
	return pk.ReasonCodes, nil
}

// parseDisconnect reads why the broker sends us away. mochi's codec overlooks a reason code without properties.
func parseDisconnect(body []byte) error {
	var code byte
	reason := ""
	if len(body) > 0 {
		code = body[0]
	}
	if len(body) > 2 {
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect, Remaining: len(body)}, ProtocolVersion: version5,
		}
		if err := decode(pk.DisconnectDecode, body); err == nil && pk.Properties.ReasonString != "" {
			reason = ": " + said(pk.Properties.ReasonString)
		}
	}
	if code == codeTakenOver {
		return ended(endTakenOver, "another client connected with the same client identifier (0x8e)%s", reason)
	}
	return ended(endKicked, "the broker sent disconnect (%#x, %s)%s", code, disconnectText(code), reason)
}

func disconnectText(code byte) string {
	switch code {
	case 0:
		return "normal"
	case 0x8B:
		return "shutting down"
	case 0x8D:
		return "keep alive timeout"
	case 0x93:
		return "receive maximum exceeded"
	case codePacketTooLarge:
		return "packet too large"
	case 0x96:
		return "message rate too high"
	case 0x98:
		return "administrative action"
	case codeRetainUnsupported:
		return "retained messages not supported"
	case 0x9B:
		return "qos not supported"
	}
	return refusalText(version5, code)
}

// parseCommand reads a PUBLISH from the broker. The strings of the message may alias body.
func parseCommand(version, first byte, body []byte, now time.Time) (command, error) {
	pk := packets.Packet{ProtocolVersion: version}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return command{}, fmt.Errorf("publish: %w", err)
	}
	pk.FixedHeader.Remaining = len(body)
	if err := decode(pk.PublishDecode, body); err != nil {
		return command{}, fmt.Errorf("publish: %w", err)
	}
	if pk.FixedHeader.Qos > 1 {
		return command{}, fmt.Errorf("publish with qos %d, subscribed with 1", pk.FixedHeader.Qos)
	}
	if pk.FixedHeader.Qos == 1 && pk.PacketID == 0 {
		return command{}, fmt.Errorf("publish with packet identifier 0")
	}
	if err := message.ValidName(pk.TopicName); err != nil {
		return command{}, fmt.Errorf("publish: %w", err)
	}
	p := &pk.Properties
	m := message.Message{
		ID: message.NewID(), Topic: pk.TopicName, Payload: pk.Payload, QoS: message.QoS(pk.FixedHeader.Qos),
		Retain: pk.FixedHeader.Retain, Dup: pk.FixedHeader.Dup, ContentType: p.ContentType, ResponseTopic: p.ResponseTopic,
		CorrelationData: p.CorrelationData, PayloadUTF8: p.PayloadFormatFlag && p.PayloadFormat == 1,
		Source: message.Source{Protocol: message.Uplink}, Received: now,
	}
	if p.MessageExpiryInterval > 0 {
		m.Expires = now.Add(time.Duration(p.MessageExpiryInterval) * time.Second)
	}
	for _, u := range p.User {
		m.Properties = append(m.Properties, message.Property{Key: u.Key, Value: u.Val})
	}
	return command{m: m, packetID: pk.PacketID}, nil
}
