package external

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// publishPacket makes what a broker sends.
func publishPacket(t testing.TB, change func(*packets.Packet)) []byte {
	t.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, TopicName: "plant/a", PacketID: 7,
		Payload: []byte("x"), Mods: packets.Mods{AllowResponseInfo: true},
	}
	if change != nil {
		change(&pk)
	}
	var b bytes.Buffer
	if err := pk.PublishEncode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parse reads one packet as the connection does.
func parse(b []byte, limit int) (arrival, error) {
	r := bufio.NewReader(bytes.NewReader(b))
	h, err := readHead(r)
	if err != nil {
		return arrival{}, err
	}
	if h.length > limit {
		return skipPublish(r, h, limit, time.Unix(100, 0))
	}
	body := make([]byte, h.length)
	if _, err := io.ReadFull(r, body); err != nil {
		return arrival{}, err
	}
	return parsePublish(h.first, body, time.Unix(100, 0))
}

func TestParsePublish(t *testing.T) {
	b := publishPacket(t, func(pk *packets.Packet) {
		pk.FixedHeader.Retain = true
		p := &pk.Properties
		p.ContentType, p.ResponseTopic, p.CorrelationData = "text/plain", "reply/1", []byte{1}
		p.PayloadFormat, p.PayloadFormatFlag, p.MessageExpiryInterval = 1, true, 60
		p.SubscriptionIdentifier = []int{idLocal, idShared}
		p.User = []packets.UserProperty{{Key: "unit", Val: "C"}, {Key: "tg-src", Val: "press1"}, {Key: "tg-via", Val: "g"}}
	})
	a, err := parse(b, 1000)
	if err != nil {
		t.Fatal(err)
	}
	want := message.Message{
		ID: a.m.ID, Topic: "plant/a", Payload: []byte("x"), QoS: 1, Retain: true, ContentType: "text/plain", ResponseTopic: "reply/1",
		CorrelationData: []byte{1}, PayloadUTF8: true, Properties: []message.Property{{Key: "unit", Value: "C"}},
		Source: message.Source{Protocol: message.MQTT, Client: "press1"}, Received: time.Unix(100, 0), Expires: time.Unix(160, 0),
	}
	if !reflect.DeepEqual(a.m, want) || a.id != 7 || !a.shared || !a.local || a.via != "g" || a.bad != nil {
		t.Errorf("got %+v", a)
	}
	for _, c := range []struct {
		ids           []int
		shared, local bool
	}{{nil, true, false}, {[]int{idShared}, true, false}, {[]int{idLocal}, false, true}, {[]int{99}, true, false}} {
		a, err := parse(publishPacket(t, func(pk *packets.Packet) { pk.Properties.SubscriptionIdentifier = c.ids }), 1000)
		if err != nil || a.shared != c.shared || a.local != c.local {
			t.Errorf("identifiers %v: %+v, %v", c.ids, a, err)
		}
	}
}

func TestBadPackets(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":                         {},
		"a length without end":            {0x32, 0xFF, 0xFF, 0xFF, 0xFF, 0x01},
		"cut in the topic":                {0x32, 5, 0, 9, 'a'},
		"identifier 0 [MQTT-2.2.1-3]":     {0x32, 6, 0, 1, 'a', 0, 0, 0},
		"QoS 3 [MQTT-3.3.1-4]":            {0x36, 6, 0, 1, 'a', 0, 1, 0},
		"an alias [MQTT-3.1.2-26]":        {0x30, 7, 0, 1, 'a', 3, 35, 0, 1},
		"a property that is none of its":  {0x30, 6, 0, 1, 'a', 2, 33, 0},
		"properties longer than they are": {0x30, 4, 0, 1, 'a', 0x7F},
	} {
		for _, limit := range []int{1000, 2} {
			a, err := parse(b, limit)
			if err == nil && limit == 1000 {
				t.Errorf("%s: read as %+v", name, a)
			}
		}
	}
	if a, err := parse(publishPacket(t, func(pk *packets.Packet) { pk.TopicName = "a/+" }), 1000); err != nil || a.bad == nil {
		t.Errorf("a wildcard in a topic: %+v, %v", a, err) // [MQTT-3.3.2-2]
	}
}

func TestSkipPublish(t *testing.T) {
	for qos, id := range []uint16{0, 7, 7} {
		b := publishPacket(t, func(pk *packets.Packet) {
			pk.FixedHeader.Qos, pk.Payload = byte(qos), make([]byte, 100000)
		})
		r := bufio.NewReader(bytes.NewReader(append(b, 0xD0, 0)))
		h, err := readHead(r)
		if err != nil {
			t.Fatal(err)
		}
		a, err := skipPublish(r, h, 1000, time.Now())
		if err != nil || a.id != id || a.m.Topic != "plant/a" || int(a.m.QoS) != qos || a.bad == nil {
			t.Errorf("QoS %d: %+v, %v", qos, a, err)
		}
		if next, err := readHead(r); err != nil || next.first != 0xD0 {
			t.Errorf("QoS %d: the next packet is %+v, %v", qos, next, err)
		}
	}
}

// TestEncode: what goes out is read back as it was, and what the broker would not take is not sent.
func TestEncode(t *testing.T) {
	now := time.Unix(100, 0)
	full := grant{retain: true}
	o := &outgoing{id: 9, again: true, m: message.Message{
		Topic: "plant/x", Payload: []byte("p"), QoS: 2, Retain: true, ContentType: "text/plain", ResponseTopic: "reply", CorrelationData: []byte{2},
		PayloadUTF8: true, Expires: now.Add(1500 * time.Millisecond), Source: message.Source{Client: "press"}, Properties: []message.Property{{Key: "a", Value: "b"}},
	}}
	b, err := encode(o, "g", full, now)
	if err != nil {
		t.Fatal(err)
	}
	if b[0] != packets.Publish<<4|1<<3|1<<1|1 {
		t.Errorf("fixed header %#x", b[0])
	}
	a, err := parse(b, 1000)
	if err != nil || a.via != "g" || a.m.Source.Client != "press" || a.m.ContentType != "text/plain" || a.m.ResponseTopic != "reply" || !a.m.PayloadUTF8 ||
		a.m.Expires != now.Add(2*time.Second) || a.id != 9 || len(a.m.Properties) != 1 || !bytes.Equal(a.m.CorrelationData, []byte{2}) {
		t.Errorf("read back as %+v, %v", a, err)
	}
	if b, err := encode(o, "", grant{}, now); err != nil || b[0]&1 != 0 {
		t.Errorf("without retained messages: %v, %v", b, err)
	} else if a, _ := parse(b, 1000); a.via != "" {
		t.Errorf("marked with %q without a group", a.via)
	}
	for name, m := range map[string]message.Message{
		"topic":    {Topic: "a/#"},
		"packet":   {Topic: "a", Payload: make([]byte, 300)},
		"property": {Topic: "a", ContentType: strings.Repeat("x", math.MaxUint16+1)},
	} {
		if _, err := encode(&outgoing{id: 1, m: m}, "g", grant{maxPacket: 200}, now); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(publishPacket(f, nil))
	f.Add(publishPacket(f, func(pk *packets.Packet) { pk.Payload = make([]byte, 500) }))
	f.Add([]byte{0x30, 7, 0, 1, 'a', 3, 35, 0, 1})
	f.Add([]byte{packets.Suback << 4, 4, 0xFF, 0xFD, 0, 1})
	f.Add([]byte{packets.Connack << 4, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parse(b, 200)
		if err == nil && (a.m.QoS > 2 || a.m.QoS > 0 && a.id == 0 || !a.shared && !a.local) {
			t.Errorf("read as %+v", a)
		}
		if len(b) > 2 {
			_, _, _ = suback(b[2:])
			_, _, _ = readAck(b[2:])
			_ = disconnectError(b[2:])
			_, _ = (&Bridge{}).granted(b[2:])
		}
	})
}
