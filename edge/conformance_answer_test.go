package edge

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// nextFrame reads a packet as it stands.
func nextFrame(t testing.TB, c *rawClient) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, 2, 64)
	if _, err := io.ReadFull(c.R, got); err != nil {
		t.Fatal(err)
	}
	n := int(got[1] & 0x7f)
	for shift := 7; got[len(got)-1]&0x80 != 0; shift += 7 {
		b, err := c.R.ReadByte()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b)
		n |= int(b&0x7f) << shift
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.R, body); err != nil {
		t.Fatal(err)
	}
	return append(got, body...)
}

// Every answer, byte for byte. Where a code says no it is one that belongs to the packet: [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1]
// [MQTT-3.7.2-1] [MQTT-3.9.3-2] [MQTT-3.11.3-2] [MQTT-3.14.2-1]. There is no property, and so none that this client did not ask for
// [MQTT-3.1.2-29], or that is too large for it: [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3]
// [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT-3.14.2-3] [MQTT-3.14.2-4]. Where
// properties may stand their length does [MQTT-2.2.2-1].
func TestConformance5Answers(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"ok"}, Subscribe: []string{"#"}, DenySubscribe: []string{"no"}})
	})
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, Mod: func(pk *packets.Packet) {
		pk.Properties.MaximumPacketSize = 24
		pk.Properties.RequestProblemInfo, pk.Properties.RequestProblemInfoFlag = 0, true
	}})
	for _, step := range []struct {
		name string
		sent []byte
		want string // in hexadecimal; a property length of 0 that may be left out is left out
	}{
		{"SUBSCRIBE", frame(0x82, "\x00\x01\x00"+text("ok")+"\x01"), "900400010001"},
		{"SUBSCRIBE, not allowed", frame(0x82, "\x00\x02\x00"+text("no")+"\x01"), "900400020087"},
		{"UNSUBSCRIBE of nothing", frame(0xa2, "\x00\x03\x00"+text("never")), "b00400030011"},
		{"QoS 1", frame(0x32, text("ok")+"\x00\x04\x00x"), "40020004 320800026f6b00010078"},
		{"PUBACK", frame(0x40, "\x00\x01"), ""},
		{"QoS 0", frame(0x30, text("ok")+"\x00y"), "300600026f6b0079"},
		{"QoS 1, not allowed", frame(0x32, text("no")+"\x00\x05\x00x"), "4003000587"},
		{"QoS 2, not allowed", frame(0x34, text("no")+"\x00\x06\x00x"), "5003000687"},
		// What was refused is over, so that its identifier stands for a new message [MQTT-4.3.3-9].
		{"QoS 2 under its identifier", frame(0x34, text("ok")+"\x00\x06\x00z"), "50020006 320800026f6b0002007a"},
		{"PUBREL", frame(0x62, "\x00\x06"), "70020006"},
		{"PUBREL of nothing", frame(0x62, "\x00\x63"), "7003006392"},
		{"PUBREC of nothing", frame(0x50, "\x00\x63"), "6203006392"},
		// [MQTT-3.3.2-2] [MQTT-4.7.0-1]
		{"a topic with a wildcard", frame(0x32, text("ok/+")+"\x00\x07\x00x"), "4003000790"},
		{"PINGREQ", frame(0xc0, ""), "d000"},
		{"PINGRESP", frame(0xd0, ""), "e00182"},
	} {
		_ = c.Raw(step.sent)
		want := strings.Fields(step.want)
		for range want {
			got := nextFrame(t, c)
			most := map[byte]int{packets.Puback: 5, packets.Pubrec: 5, packets.Pubrel: 5, packets.Pubcomp: 5, packets.Disconnect: 3}[got[0]>>4]
			if most > 0 && len(got) == most+1 && got[most] == 0 {
				got = got[:most]
				got[1]--
			}
			// An acknowledgement and a message may come in either order.
			i := 0
			for i < len(want) && want[i] != fmt.Sprintf("%x", got) {
				i++
			}
			if i == len(want) {
				t.Fatalf("%s: answered by %x, want %s", step.name, got, step.want)
			}
			want[i] = ""
		}
	}
	closed(t, c)
}

// A topic with a wildcard goes nowhere: [MQTT-3.3.2-2] [MQTT-4.7.1-1] of 3.1.1. It is acknowledged, lest its client send it for ever.
func TestConformanceWildcardInTopic(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "#", 1)
	for _, topic := range []string{"a/+", "a/#", "+", "#", "a+b"} {
		handOver(t, c, toPublish(topic, "x", 1))
	}
	handOver(t, c, toPublish("mark", "x", 1))
	wantSaid(t, take(t, c, 1), "mark=x/1")
	if n := b.disk.n.Load(); n != 1 {
		t.Errorf("%d messages taken", n)
	}
}

// Lengths are written in as few bytes as they need [MQTT-1.5.5-1].
func TestConformanceLengths(t *testing.T) {
	bothVersions(t, func(t *testing.T, b *testBroker, v byte) {
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
		subscribe(t, c, "a", 0)
		rest := 3 + int(v-4) // topic, and length of the properties
		for length, want := range map[int]string{rest: fmt.Sprintf("300%d", rest), 127: "307f", 128: "308001", 16383: "30ff7f", 16384: "30808001"} {
			_ = c.Publish(0, "a", 0, bytes.Repeat([]byte{'.'}, length-rest))
			got := nextFrame(t, c)
			if head := fmt.Sprintf("%x", got[:len(want)/2]); head != want || len(got) != length+len(want)/2 {
				t.Errorf("a length of %d: %d bytes that begin by %s, want %s", length, len(got), head, want)
			}
		}
	})
}

// The fields of a CONNECT in their order, with all that it can carry: [MQTT-3.1.3-1]; [MQTT-3.1.3-1] of 3.1.1.
func TestConformanceWholeConnect(t *testing.T) {
	for _, v := range []byte{4, 5} {
		b := startBroker(t, func(o *Options) { o.ACL = everybody{} })
		payload := []string{"id", "will topic", "will payload", "user name", "pass word"}
		sent := connectBytes(v, 0xc6, nil, payload...)
		if v == 5 { // the will has properties, none here
			at := bytes.Index(sent, []byte("id")) + 2
			sent = append(sent[:at:at], append([]byte{0}, sent[at:]...)...)
			sent[1]++
		}
		if got := answerTo(t, b.addr, append(sent, 0xe1, 0)...); len(got) < 4 || got[0] != 0x20 || got[3] != 0 { // ended by a DISCONNECT that is none
			t.Errorf("version %d: answered by %x", v, got)
		}
		eventually(t, "the will is published", func() bool { return b.disk.n.Load() == 1 })
		m := b.disk.messages()[0]
		if m.Topic != "will topic" || string(m.Payload) != "will payload" || m.Source.Client != "id" || m.Source.User != "user name" {
			t.Errorf("version %d: will %+v", v, m)
		}
	}
}
