package edge

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
	"tidegate/message"
)

// What a client is told about a message that is not taken, and whether it stays connected: [MQTT-3.4.2-1] [MQTT-3.5.2-1];
// [MQTT-3.3.5-2] [MQTT-4.8.0-2] of 3.1.1.
func TestRefusals(t *testing.T) {
	tests := []struct {
		err     error
		version byte
		code    int // of the acknowledgement; -1: none
		stays   bool
		label   string
	}{
		{message.ErrBusy, 5, 0x97, true, "busy"},
		{message.ErrBusy, 4, -1, false, "busy"},
		{message.ErrNotAllowed, 5, 0x87, true, "not_allowed"},
		{message.ErrNotAllowed, 4, 0, true, "not_allowed"},
		{message.ErrInvalid, 5, 0x90, true, "invalid"},
		{message.ErrInvalid, 4, 0, true, "invalid"},
		{message.ErrTooLarge, 5, -1, false, "too_large"},
		{message.ErrTooLarge, 4, -1, false, "too_large"},
	}
	for _, tt := range tests {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%v version %d QoS %d", tt.err, tt.version, qos), func(t *testing.T) {
				b := startBroker(t, nil)
				b.disk.refuseWith(tt.err)
				s := connect(t, b.addr, rawOptions{ID: "s", V: 4, Clean: true})
				subscribe(t, s, "a", 0)
				p := connect(t, b.addr, rawOptions{ID: "p", V: tt.version, Clean: true})
				_ = p.Publish(9, "a", qos, number(1))
				if tt.code >= 0 {
					want := packets.Puback
					if qos == 2 {
						want = packets.Pubrec
					}
					if ack := expect(t, p, want); int(ack.ReasonCode) != tt.code || ack.PacketID != 9 {
						t.Errorf("acknowledgement %#x for %d", ack.ReasonCode, ack.PacketID)
					}
				}
				if tt.stays {
					_ = p.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
					expect(t, p, packets.Pingresp)
				} else {
					for _, pk := range closed(t, p) {
						if tt.version < 5 || pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != codeTooLarge {
							t.Errorf("before the end: %s %#x", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode)
						}
					}
				}
				silent(t, s, 20*time.Millisecond)
				if n := b.metric(t, "tidegate_refused_messages_total", "protocol", "mqtt", "reason", tt.label); n != 1 {
					t.Errorf("counted %v times", n)
				}
				if n := b.metric(t, "tidegate_ingested_messages_total", "protocol", "mqtt"); n != 0 {
					t.Errorf("%v counted as ingested", n)
				}
			})
		}
	}
}

// A 3.1.1 client whose message cannot be taken now sends it again after reconnecting. What it had sent behind that message
// must not have been taken meanwhile, or it would overtake.
func TestNothingOvertakesARefusedMessage(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.fail = func(m message.Message) error {
		if string(m.Payload) == "refuse me" {
			return message.ErrBusy
		}
		return nil
	}
	p := connect(t, b.addr, rawOptions{ID: "p", V: 4, Clean: true})
	var raw []byte
	for i, text := range []string{"first", "refuse me", "third", "fourth"} {
		raw = append(raw, 0x32, byte(5+len(text)), 0, 1, 'a', 0, byte(i+1))
		raw = append(raw, text...)
	}
	if err := p.Raw(raw); err != nil {
		t.Fatal(err)
	}
	if before := closed(t, p); len(before) != 1 || before[0].PacketID != 1 {
		t.Errorf("acknowledged: %v", before)
	}
	if n := b.disk.n.Load(); n != 1 {
		t.Errorf("%d messages ingested, want the first only", n)
	}
}

// late is what Ingest answers while only too much waits for the disk.
type late struct{ after message.Ticket }

func (late) Error() string           { return "behind" }
func (late) Unwrap() error           { return message.ErrBusy }
func (l late) After() message.Ticket { return l.after }

// While too much waits for the disk a client is made to wait: nothing is refused, and nothing more is read from it.
func TestDiskBehindSlowsDown(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.hold()
	b.disk.fail = func(message.Message) error {
		if len(b.disk.taken) >= 3 && b.disk.durable < uint64(len(b.disk.taken)) {
			return fmt.Errorf("ingest: %w", late{message.NewTicket(b.disk, uint64(len(b.disk.taken)))})
		}
		return nil
	}
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	for i := range 8 {
		_ = c.Publish(uint16(i+1), "a", 1, number(i))
	}
	eventually(t, "three taken", func() bool { return b.disk.n.Load() == 3 })
	silent(t, c, 50*time.Millisecond)
	for i := 3; i <= 8; i++ {
		b.disk.sync(uint64(i))
		if i < 8 {
			eventually(t, "one more taken", func() bool { return b.disk.n.Load() == int64(i+1) })
		}
	}
	for i := range 8 {
		if pk := expect(t, c, packets.Puback); pk.PacketID != uint16(i+1) {
			t.Fatalf("acknowledgement %d is for %d", i+1, pk.PacketID)
		}
	}
	if n := b.metric(t, "tidegate_refused_messages_total", "reason", "busy"); n != 0 {
		t.Errorf("%v messages were refused", n)
	}
}

// QoS 0 that could not be kept for the cloud still reaches local subscribers and is counted.
func TestRefusedQoS0(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.refuseWith(message.ErrBusy)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "a", 0)
	_ = c.Publish(0, "a", 0, number(1))
	expect(t, c, packets.Publish)
	if n := b.metric(t, "tidegate_refused_messages_total", "reason", "busy"); n != 1 {
		t.Errorf("counted %v times", n)
	}
	b.disk.refuseWith(message.ErrNotAllowed)
	_ = c.Publish(0, "a", 0, number(1))
	silent(t, c, 50*time.Millisecond)
}

func TestTopicsThatDevicesMustNotPublish(t *testing.T) {
	b := startBroker(t, nil)
	five := connect(t, b.addr, rawOptions{ID: "five", V: 5, Clean: true})
	old := connect(t, b.addr, rawOptions{ID: "old", V: 4, Clean: true})
	for topic, code := range map[string]byte{
		"$SYS/x": 0x87, "$other": 0x87, "tidegate": 0x87, "tidegate/x/status": 0x87, "a/+": 0x90, "#": 0x90,
		"tidegates": 0, "a/$x": 0, "a//b": 0, "/": 0,
	} {
		_ = five.Publish(1, topic, 1, number(1))
		if ack := expect(t, five, packets.Puback); ack.ReasonCode != code {
			t.Errorf("%q: version 5 got %#x, want %#x", topic, ack.ReasonCode, code)
		}
		_ = old.Publish(1, topic, 1, number(1))
		expect(t, old, packets.Puback)
	}
	if n := b.disk.n.Load(); n != 8 {
		t.Errorf("%d messages ingested, want the 2 times 4 allowed ones", n)
	}
}

func TestTopicAliasOfClient(t *testing.T) {
	b := startBroker(t, func(o *Options) {
		o.ACL = rules(t, config.Rule{User: "*", Publish: []string{"ok/#"}, Subscribe: []string{"#"}})
	})
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	if n := p.Connack.Properties.TopicAliasMaximum; n != aliasMaximum {
		t.Errorf("granted %d aliases", n)
	}
	send := func(topic string, alias uint16) packets.Packet {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: topic}
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = alias, true
		_ = p.Send(pk)
		got, err := p.Recv(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, step := range []struct {
		topic string
		alias uint16
		code  byte
	}{{"ok/1", 1, 0}, {"", 1, 0}, {"no/1", 2, 0x87}, {"", 2, 0x87}, {"ok/2", 1, 0}, {"", 1, 0}} {
		if ack := send(step.topic, step.alias); ack.ReasonCode != step.code {
			t.Errorf("%+v: %#x", step, ack.ReasonCode)
		}
	}
	var topics []string
	for _, m := range b.disk.messages() {
		topics = append(topics, m.Topic)
	}
	if fmt.Sprint(topics) != "[ok/1 ok/1 ok/2 ok/2]" {
		t.Errorf("ingested %v", topics)
	}
	if got := send("ok/3", aliasMaximum+1); got.FixedHeader.Type != packets.Disconnect || got.ReasonCode != codeTopicAlias {
		t.Errorf("alias above the maximum: %v %#x", got.FixedHeader.Type, got.ReasonCode)
	}
}

// An open QoS 2 receive survives the connection; its repetition is acknowledged only when the first one is on disk.
func TestQoS2Repetition(t *testing.T) {
	for _, o := range []rawOptions{{ID: "c", V: 4}, {ID: "c", V: 5, Expiry: 60}} {
		b := startBroker(t, nil)
		b.disk.hold()
		c := connect(t, b.addr, o)
		_ = c.Publish(9, "a", 2, number(1))
		eventually(t, "ingested", func() bool { return b.disk.n.Load() == 1 })
		_ = c.Close()
		c = connect(t, b.addr, o)
		if !c.Connack.SessionPresent {
			t.Fatal("no session")
		}
		silent(t, c, 50*time.Millisecond) // no PUBREC unasked
		repeat := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2, Dup: true}, PacketID: 9, TopicName: "a", Payload: number(1),
		}
		_ = c.Send(repeat)
		silent(t, c, 50*time.Millisecond)
		b.disk.sync(1)
		if rec := expect(t, c, packets.Pubrec); rec.ReasonCode != 0 || rec.PacketID != 9 {
			t.Errorf("PUBREC %#x for %d", rec.ReasonCode, rec.PacketID)
		}
		_ = c.Ack(packets.Pubrel, 9)
		if comp := expect(t, c, packets.Pubcomp); comp.ReasonCode != 0 {
			t.Errorf("PUBCOMP %#x", comp.ReasonCode)
		}
		_ = c.Ack(packets.Pubrel, 9)
		comp := expect(t, c, packets.Pubcomp)
		if want := map[byte]byte{4: 0, 5: codeUnknownPacketID}[o.V]; comp.ReasonCode != want {
			t.Errorf("second PUBCOMP %#x, want %#x", comp.ReasonCode, want)
		}
		if n := b.disk.n.Load(); n != 1 {
			t.Errorf("ingested %d times", n)
		}
		_ = c.Send(repeat) // released: a new message
		eventually(t, "ingested again", func() bool { return b.disk.n.Load() == 2 })
	}
}

func TestReceiveMaximumOfBroker(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	if c.Connack.Properties.ReceiveMaximum != receiveMaximum {
		t.Errorf("granted %d", c.Connack.Properties.ReceiveMaximum)
	}
	go func() {
		for i := range receiveMaximum + 1 {
			_ = c.Publish(uint16(i+1), "a", 2, nil)
		}
	}()
	before := closed(t, c)
	if last := before[len(before)-1]; len(before) != receiveMaximum+1 || last.ReasonCode != codeReceiveMaximum {
		t.Errorf("%d packets, the last %#x", len(before), last.ReasonCode)
	}
}

// When the disk fails nothing is acknowledged and the connection ends.
func TestDiskFailure(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.hold()
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Publish(1, "a", 1, number(1))
	eventually(t, "ingested", func() bool { return b.disk.n.Load() == 1 })
	b.disk.breakDown()
	for _, pk := range closed(t, c) {
		t.Errorf("got %s", packets.PacketNames[pk.FixedHeader.Type])
	}
}

func TestProtocolErrors(t *testing.T) {
	publish := func(change func(*packets.Packet)) packets.Packet {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: "a"}
		change(&pk)
		return pk
	}
	share := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: "$share/g/a", NoLocal: true}},
	}
	tests := []struct {
		name string
		pk   packets.Packet
		code byte
	}{
		{"subscription identifier in PUBLISH [MQTT-3.3.4-6]", publish(func(pk *packets.Packet) {
			pk.Properties.SubscriptionIdentifier = []int{1}
		}), codeProtocolError},
		{"no topic and no alias", publish(func(pk *packets.Packet) { pk.TopicName = "" }), codeProtocolError},
		{"alias 0 [MQTT-3.3.2-8]", publish(func(pk *packets.Packet) {
			pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = aliasMaximum+1, true
		}), codeTopicAlias},
		{"No Local on a shared subscription [MQTT-3.8.3-4]", share, codeProtocolError},
		{"a second CONNECT [MQTT-3.1.0-2]", packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Connect},
			Connect:     packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "c"},
		}, codeProtocolError},
	}
	b := startBroker(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
			if err := c.Send(tt.pk); err != nil {
				t.Fatal(err)
			}
			before := closed(t, c)
			if len(before) != 1 || before[0].FixedHeader.Type != packets.Disconnect || before[0].ReasonCode != tt.code {
				t.Errorf("got %v", before)
			}
		})
	}
}

// Bytes that crash the library's decoder do not come to it: they end their connection and nothing else.
func TestDecoderCrash(t *testing.T) {
	b := startBroker(t, nil)
	for _, crash := range [][]byte{
		{0x82, 6, 0, 1, 0, 0, 1, 'a'},       // SUBSCRIBE whose filter lacks its options
		{0x30, 5, 0, 1, 'a', 0x7f, 0x01},    // PUBLISH with more properties than bytes
		{0xa2, 4, 0, 1, 0x7f, 0x26},         // UNSUBSCRIBE with the same
		{0x82, 7, 0, 1, 0x7f, 0, 1, 'a', 0}, // and SUBSCRIBE
	} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
		_ = c.Raw(crash)
		closed(t, c)
	}
	eventually(t, "the client is gone", func() bool { return b.Clients() == 0 })
	if n := b.metric(t, "tidegate_client_panics_total"); n != 0 {
		t.Errorf("it came to it %v times", n)
	}
	connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
}

func TestTooLarge(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.MaxPacket = 1000 })
	for _, v := range []byte{4, 5} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
		if v == 5 && c.Connack.Properties.MaximumPacketSize != 1000 {
			t.Errorf("announced %d", c.Connack.Properties.MaximumPacketSize)
		}
		_ = c.Publish(1, "a", 1, make([]byte, 2000))
		before := closed(t, c)
		if v == 5 && (len(before) != 1 || before[0].ReasonCode != codeTooLarge) || v == 4 && len(before) > 0 {
			t.Errorf("version %d: %v", v, before)
		}
	}
	if n := b.disk.n.Load(); n != 0 {
		t.Errorf("%d ingested", n)
	}
	eventually(t, "both are counted", func() bool {
		return b.metric(t, "tidegate_refused_messages_total", "protocol", "mqtt", "reason", "too_large") == 2
	})
}

// Where Ingest is behind and there is nothing to wait for, the next try comes after a pause all the same.
func TestDiskBehindWithNothingToWaitFor(t *testing.T) {
	var tries atomic.Int64
	var free atomic.Bool
	b := startBroker(t, func(o *Options) {
		o.Ingest = func(message.Message) (message.Ticket, error) {
			tries.Add(1)
			if free.Load() {
				return message.Ticket{}, nil
			}
			return message.Ticket{}, fmt.Errorf("ingest: %w", late{})
		}
	})
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Publish(1, "a", 1, nil)
	silent(t, c, 300*time.Millisecond)
	if n := tries.Load(); n < 2 || n > 30 {
		t.Errorf("%d tries in 300 ms", n)
	}
	free.Store(true)
	expect(t, c, packets.Puback)
}

// A client that waits for the disk holds up nobody else: not those who connect, not the metrics, not its own return by
// another connection and not the stop.
func TestDiskBehindHoldsUpNobodyElse(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.hold()
	b.disk.mu.Lock()
	b.disk.fail = func(message.Message) error { return late{message.NewTicket(b.disk, 1000)} }
	b.disk.mu.Unlock()
	o := rawOptions{ID: "c", V: 5, Clean: false}
	for range 3 {
		c := connect(t, b.addr, o) // from the second on by a take-over
		_ = c.Publish(1, "a", 1, nil)
		silent(t, c, 50*time.Millisecond)
	}
	connect(t, b.addr, rawOptions{ID: "other", V: 5, Clean: true})
	if n := b.metric(t, "tidegate_sessions"); n != 2 {
		t.Errorf("%v sessions", n)
	}
	eventually(t, "the old connections are gone", func() bool { return b.Clients() == 2 })
	begin := time.Now()
	if err := b.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("the stop took %v", d)
	}
}

// A QoS 2 message whose record did not reach the disk is no repetition when the client sends it again.
func TestQoS2AfterDiskFailure(t *testing.T) {
	b := startBroker(t, nil)
	b.disk.hold()
	o := rawOptions{ID: "c", V: 4}
	c := connect(t, b.addr, o)
	_ = c.Publish(7, "a", 2, []byte("x"))
	eventually(t, "taken", func() bool { return b.disk.n.Load() == 1 })
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	expect(t, c, packets.Pingresp)
	b.disk.breakDown()
	closed(t, c)
	b.disk.mu.Lock()
	b.disk.broken, b.disk.manual = nil, false
	b.disk.mu.Unlock()
	c = connect(t, b.addr, o)
	_ = c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2, Dup: true}, PacketID: 7, TopicName: "a", Payload: []byte("x"),
	})
	expect(t, c, packets.Pubrec)
	if n := b.disk.n.Load(); n != 2 {
		t.Errorf("%d taken, want 2", n)
	}
}

// A version 3.1.1 client is not told of a bound for open QoS 2 messages, so there is none but its identifiers.
func TestNoReceiveMaximumForOldClients(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	go func() {
		for i := range receiveMaximum + 10 {
			_ = c.Publish(uint16(i+1), "a", 2, nil)
		}
	}()
	for range receiveMaximum + 10 {
		expect(t, c, packets.Pubrec)
	}
}

// What cannot be decoded ends the connection; a version 5 client is told why.
func TestMalformed(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"topic not UTF-8":           {0x30, 5, 0, 2, 0xc3, 0x28, 0},
		"topic with NUL":            {0x30, 5, 0, 2, 'a', 0, 0},
		"QoS 3":                     {0x36, 6, 0, 1, 'a', 0, 1, 0},
		"subscribe with flags 0000": {0x80, 7, 0, 1, 0, 0, 1, 'a', 0},
		"second connect":            {0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBroker(t, nil)
			c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
			_ = c.Raw(bytes)
			before := closed(t, c)
			if len(before) != 1 || before[0].FixedHeader.Type != packets.Disconnect {
				t.Fatalf("got %v", before)
			}
			if code := before[0].ReasonCode; code != codeMalformed && code != codeProtocolError {
				t.Errorf("reason code %#x", code)
			}
		})
	}
}
