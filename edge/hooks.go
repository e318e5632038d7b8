package edge

import (
	"strconv"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hooks is the one hook in the library. The library decodes packets and validates CONNECT; nearly every other packet is
// handled in OnPacketRead and never reaches its own handlers, which lose, reorder and refuse messages in ways that cannot
// be repaired from behind them. Every method runs on the goroutine that reads the connection, but OnPacketEncode.
type hooks struct {
	mqtt.HookBase
	b *Broker
}

// inert is put in the place of a packet that was handled here: for an acknowledgement of an identifier that is not in
// flight the library does nothing. (An error instead would close the connection.)
func inert() packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}
}

func (h *hooks) ID() string { return "tidegate" }

// Provides says which methods the library has to call.
func (h *hooks) Provides(b byte) bool {
	switch b {
	case mqtt.OnPacketRead, mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablish,
		mqtt.OnSessionEstablished, mqtt.OnPacketEncode:
		return true
	}
	return false
}

// OnPacketRead sees every packet after decoding.
func (h *hooks) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	p := peerOf(cl)
	if p == nil {
		return pk, nil
	}
	if pk.FixedHeader.Type == packets.Connect {
		if p.session != nil {
			p.disconnect(codeProtocolError) // a second CONNECT [MQTT-3.1.0-2]
			return pk, packets.ErrRejectPacket
		}
		return p.readConnect(pk)
	}
	// More may have been read before the connection was closed here or taken over. Taking it would overtake what was
	// refused, or come after what the client sent by its new connection.
	if p.session == nil || p.ended || !p.session.Enter(p) {
		return pk, packets.ErrRejectPacket
	}
	defer p.session.Leave()
	switch pk.FixedHeader.Type {
	case packets.Publish:
		p.readPublish(&pk)
	case packets.Puback:
		p.session.Puback(p, pk.PacketID)
	case packets.Pubrec:
		p.readPubrec(&pk)
	case packets.Pubrel:
		p.readPubrel(pk.PacketID)
	case packets.Pubcomp:
		p.session.Pubcomp(p, pk.PacketID)
	case packets.Subscribe:
		p.readSubscribe(&pk)
	case packets.Unsubscribe:
		p.readUnsubscribe(&pk)
	case packets.Disconnect:
		return p.readDisconnect(pk), nil
	case packets.Pingreq:
		return pk, nil
	case packets.Auth:
		p.readAuth(&pk)
	default: // a packet that only a server sends
		p.disconnect(codeProtocolError)
	}
	return inert(), nil
}

// OnConnect admits the client or refuses it with a CONNACK.
func (h *hooks) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	p := peerOf(cl)
	if p == nil {
		return packets.ErrUnspecifiedError
	}
	p.client = strings.Clone(cl.ID) // outlives the packet that it is part of
	if code := p.admit(); code != codeSuccess {
		p.refuseConnect(code)
		return codeError(code)
	}
	p.keepAlive(cl)
	return nil
}

// OnConnectAuthenticate is true: OnConnect has done it, and lets nobody in that is not admitted.
func (h *hooks) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	p := peerOf(cl)
	return p != nil && p.admitted
}

// OnSessionEstablish gives the connection its session, before the CONNACK. From then on the library knows the connection
// under a name of its own: it would look for another one with this client identifier and end that, also one that came later.
func (h *hooks) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	p := peerOf(cl)
	p.attach()
	p.name = strconv.FormatUint(h.b.names.Add(1), 36)
	cl.ID = p.name
	if p.proof.rules != h.b.rules.Load() {
		h.b.judge(p.session) // they changed since it logged in
	}
}

// OnSessionEstablished starts delivery, after the CONNACK.
func (h *hooks) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	p := peerOf(cl)
	h.b.conns.Go(func() { p.session.Send(p) }) // ends when the connection is closed or taken over
}

// OnPacketEncode completes the CONNACK with what the library does not know.
func (h *hooks) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if p := peerOf(cl); p != nil && pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == codeSuccess {
		p.completeConnack(&pk)
	}
	return pk
}

func peerOf(cl *mqtt.Client) *peer {
	p, _ := cl.Net.Conn.(*peer)
	return p
}
