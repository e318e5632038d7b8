package testpeer

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

func connectOf(pk packets.Packet, number int) Connect {
	return Connect{
		Conn: number, Client: pk.Connect.ClientIdentifier, Version: pk.ProtocolVersion, Clean: pk.Connect.Clean,
		KeepAlive: pk.Connect.Keepalive, Username: string(pk.Connect.Username), Password: string(pk.Connect.Password),
		SessionExpiry: pk.Properties.SessionExpiryInterval, ReceiveMaximum: pk.Properties.ReceiveMaximum,
		WillTopic: pk.Connect.WillTopic, WillPayload: pk.Connect.WillPayload, WillRetain: pk.Connect.WillRetain,
		WillQoS: pk.Connect.WillQos,
	}
}

// grant writes the limits of a greeting into the properties of a CONNACK.
func grant(p *packets.Properties, g Greeting) {
	p.ReasonString = g.Reason
	p.ReceiveMaximum = g.ReceiveMaximum
	p.MaximumPacketSize = g.MaximumPacketSize
	if g.ServerKeepAlive > 0 {
		p.ServerKeepAlive, p.ServerKeepAliveFlag = g.ServerKeepAlive, true
	}
	if g.MaximumQoS != nil {
		p.MaximumQos, p.MaximumQosFlag = *g.MaximumQoS, true
	}
	if g.RetainRefused {
		p.RetainAvailable, p.RetainAvailableFlag = 0, true
	}
}

func receivedOf(pk packets.Packet) Received {
	r := Received{
		ID: pk.PacketID, Topic: pk.TopicName, Payload: pk.Payload, QoS: pk.FixedHeader.Qos,
		Retain: pk.FixedHeader.Retain, Dup: pk.FixedHeader.Dup,
		ContentType: pk.Properties.ContentType, ResponseTopic: pk.Properties.ResponseTopic,
		CorrelationData: pk.Properties.CorrelationData, Expiry: pk.Properties.MessageExpiryInterval,
		PayloadUTF8: pk.Properties.PayloadFormatFlag && pk.Properties.PayloadFormat == 1,
	}
	for _, u := range pk.Properties.User {
		r.Properties = append(r.Properties, message.Property{Key: u.Key, Value: u.Val})
	}
	return r
}

func commandPacket(o *outgoing) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{
			Type: packets.Publish, Qos: o.cmd.QoS, Retain: o.cmd.Retain, Dup: o.dup && o.cmd.QoS > 0,
		},
		PacketID: o.id, TopicName: o.cmd.Topic, Payload: o.cmd.Payload,
	}
	pk.Properties.ContentType = o.cmd.ContentType
	pk.Properties.ResponseTopic = o.cmd.ResponseTopic
	pk.Properties.CorrelationData = o.cmd.CorrelationData
	pk.Properties.MessageExpiryInterval = o.cmd.Expiry
	for _, p := range o.cmd.Properties {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: p.Key, Val: p.Value})
	}
	return pk
}
