package edge

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// patience is how long a test waits for a packet that must come.
const patience = 30 * time.Second

// bothVersions runs f with each version of the protocol, on a broker of its own.
func bothVersions(t *testing.T, f func(t *testing.T, b *testBroker, v byte)) {
	t.Helper()
	for _, v := range []byte{4, 5} {
		t.Run(map[byte]string{4: "3.1.1", 5: "5"}[v], func(t *testing.T) { f(t, startBroker(t, nil), v) })
	}
}

// kept is a client whose session outlives its connection, in either version.
func kept(id string, v byte) rawOptions {
	o := rawOptions{ID: id, V: v}
	if v == 5 {
		o.Expiry = 600
	}
	return o
}

// toPublish is a PUBLISH with QoS 1 or 2 under the packet identifier 1, or with QoS 0.
func toPublish(topic, payload string, qos byte) packets.Packet {
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: uint16(min(qos, 1)),
		TopicName: topic, Payload: []byte(payload),
	}
}

// toRetain is toPublish with the RETAIN flag.
func toRetain(topic, payload string, qos byte) packets.Packet {
	pk := toPublish(topic, payload, qos)
	pk.FixedHeader.Retain = true
	return pk
}

// handOver publishes pk and follows its handshake to the end; it returns the reason code. What else comes meanwhile is left for
// the next Recv.
func handOver(t testing.TB, c *rawClient, pk packets.Packet) byte {
	t.Helper()
	if err := c.Send(pk); err != nil {
		t.Fatal(err)
	}
	if pk.FixedHeader.Qos == 0 {
		return codeSuccess
	}
	for {
		got, err := c.next(patience)
		if err != nil {
			t.Fatalf("publish %q with QoS %d: %v", pk.TopicName, pk.FixedHeader.Qos, err)
		}
		typ := got.FixedHeader.Type
		if typ != packets.Puback && typ != packets.Pubrec && typ != packets.Pubcomp {
			c.unread(got)
			continue
		}
		if got.PacketID != pk.PacketID {
			t.Fatalf("%s for %d, want one for %d", packets.PacketNames[typ], got.PacketID, pk.PacketID)
		}
		if typ != packets.Pubrec || got.ReasonCode >= codeUnspecified {
			return got.ReasonCode
		}
		_ = c.Ack(packets.Pubrel, pk.PacketID)
	}
}

// take reads n messages, acknowledges each as its QoS asks and sees every QoS 2 handshake to its end. Further messages are left
// for the next Recv.
func take(t testing.TB, c *rawClient, n int) []packets.Packet {
	t.Helper()
	var got []packets.Packet
	for open := 0; len(got) < n || open > 0; {
		pk, err := c.first(func(pk packets.Packet) bool { return len(got) < n || pk.FixedHeader.Type != packets.Publish })
		if err != nil {
			t.Fatalf("%d of %d messages, %d handshakes open: %v", len(got), n, open, err)
		}
		switch pk.FixedHeader.Type {
		case packets.Publish:
			got = append(got, pk)
			switch pk.FixedHeader.Qos {
			case 1:
				_ = c.Ack(packets.Puback, pk.PacketID)
			case 2:
				open++
				_ = c.Ack(packets.Pubrec, pk.PacketID)
			}
		case packets.Pubrel:
			open--
			_ = c.Ack(packets.Pubcomp, pk.PacketID)
		default:
			t.Fatalf("got %s %#x, want a message", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode)
		}
	}
	return got
}

// first returns the first packet that is wanted; what comes before it is left for the next Recv.
func (c *rawClient) first(wanted func(packets.Packet) bool) (packets.Packet, error) {
	if i := slices.IndexFunc(c.back, wanted); i >= 0 {
		pk := c.back[i]
		c.back = slices.Delete(c.back, i, i+1)
		return pk, nil
	}
	for {
		pk, err := c.next(patience)
		if err != nil || wanted(pk) {
			return pk, err
		}
		c.unread(pk)
	}
}

// said lists messages as topic, payload, QoS and RETAIN flag, sorted.
func said(pks []packets.Packet) []string {
	var list []string
	for _, pk := range pks {
		text := fmt.Sprintf("%s=%s/%d", pk.TopicName, pk.Payload, pk.FixedHeader.Qos)
		if pk.FixedHeader.Retain {
			text += "/retained"
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

// wantSaid compares what said lists.
func wantSaid(t testing.TB, pks []packets.Packet, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := said(pks); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// request sends a SUBSCRIBE or UNSUBSCRIBE and returns its answer; what else comes meanwhile is left for the next Recv.
func request(t testing.TB, c *rawClient, typ byte, id uint16, filters ...packets.Subscription) packets.Packet {
	t.Helper()
	if err := c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: typ}, PacketID: id, Filters: filters}); err != nil {
		t.Fatal(err)
	}
	want := byte(packets.Suback)
	if typ == packets.Unsubscribe {
		want = packets.Unsuback
	}
	for {
		pk, err := c.next(patience)
		if err != nil {
			t.Fatalf("no %s: %v", packets.PacketNames[want], err)
		}
		if pk.FixedHeader.Type == want {
			if pk.PacketID != id {
				t.Fatalf("%s for %d, want one for %d", packets.PacketNames[want], pk.PacketID, id)
			}
			return pk
		}
		c.unread(pk)
	}
}

// answerTo opens a connection, sends bytes and returns all that comes until the server closes it.
func answerTo(t testing.TB, addr string, bytes ...byte) []byte {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(bytes); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("%x: the connection stays open, answered by %x", bytes, got)
	}
	return got
}

// connectBytes is a CONNECT with these connect flags, properties (of version 5) and strings in its payload.
func connectBytes(v, flags byte, properties []byte, strings ...string) []byte {
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', v, flags, 0, 60}
	if v == 5 {
		body = append(append(body, byte(len(properties))), properties...)
	}
	for _, s := range strings {
		body = append(append(body, byte(len(s)>>8), byte(len(s))), s...)
	}
	return append([]byte{0x10, byte(len(body))}, body...) // fewer than 128
}
