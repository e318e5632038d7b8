package session

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// FuzzPublish compares what is written with what an independent decoder reads.
func FuzzPublish(f *testing.F) {
	f.Add("a/b", []byte("x"), "text/plain", "reply", []byte("c"), "k", "v", uint16(7), byte(1), uint32(200), uint16(3), true, true)
	f.Add("", bytes.Repeat([]byte("y"), 20000), "", "", []byte{}, "", "", uint16(0), byte(0), uint32(0), uint16(0), false, false)
	f.Fuzz(func(t *testing.T, topic string, payload []byte, ct, rt string, cd []byte, k, v string, id uint16, qos byte, sub uint32, alias uint16, dup, retain bool) {
		valid := func(s string) string { return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "") }
		topic, ct, rt, k, v = valid(topic), valid(ct), valid(rt), valid(k), valid(v)
		if qos %= 3; qos == 0 {
			id, dup = 0, false
		} else {
			id = max(id, 1)
		}
		sub %= 268435456
		if len(topic) > 65535 || len(ct) > 65535 || len(rt) > 65535 || len(cd) > 65535 || len(k) > 65535 || len(v) > 65535 {
			return
		}
		now := time.Now()
		m := &message.Message{
			Topic: topic, Payload: payload, ContentType: ct, ResponseTopic: rt, CorrelationData: cd, PayloadUTF8: dup,
			Properties: []message.Property{{Key: k, Value: v}, {Key: v, Value: k}}, Expires: now.Add(1500 * time.Millisecond),
		}
		p := publish{version: 5, id: id, qos: message.QoS(qos), dup: dup, retain: retain, alias: alias}
		if sub > 0 {
			p.subs = []uint32{sub, 1}
		}
		for _, p.version = range []byte{4, 5} {
			got := decode(t, appendPublish([]byte("before"), m, p, now)[6:], p.version)
			h := got.FixedHeader
			if got.TopicName != topic || !bytes.Equal(got.Payload, payload) || h.Qos != qos || h.Dup != dup || h.Retain != retain || got.PacketID != id {
				t.Fatalf("version %d: got %+v", p.version, got)
			}
			if p.version < 5 {
				continue
			}
			pr := got.Properties
			if pr.ContentType != ct || pr.ResponseTopic != rt || !bytes.Equal(pr.CorrelationData, cd) || pr.PayloadFormatFlag != dup ||
				pr.MessageExpiryInterval != 2 || pr.TopicAlias != alias || len(pr.SubscriptionIdentifier) != len(p.subs) ||
				len(pr.User) != 2 || pr.User[0].Key != k || pr.User[0].Val != v || pr.User[1].Key != v {
				t.Fatalf("properties %+v", pr)
			}
			if sub > 0 && pr.SubscriptionIdentifier[0] != int(sub) {
				t.Fatalf("subscription identifiers %v, want %d first", pr.SubscriptionIdentifier, sub)
			}
		}
		p.known, p.version = true, 5
		if got := decode(t, appendPublish(nil, m, p, now), 5); got.TopicName != "" {
			t.Fatalf("topic name %q beside a known alias", got.TopicName)
		}
	})
}

func decode(t *testing.T, b []byte, version byte) packets.Packet {
	t.Helper()
	var pk packets.Packet
	pk.ProtocolVersion = version
	if err := pk.FixedHeader.Decode(b[0]); err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(b[1:])
	n, _, err := packets.DecodeLength(r)
	if err != nil || n != r.Len() {
		t.Fatalf("remaining length %d, have %d, %v", n, r.Len(), err)
	}
	pk.FixedHeader.Remaining = n
	if err := pk.PublishDecode(b[len(b)-n:]); err != nil {
		t.Fatal(err)
	}
	return pk
}
