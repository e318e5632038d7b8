package edge

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
)

// goodbye disconnects with a Session Expiry Interval and waits until the broker knows.
func goodbye(t *testing.T, b *testBroker, c *rawClient, expiry uint32) {
	t.Helper()
	before := b.Clients()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = expiry, true
	_ = c.Send(pk)
	eventually(t, "offline", func() bool { return b.Clients() < before })
}

// A session ends when its Session Expiry Interval is over [MQTT-4.1.0-2] and not before [MQTT-3.1.2-23] [MQTT-4.1.0-1], at once
// without one. The DISCONNECT may say another interval.
func TestConformance5SessionExpiry(t *testing.T) {
	t.Parallel()
	b := startBroker(t, nil)
	back := func(expiry uint32, present bool) *rawClient {
		t.Helper()
		c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Expiry: expiry})
		if c.Connack.SessionPresent != present {
			t.Errorf("session present %v, want %v", c.Connack.SessionPresent, present)
		}
		return c
	}
	away(t, b, back(0, false))
	c := back(1, false) // nothing was left of it
	time.Sleep(1500 * time.Millisecond)
	subscribe(t, c, "a", 1) // the connection holds it
	goodbye(t, b, c, 600)
	time.Sleep(1500 * time.Millisecond)
	away(t, b, back(1, true))
	eventually(t, "expired", func() bool { return b.Sessions() == 0 })
	c = back(600, false)
	away(t, b, c)
	goodbye(t, b, back(600, true), 0)
	away(t, b, back(0, false))
	// From none at the CONNECT it cannot be raised: a protocol error (MQTT 5, 3.14.2.2.2) [MQTT-4.13.1-1].
	c = back(0, false)
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 60, true
	_ = c.Send(pk)
	// What the server says at the end carries no interval [MQTT-3.14.2-2].
	before := closed(t, c)
	if len(before) != 1 || before[0].ReasonCode != codeProtocolError || before[0].Properties.SessionExpiryIntervalFlag {
		t.Errorf("got %v", before)
	}
}

// A client without an identifier is told which one it has [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16], also without a clean
// start, and comes back to its session by it.
func TestConformance5AssignedClientIdentifier(t *testing.T) {
	b := startBroker(t, nil)
	seen := map[string]bool{}
	for _, clean := range []bool{false, true, false, true} {
		c := connect(t, b.addr, rawOptions{V: 5, Clean: clean, Expiry: 600})
		id := c.Connack.Properties.AssignedClientID
		if id == "" || seen[id] || c.Connack.SessionPresent {
			t.Errorf("assigned %q after %v; session present %v", id, seen, c.Connack.SessionPresent)
		}
		seen[id] = true
	}
	for id := range seen {
		c := connect(t, b.addr, rawOptions{ID: id, V: 5, Expiry: 600})
		if !c.Connack.SessionPresent || c.Connack.Properties.AssignedClientID != "" {
			t.Errorf("%q: session present %v, assigned %q", id, c.Connack.SessionPresent, c.Connack.Properties.AssignedClientID)
		}
	}
}

// Who asks for a longer keep alive than there is, or for none, is told the one that counts. Who asks for less is told nothing,
// and what it asked for counts [MQTT-3.2.2-22].
func TestConformance5ServerKeepAlive(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxKeepAlive = config.Duration(time.Minute) })
	for asked, told := range map[uint16]uint16{120: 60, 61: 60, 0: 60, 60: 0, 10: 0} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, KeepAlive: asked})
		if p := c.Connack.Properties; p.ServerKeepAliveFlag != (told > 0) || p.ServerKeepAlive != told {
			t.Errorf("asked for %d, told %d (%v)", asked, p.ServerKeepAlive, p.ServerKeepAliveFlag)
		}
	}
}

// The will waits for its delay or the end of the session, whichever comes first [MQTT-3.1.2-8], and is not published to a client
// that is back before [MQTT-3.1.3-9].
func TestConformance5WillDelay(t *testing.T) {
	t.Parallel()
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 5, Clean: true})
	subscribe(t, s, "will/+", 2)
	breakOff := func(id string, delay, expiry uint32) time.Time {
		t.Helper()
		c := connect(t, b.addr, rawOptions{ID: id, V: 5, Expiry: expiry, Mod: func(pk *packets.Packet) {
			withWill("will/"+id, "x", 2)(pk)
			pk.Connect.WillProperties.WillDelayInterval = delay
		}})
		before, begin := b.Clients(), time.Now()
		_ = c.Close()
		eventually(t, "gone", func() bool { return b.Clients() < before })
		return begin
	}
	begin := breakOff("back", 2, 600)
	connect(t, b.addr, rawOptions{ID: "back", V: 5, Expiry: 600})
	if time.Since(begin) > time.Second { // this machine is too slow to be back in time
		_ = request(t, s, packets.Unsubscribe, 2, packets.Subscription{Filter: "will/+"})
		for _, err := s.Recv(3 * time.Second); err == nil; _, err = s.Recv(3 * time.Second) {
			t.Log("the will came before its client was back")
		}
		subscribe(t, s, "will/+", 2)
	}
	for _, tt := range []struct {
		id            string
		delay, expiry uint32
		least         time.Duration
	}{
		{"delay", 1, 600, time.Second},
		{"session", 600, 1, time.Second},
		{"none", 600, 0, 0},
	} {
		begin := breakOff(tt.id, tt.delay, tt.expiry)
		wantSaid(t, take(t, s, 1), "will/"+tt.id+"=x/2")
		if d := time.Since(begin); d < tt.least {
			t.Errorf("%s: came after %v", tt.id, d)
		}
	}
	silent(t, s, 100*time.Millisecond) // nothing of who came back
}

// Of a message whose expiry is over a client that was away gets nothing [MQTT-3.3.2-5]; of another one it learns what is left of the
// interval [MQTT-3.3.2-6]. What was sent to it once is brought to its end all the same [MQTT-4.3.3-7] [MQTT-4.3.3-13].
func TestConformance5PublicationExpiry(t *testing.T) {
	t.Parallel()
	b := startBroker(t, nil)
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	publish := func(payload string, qos byte, expiry uint32) {
		pk := toPublish("exp", payload, qos)
		pk.Properties.MessageExpiryInterval = expiry
		handOver(t, p, pk)
	}
	o := kept("c", 5)
	c := connect(t, b.addr, o)
	subscribe(t, c, "exp", 2)
	var sent packets.Packet
	eventually(t, "a message is sent before it expires", func() bool {
		publish("sent", 2, 1)
		var err error
		sent, err = c.Recv(2 * time.Second)
		return err == nil
	})
	away(t, b, c)
	begin := time.Now()
	for qos := byte(1); qos <= 2; qos++ {
		publish("expires", qos, 1)
		publish("lasts", qos, 600)
		publish("for ever", qos, 0)
	}
	open := toPublish("elsewhere", "expires before its PUBREL", 2)
	open.Properties.MessageExpiryInterval, open.PacketID = 1, 50
	_ = p.Send(open)
	expect(t, p, packets.Pubrec)
	time.Sleep(2200 * time.Millisecond)
	finish(t, p, 50)
	c = connect(t, b.addr, o)
	got := take(t, c, 5)
	waited := uint32(time.Since(begin)/time.Second) + 1
	wantSaid(t, got, "exp=sent/2", "exp=lasts/1", "exp=lasts/2", "exp=for ever/1", "exp=for ever/2")
	for _, pk := range got {
		left := pk.Properties.MessageExpiryInterval
		switch string(pk.Payload) {
		case "lasts":
			if left > 598 || left < 600-waited {
				t.Errorf("%d of 600 s are left after 2.2 to %d s", left, waited)
			}
		case "for ever":
			if left != 0 {
				t.Errorf("a message without an expiry has %d s left", left)
			}
		case "sent":
			if pk.PacketID != sent.PacketID || !pk.FixedHeader.Dup {
				t.Errorf("the message under %d came again under %d, DUP %v", sent.PacketID, pk.PacketID, pk.FixedHeader.Dup)
			}
		}
	}
	silent(t, c, 50*time.Millisecond)
}

// Who is refused is told a code [MQTT-3.2.2-8] and that there is no session [MQTT-3.2.2-6], is closed [MQTT-3.2.2-7] [MQTT-4.13.2-1]
// [MQTT-3.1.4-2], and nothing is taken that came behind the CONNECT [MQTT-3.1.4-6].
func TestConformance5RefusedConnect(t *testing.T) {
	no := false
	b := startBroker(t, func(o *Options) {
		o.Listeners["closed"] = config.Listener{Listen: "mqtt://127.0.0.1:0", Anonymous: &no}
	})
	behind := []byte{0x30, 5, 0, 1, 'a', 0, 'x'}
	method := []byte{0x15, 0, 4, 'N', 'O', 'N', 'E'}
	for _, tt := range []struct {
		name, addr string
		connect    []byte
		code       byte
	}{
		{"no login", b.Addrs()["closed"].String(), connectBytes(5, 2, nil, "c"), codeBadLogin},
		{"a method that is none [MQTT-4.12.0-1]", b.addr, connectBytes(5, 2, method, "c"), codeBadAuthMethod},
		{"a will to a topic that is none", b.addr, willBytes("a/#"), codeTopicInvalid},
	} {
		want := fmt.Sprintf("200300%x00", tt.code)
		if got := fmt.Sprintf("%x", answerTo(t, tt.addr, append(tt.connect, behind...)...)); got != want {
			t.Errorf("%s: answered by %s, want %s", tt.name, got, want)
		}
	}
	if n := b.disk.n.Load(); n != 0 {
		t.Errorf("%d messages taken from clients that were refused", n)
	}
}

// willBytes is a CONNECT of MQTT 5 with a will.
func willBytes(topic string) []byte {
	body := append([]byte("\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x00\x00"), byte(len(topic)))
	body = append(append(body, topic...), 0, 1, 'x')
	return append([]byte{0x10, byte(len(body))}, body...)
}

// The CONNACK has no flag but Session Present [MQTT-3.2.2-1], no Response Information for who did not ask for it [MQTT-3.1.2-28] and
// no Authentication Method for who named none [MQTT-4.12.0-6]; there is one [MQTT-3.2.0-2].
func TestConformance5Connack(t *testing.T) {
	b := startBroker(t, nil)
	for _, present := range []bool{false, true} {
		c := connect(t, b.addr, kept("c", 5))
		p := c.Connack.Properties
		if c.Connack.SessionPresent != present || p.ResponseInfo != "" || p.AuthenticationMethod != "" || p.MaximumQosFlag || p.ReasonString != "" {
			t.Errorf("CONNACK %+v", p)
		}
		_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, c, packets.Pingresp)
		away(t, b, c)
	}
	// A reason in words that would make it too large for the client is left out [MQTT-3.2.2-19] [MQTT-3.2.2-20].
	if got := answerTo(t, b.addr, five("\x03", "\x27\x00\x00\x00\x14", text("c"))...); len(got) > 20 {
		t.Errorf("a client that takes 20 bytes gets %d", len(got))
	}
	bytes := connectBytes(5, 0, []byte{0x11, 0, 0, 2, 0}, "c") // Clean Start 0, Session Expiry Interval 512
	bytes = append(bytes, 0xe0, 0)
	got := answerTo(t, b.addr, bytes...)
	if len(got) < 4 || got[0] != 0x20 || got[2] != 1 || got[3] != 0 || int(got[1])+2 != len(got) {
		t.Errorf("answered by %x", got)
	}
}
