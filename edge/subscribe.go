package edge

import (
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/session"
	"tidegate/message"
)

// Bounds of the subscriptions of one session: how many, and the bytes of each filter, so that nobody stores hundreds of megabytes
// by them. session.Room bounds their levels.
const (
	maxFilters     = 10000
	maxFilterBytes = 4096
)

// readSubscribe answers a SUBSCRIBE. The SUBACK is written by the session, between the subscriptions and what they bring.
func (p *peer) readSubscribe(pk *packets.Packet) {
	if pk.SubscribeValidate() != packets.CodeSuccess || pk.PacketID == 0 {
		p.disconnect(codeProtocolError)
		return
	}
	if ids := pk.Properties.SubscriptionIdentifier; len(ids) > 1 || len(ids) == 1 && ids[0] == 0 { // MQTT 5, 3.8.2.1.2
		p.disconnect(codeProtocolError)
		return
	}
	rules := p.b.rules.Load()
	subs := make([]*session.Subscription, len(pk.Filters))
	codes := make([]byte, len(pk.Filters))
	var added session.Added
	for i := range pk.Filters {
		f := &pk.Filters[i]
		if f.RetainHandling > 2 || f.NoLocal && strings.HasPrefix(f.Filter, "$share/") { // [MQTT-3.8.3-4]
			p.disconnect(codeProtocolError)
			return
		}
		codes[i] = p.maySubscribe(f.Filter)
		if codes[i] == codeSuccess && (len(f.Filter) > maxFilterBytes || !p.session.Room(f.Filter, maxFilters, &added)) {
			codes[i] = codeQuota
		}
		if codes[i] == codeSuccess {
			codes[i] = f.Qos
			subs[i] = &session.Subscription{
				Filter: strings.Clone(f.Filter), QoS: message.QoS(f.Qos), ID: uint32(f.Identifier),
				NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
			}
		} else if p.connect.version < 5 {
			codes[i] = codeUnspecified // [MQTT-3.9.3-2] of 3.1.1
		}
	}
	p.session.Subscribe(p, subs, p.subAnswer(packets.Suback<<4, pk.PacketID, codes))
	if rules != p.b.rules.Load() {
		p.b.judge(p.session) // they changed while it was looked at
	}
}

// maySubscribe returns the reason code for a filter; success where it is allowed.
func (p *peer) maySubscribe(filter string) byte {
	if validFilter(filter) != nil {
		return codeFilterInvalid
	}
	if !p.b.o.ACL.Allow(p.identity, access.Subscribe, filter) {
		p.b.audit.refused(&p.b.refusals, "subscription refused", "not_allowed", p.client, "client", p.client, "user", p.identity.User, "filter", filter)
		return p.b.notAuthorized()
	}
	return codeSuccess
}

// notAuthorized is the reason code for what a rule refuses.
func (b *Broker) notAuthorized() byte {
	if b.hide.Load() {
		return codeUnspecified
	}
	return codeNotAuthorized
}

// readUnsubscribe answers an UNSUBSCRIBE.
func (p *peer) readUnsubscribe(pk *packets.Packet) {
	if pk.UnsubscribeValidate() != packets.CodeSuccess || pk.PacketID == 0 {
		p.disconnect(codeProtocolError)
		return
	}
	codes := make([]byte, len(pk.Filters))
	for i, f := range pk.Filters {
		if !p.session.Unsubscribe(p, f.Filter) {
			codes[i] = codeNoSubscription
		}
	}
	if p.connect.version < 5 {
		codes = nil // [MQTT-3.10.4-4] of 3.1.1 has no payload
	}
	p.session.Answer(p, p.subAnswer(packets.Unsuback<<4, pk.PacketID, codes))
}

// subAnswer makes a SUBACK or UNSUBACK.
func (p *peer) subAnswer(head byte, id uint16, codes []byte) []byte {
	n := 2 + len(codes)
	if p.connect.version == 5 {
		n++
	}
	b := make([]byte, 0, n+5)
	b = append(b, head)
	for left := n; ; left >>= 7 { // a variable byte integer [MQTT-1.5.5-1]
		if left < 0x80 {
			b = append(b, byte(left))
			break
		}
		b = append(b, byte(left)|0x80)
	}
	b = append(b, byte(id>>8), byte(id))
	if p.connect.version == 5 {
		b = append(b, 0) // no properties
	}
	return append(b, codes...)
}
