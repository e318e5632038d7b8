package uplink

import (
	"fmt"
	"strings"

	"tidegate/message"
)

// own reports whether a topic is one on which the gateway speaks of itself.
func own(topic string) bool { return strings.HasPrefix(topic, "tidegate/") }

// fit makes m one that the cloud service takes, or says why it never will. What a service refuses must not be sent at all:
// many of them end the connection over it.
func (p *pipelined) fit(m *message.Message) error {
	if p.limits.Service == "" {
		return nil
	}
	if own(m.Topic) {
		m.Topic = p.limits.OwnTopic(m.Topic)
	}
	if err := p.limits.CheckTopic(m.Topic); err != nil {
		return &RefusedError{Code: codeTopicInvalid, Reason: err.Error(), Local: true}
	}
	if most := p.limits.MaxPayload; most > 0 && len(m.Payload) > most {
		return &RefusedError{
			Code: codePacketTooLarge, Local: true,
			Reason: fmt.Sprintf("a payload of %d bytes, %s takes %d", len(m.Payload), p.limits.Service, most),
		}
	}
	return nil
}

// tellStripped counts what a message of a device loses on the way because the cloud takes no better.
func (p *pipelined) tellStripped(pub publication) {
	if p.hooks.stripped == nil {
		return
	}
	if pub.m.Retain && !pub.retain && pub.identity.ID != "" { // and is not the gateway's own status
		p.hooks.stripped("retain", 1)
	}
	if byte(pub.m.QoS) > pub.qos {
		p.hooks.stripped("qos", max(pub.identity.Exactly, 1))
	}
}
