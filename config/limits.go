package config

import (
	"fmt"
	"net/url"
	"strings"
)

// Limits are what a cloud service demands of each message. What does not keep to them is never sent. 0 is no limit.
type Limits struct {
	Service         string // the preset, for messages to people; empty: there are no limits
	MaxPacket       int    // bytes of a whole PUBLISH
	MaxPayload      int    // bytes
	MaxTopicBytes   int
	MaxTopicSlashes int
	// TopicPrefix begins every topic. The gateway's own messages are put behind it, see OwnTopic.
	TopicPrefix string
	// MaxPublishes is how many PUBLISH packets a connection may carry a second; 0: as many as max_rate allows.
	MaxPublishes MessageRate
	MaxQoS       int  // 0: no limit
	NoRetain     bool // the retain flag is refused, on the will too
	// PlainAcks: an acknowledgement with a reason code of failure ends the connection.
	PlainAcks bool
	// StrictIdentity: the service admits no client identifier but the configured one.
	StrictIdentity bool
}

// OwnTopic returns the topic on which a message of the gateway itself (tidegate/...) is sent: with TopicPrefix it becomes
// the property "topic" of a message behind it.
func (l Limits) OwnTopic(topic string) string {
	if l.TopicPrefix == "" || strings.HasPrefix(topic, l.TopicPrefix) {
		return topic
	}
	return l.TopicPrefix + "topic=" + url.QueryEscape(topic)
}

// CheckTopic reports why the service does not take the topic; nil when it does.
func (l Limits) CheckTopic(topic string) error {
	counted := beyondRule(topic)
	slashes := strings.Count(counted, "/")
	switch {
	case l.MaxTopicBytes > 0 && len(counted) > l.MaxTopicBytes:
		return fmt.Errorf("a topic of %d bytes, %s takes %d", len(counted), l.Service, l.MaxTopicBytes)
	case l.MaxTopicSlashes > 0 && slashes > l.MaxTopicSlashes:
		return fmt.Errorf("a topic with %d slashes, %s takes %d", slashes, l.Service, l.MaxTopicSlashes)
	case !strings.HasPrefix(topic, l.TopicPrefix):
		return fmt.Errorf("the topic does not begin with %s, which %s wants", l.TopicPrefix, l.Service)
	}
	return nil
}

// beyondRule is the part of a topic that counts at AWS: the prefix $aws/rules/NAME/ of Basic Ingest is free.
func beyondRule(topic string) string {
	if rest, ok := strings.CutPrefix(topic, "$aws/rules/"); ok {
		_, topic, _ = strings.Cut(rest, "/")
	}
	return topic
}

// batchLimits checks where and how large an uplink's batches are against its service.
func (v *validator) batchLimits(key string, u Uplink) {
	b := u.Batch
	if b == nil {
		return
	}
	topic := b.Topic
	if strings.HasPrefix(topic, "tidegate/") {
		topic = u.Limits.OwnTopic(topic)
	}
	if err := u.Limits.CheckTopic(topic); err != nil {
		v.wrong(key+".topic", "%s", err)
	}
	most := u.Limits.MaxPayload
	if most == 0 && u.Limits.MaxPacket > 0 {
		most = u.Limits.MaxPacket - len(topic) - batchOverhead
	}
	if most > 0 && b.Compress == "none" && int64(b.MaxBytes) > int64(most) {
		v.wrong(key+".max_bytes", "%s takes %d bytes in one message: lower it, or let the batches be packed", u.Limits.Service, most)
	}
}

// batchOverhead is what a PUBLISH of a batch has beside its topic and payload, with room to spare.
const batchOverhead = 128
