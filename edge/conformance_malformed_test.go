package edge

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// text is a string as MQTT encodes it.
func text(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

// frame is a packet of fewer than 128 bytes behind its fixed header.
func frame(head byte, body string) []byte { return append([]byte{head, byte(len(body))}, body...) }

// wrong are the bytes of a packet. Its name begins with 3 for MQTT 3.1.1 and with 5 for MQTT 5.
type wrong struct {
	name  string
	bytes []byte
}

// three is a CONNECT of MQTT 3.1.1, five one of MQTT 5.
func three(flags, payload string) []byte {
	return frame(0x10, "\x00\x04MQTT\x04"+flags+"\x00\x3c"+payload)
}

func five(flags, properties, payload string) []byte {
	return frame(0x10, "\x00\x04MQTT\x05"+flags+"\x00\x3c"+string(rune(len(properties)))+properties+payload)
}

// refuseConnects sends each as the first packet of a connection, to a broker that admits everybody. Version 3.1.1 is answered by
// nothing.
func refuseConnects(t *testing.T, bad []wrong) {
	b := startBroker(t, func(o *Options) { o.ACL = everybody{} })
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			got := answerTo(t, b.addr, tt.bytes...)
			switch {
			case len(got) == 0:
			case tt.name[0] == '3':
				t.Errorf("answered by %x", got)
			case len(got) < 5 || got[0] != 0x20 || len(got) != int(got[1])+2 || got[2] != 0 || got[3] < codeUnspecified:
				t.Errorf("answered by %x, want a CONNACK that refuses, or nothing", got)
			}
		})
	}
	if n := b.disk.n.Load(); n != 0 { // no will of those who never came in
		t.Errorf("%d messages taken", n)
	}
}

// refusePackets sends each on a connection of its own, behind the CONNECT.
func refusePackets(t *testing.T, bad []wrong) {
	b := startBroker(t, nil)
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, b.addr, rawOptions{ID: "c", V: map[byte]byte{'3': 4, '5': 5}[tt.name[0]], Clean: true})
			_ = c.Raw(tt.bytes)
			before := closed(t, c)
			if c.V == 4 && len(before) > 0 || len(before) > 1 {
				t.Fatalf("got %v", before)
			}
			if c.V == 5 && (len(before) == 0 || before[0].FixedHeader.Type != packets.Disconnect ||
				before[0].ReasonCode != codeMalformed && before[0].ReasonCode != codeProtocolError) {
				t.Errorf("got %v, want a DISCONNECT 0x81 or 0x82", before)
			}
		})
	}
	if n := b.disk.n.Load(); n != 0 {
		t.Errorf("%d messages taken", n)
	}
}

// A CONNECT that is not as it must be lets nobody in. In version 3.1.1 it is not answered at all: [MQTT-3.1.4-1] of 3.1.1; in
// version 5 by nothing but a CONNACK that says why: [MQTT-3.1.4-1] [MQTT-3.14.0-1].
func TestConformanceMalformedConnect(t *testing.T) {
	id, topic, body := text("c"), text("w"), text("x")
	refuseConnects(t, []wrong{
		{"3 no payload [MQTT-3.1.3-3] of 3.1.1", three("\x02", "")},
		{"3 identifier not UTF-8 [MQTT-3.1.3-4] [MQTT-1.5.3-1] of 3.1.1", three("\x02", text("\xc3\x28"))},
		{"3 identifier with a surrogate [MQTT-1.5.3-1] of 3.1.1", three("\x02", text("\xed\xa0\x80"))},
		{"3 identifier with U+0000 [MQTT-1.5.3-2] of 3.1.1", three("\x02", text("a\x00b"))},
		{"3 will without topic and payload [MQTT-3.1.2-9] of 3.1.1", three("\x06", id)},
		{"3 will without payload [MQTT-3.1.2-9] of 3.1.1", three("\x06", id+topic)},
		{"3 will topic not UTF-8 [MQTT-3.1.3-10] of 3.1.1", three("\x06", id+text("\xff")+body)},
		{"3 flag without user name [MQTT-3.1.2-19] of 3.1.1", three("\x82", id)},
		{"3 flag without password [MQTT-3.1.2-21] of 3.1.1", three("\xc2", id+text("user"))},
		{"3 flags of the fixed header [MQTT-2.2.2-1] [MQTT-2.2.2-2] of 3.1.1", append([]byte{0x12}, three("\x02", id)[1:]...)},
		{"5 reserved flag [MQTT-3.1.2-3]", five("\x03", "", id)},
		{"5 no payload [MQTT-3.1.3-3]", five("\x02", "", "")},
		{"5 identifier not UTF-8 [MQTT-3.1.3-4] [MQTT-1.5.4-1]", five("\x02", "", text("\xc3\x28"))},
		{"5 identifier with U+0000 [MQTT-1.5.4-2]", five("\x02", "", text("a\x00b"))},
		{"5 will without properties, topic and payload [MQTT-3.1.2-9]", five("\x06", "", id)},
		{"5 will without payload [MQTT-3.1.2-9]", five("\x06", "", id+"\x00"+topic)},
		{"5 will QoS without a will [MQTT-3.1.2-11]", five("\x0a", "", id)},
		{"5 will QoS 3 [MQTT-3.1.2-12]", five("\x1e", "", id+"\x00"+topic+body)},
		{"5 will retain without a will [MQTT-3.1.2-13]", five("\x22", "", id)},
		{"5 will topic not UTF-8 [MQTT-3.1.3-11]", five("\x06", "", id+"\x00"+text("\xff")+body)},
		{"5 flag without user name [MQTT-3.1.2-17]", five("\x82", "", id)},
		{"5 flag without password [MQTT-3.1.2-19]", five("\xc2", "", id+text("user"))},
		{"5 user property not UTF-8 [MQTT-1.5.7-1]", five("\x02", "\x26"+text("k")+text("\xff"), id)},
		{"5 flags of the fixed header [MQTT-2.1.3-1]", append([]byte{0x12}, five("\x02", "", id)[1:]...)},
		{"5 a property of another packet", five("\x02", "\x23\x00\x01", id)},
	})
}

// A packet that is not as it must be ends the connection; a version 5 client is told why [MQTT-4.13.1-1]; [MQTT-4.8.0-1] of 3.1.1.
func TestConformanceMalformed(t *testing.T) {
	refusePackets(t, []wrong{
		{"3 PUBLISH, both QoS bits [MQTT-3.3.1-4] of 3.1.1", frame(0x36, text("a")+"\x00\x01x")},
		{"3 PUBLISH, DUP with QoS 0 [MQTT-3.3.1-2] of 3.1.1", frame(0x38, text("a")+"x")},
		{"3 PUBLISH, identifier 0 [MQTT-2.3.1-1] of 3.1.1", frame(0x32, text("a")+"\x00\x00x")},
		{"3 PUBLISH, topic not UTF-8 [MQTT-3.3.2-1] [MQTT-1.5.3-1] of 3.1.1", frame(0x30, text("\xc3\x28"))},
		{"3 PUBLISH, topic with U+0000 [MQTT-1.5.3-2] [MQTT-4.7.3-2] of 3.1.1", frame(0x30, text("a\x00"))},
		{"3 PUBLISH, topic longer than the packet", frame(0x30, "\x00\x09a")},
		{"3 PUBLISH without a topic [MQTT-4.7.3-1] of 3.1.1", frame(0x30, text("")+"x")},
		{"3 PUBREL, flags [MQTT-3.6.1-1] [MQTT-2.2.2-2] of 3.1.1", frame(0x60, "\x00\x01")},
		{"3 SUBSCRIBE, flags [MQTT-3.8.1-1] [MQTT-2.2.2-2] of 3.1.1", frame(0x80, "\x00\x01"+text("a")+"\x00")},
		{"3 SUBSCRIBE, identifier 0 [MQTT-2.3.1-1] of 3.1.1", frame(0x82, "\x00\x00"+text("a")+"\x00")},
		{"3 SUBSCRIBE without a filter [MQTT-3.8.3-3] of 3.1.1", frame(0x82, "\x00\x01")},
		{"3 SUBSCRIBE, filter not UTF-8 [MQTT-3.8.3-1] of 3.1.1", frame(0x82, "\x00\x01"+text("\xff")+"\x00")},
		{"3 SUBSCRIBE, filter with U+0000 [MQTT-4.7.3-2] of 3.1.1", frame(0x82, "\x00\x01"+text("a\x00")+"\x00")},
		{"3 SUBSCRIBE, QoS 3 [MQTT-3.8.3-4] of 3.1.1", frame(0x82, "\x00\x01"+text("a")+"\x03")},
		{"3 SUBSCRIBE, reserved bits [MQTT-3.8.3-4] of 3.1.1", frame(0x82, "\x00\x01"+text("a")+"\x04")},
		{"3 SUBSCRIBE without a QoS", frame(0x82, "\x00\x01"+text("a"))},
		{"3 UNSUBSCRIBE, flags [MQTT-3.10.1-1] [MQTT-2.2.2-2] of 3.1.1", frame(0xa0, "\x00\x01"+text("a"))},
		{"3 UNSUBSCRIBE, identifier 0 [MQTT-2.3.1-1] of 3.1.1", frame(0xa2, "\x00\x00"+text("a"))},
		{"3 UNSUBSCRIBE without a filter [MQTT-3.10.3-2] of 3.1.1", frame(0xa2, "\x00\x01")},
		{"3 UNSUBSCRIBE, filter not UTF-8 [MQTT-3.10.3-1] of 3.1.1", frame(0xa2, "\x00\x01"+text("\xff"))},
		{"3 PINGREQ, flags [MQTT-2.2.2-1] [MQTT-2.2.2-2] of 3.1.1", frame(0xc1, "")},
		{"3 DISCONNECT, flags [MQTT-3.14.1-1] of 3.1.1", frame(0xe1, "")},
		{"3 CONNACK", frame(0x20, "\x00\x00")},
		{"3 SUBACK", frame(0x90, "\x00\x01\x00")},
		{"3 PINGRESP", frame(0xd0, "")},
		{"3 AUTH", frame(0xf0, "")},
		{"3 type 0", frame(0x00, "")},
		{"3 length of five bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}},
		{"5 PUBLISH, both QoS bits [MQTT-3.3.1-4]", frame(0x36, text("a")+"\x00\x01\x00x")},
		{"5 PUBLISH, DUP with QoS 0 [MQTT-3.3.1-2]", frame(0x38, text("a")+"\x00x")},
		{"5 PUBLISH, identifier 0 [MQTT-2.2.1-3]", frame(0x32, text("a")+"\x00\x00\x00x")},
		{"5 PUBLISH, topic not UTF-8 [MQTT-3.3.2-1] [MQTT-1.5.4-1]", frame(0x30, text("\xed\xbf\xbf")+"\x00")},
		{"5 PUBLISH, topic with U+0000 [MQTT-1.5.4-2] [MQTT-4.7.3-2]", frame(0x30, text("a\x00")+"\x00")},
		{"5 PUBLISH without a topic [MQTT-4.7.3-1]", frame(0x30, text("")+"\x00x")},
		{"5 PUBLISH, Response Topic with a wildcard [MQTT-3.3.2-14]", frame(0x30, text("a")+"\x06\x08"+text("b/#"))},
		{"5 PUBLISH, Response Topic not UTF-8 [MQTT-3.3.2-13]", frame(0x30, text("a")+"\x04\x08"+text("\xff"))},
		{"5 PUBLISH, Content Type not UTF-8 [MQTT-3.3.2-19]", frame(0x30, text("a")+"\x04\x03"+text("\xff"))},
		{"5 PUBLISH, User Property not UTF-8 [MQTT-1.5.7-1]", frame(0x30, text("a")+"\x07\x26"+text("k")+text("\xff"))},
		{"5 PUBLISH with a Subscription Identifier [MQTT-3.3.4-6]", frame(0x30, text("a")+"\x02\x0b\x01")},
		{"5 PUBLISH, a property of another packet", frame(0x30, text("a")+"\x05\x11\x00\x00\x00\x01")},
		{"5 PUBREL, flags [MQTT-3.6.1-1] [MQTT-2.1.3-1]", frame(0x60, "\x00\x01")},
		{"5 SUBSCRIBE, flags [MQTT-3.8.1-1] [MQTT-2.1.3-1]", frame(0x80, "\x00\x01\x00"+text("a")+"\x00")},
		{"5 SUBSCRIBE, identifier 0 [MQTT-2.2.1-3]", frame(0x82, "\x00\x00\x00"+text("a")+"\x00")},
		{"5 SUBSCRIBE without a filter [MQTT-3.8.3-2]", frame(0x82, "\x00\x01\x00")},
		{"5 SUBSCRIBE, filter not UTF-8 [MQTT-3.8.3-1]", frame(0x82, "\x00\x01\x00"+text("\xff")+"\x00")},
		{"5 SUBSCRIBE, QoS 3", frame(0x82, "\x00\x01\x00"+text("a")+"\x03")},
		{"5 SUBSCRIBE, Retain Handling 3", frame(0x82, "\x00\x01\x00"+text("a")+"\x30")},
		{"5 SUBSCRIBE, No Local on a shared one [MQTT-3.8.3-4]", frame(0x82, "\x00\x01\x00"+text("$share/g/a")+"\x04")},
		{"5 SUBSCRIBE, Subscription Identifier 0", frame(0x82, "\x00\x01\x02\x0b\x00"+text("a")+"\x00")},
		{"5 SUBSCRIBE without options", frame(0x82, "\x00\x01\x00"+text("a"))},
		{"5 UNSUBSCRIBE, flags [MQTT-3.10.1-1] [MQTT-2.1.3-1]", frame(0xa0, "\x00\x01\x00"+text("a"))},
		{"5 UNSUBSCRIBE, identifier 0 [MQTT-2.2.1-3]", frame(0xa2, "\x00\x00\x00"+text("a"))},
		{"5 UNSUBSCRIBE without a filter [MQTT-3.10.3-2]", frame(0xa2, "\x00\x01\x00")},
		{"5 UNSUBSCRIBE, filter not UTF-8 [MQTT-3.10.3-1]", frame(0xa2, "\x00\x01\x00"+text("\xff"))},
		{"5 PINGREQ, flags [MQTT-2.1.3-1]", frame(0xc1, "")},
		{"5 DISCONNECT, flags [MQTT-3.14.1-1]", frame(0xe1, "")},
		{"5 AUTH, flags [MQTT-3.15.1-1]", frame(0xf1, "\x18\x00")},
		{"5 AUTH without a method [MQTT-4.12.0-7]", frame(0xf0, "\x18\x00")},
		{"5 CONNACK", frame(0x20, "\x00\x00\x00")},
		{"5 SUBACK", frame(0x90, "\x00\x01\x00\x00")},
		{"5 PINGRESP", frame(0xd0, "")},
		{"5 type 0", frame(0x00, "")},
		{"5 length of five bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}},
	})
}
