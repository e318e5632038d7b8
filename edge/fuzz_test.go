package edge

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/edge/gate"
)

// FuzzConnection: whatever a client sends, its connection comes to an end, nothing of it is left, and what it was sent are whole
// packets of a kind that a server sends, the CONNACK first.
func FuzzConnection(f *testing.F) {
	b := startBroker(f, nil)
	for _, version := range []byte{4, 5} {
		all := everyPacket(version)
		connect := encoded(f, all[0])
		f.Add(connect)
		for _, pk := range all[1:] {
			f.Add(append(bytes.Clone(connect), encoded(f, pk)...))
		}
	}
	l := b.every()[0]
	f.Fuzz(func(t *testing.T, in []byte) {
		server, client := net.Pipe()
		c := gate.Wrap(server, gate.Options{MaxPacket: 1 << 20, LingerTimeout: time.Second})
		out := make(chan []byte, 1)
		go func() { // ends with the connection
			got, _ := io.ReadAll(client)
			out <- got
		}()
		done := make(chan struct{})
		go func() { // ends with the connection
			b.serve(l, c)
			close(done)
		}()
		_, _ = client.Write(in)
		_ = c.Close()
		<-done
		c.Wait()
		_ = client.Close()
		answers(t, <-out)
		if n := b.Clients(); n != 0 {
			t.Errorf("%d clients are left", n)
		}
	})
}

// everyPacket returns packets of every kind that a client sends, a CONNECT first.
func everyPacket(version byte) []packets.Packet {
	filters := packets.Subscriptions{{Filter: "a/#", Qos: 1}, {Filter: "$share/g/a/+", Qos: 2, RetainAsPublished: true}}
	all := []packets.Packet{
		{
			FixedHeader: packets.FixedHeader{Type: packets.Connect},
			Connect: packets.ConnectParams{
				ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "c", WillFlag: true, WillTopic: "w", WillPayload: []byte("x"),
				WillProperties: packets.Properties{WillDelayInterval: 9, ContentType: "t"}, UsernameFlag: true, Username: []byte("u"),
				PasswordFlag: true, Password: []byte("p"),
			},
			Properties: packets.Properties{SessionExpiryInterval: 9, SessionExpiryIntervalFlag: true, TopicAliasMaximum: 5, ReceiveMaximum: 3, MaximumPacketSize: 999},
		},
		{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, TopicName: "a/b", PacketID: 1, Payload: []byte("x")},
		{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, TopicName: "a/b", PacketID: 7,
			Properties: packets.Properties{
				TopicAlias: 1, TopicAliasFlag: true, User: []packets.UserProperty{{Key: "k", Val: "v"}, {Key: "k", Val: "w"}}, ContentType: "t",
				PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 9, ResponseTopic: "r", CorrelationData: []byte("d"),
			},
		},
		{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 1},
		{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}, PacketID: 1, ReasonCode: codeQuota, Properties: packets.Properties{ReasonString: "full"}},
		{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: 7},
		{FixedHeader: packets.FixedHeader{Type: packets.Pubcomp}, PacketID: 1},
		{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 2, Filters: filters, Properties: packets.Properties{SubscriptionIdentifier: []int{200}}},
		{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 3, Filters: filters},
		{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}},
		{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: 4},
	}
	if version == 5 {
		all = append(all, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Auth}, Properties: packets.Properties{AuthenticationMethod: methodSCRAM, AuthenticationData: []byte("d")}})
	}
	for i := range all {
		all[i].ProtocolVersion = version
		all[i].Mods.AllowResponseInfo = true
	}
	return all
}

// encoded returns the bytes of pk.
func encoded(t testing.TB, pk packets.Packet) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := rawEncode(&pk, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// answers checks what a server sent.
func answers(t *testing.T, out []byte) {
	t.Helper()
	for n := 0; len(out) > 0; n++ {
		var head packets.FixedHeader
		if err := head.Decode(out[0]); err != nil {
			t.Fatalf("packet %d begins with %#x: %v", n, out[0], err)
		}
		rest := bytes.NewReader(out[1:])
		size, _, err := packets.DecodeLength(rest)
		if err != nil || size > rest.Len() {
			t.Fatalf("packet %d is cut: %x", n, out)
		}
		switch head.Type {
		case packets.Connack:
			if n != 0 {
				t.Fatal("a second CONNACK")
			}
		case packets.Publish, packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp, packets.Suback, packets.Unsuback,
			packets.Pingresp, packets.Disconnect:
			if n == 0 {
				t.Fatalf("first packet of type %d", head.Type)
			}
		case packets.Auth:
		default:
			t.Fatalf("packet of type %d", head.Type)
		}
		out = out[len(out)-rest.Len()+size:]
	}
}
