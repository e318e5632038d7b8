package edge

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/message"
)

// The client never has more unacknowledged messages than its Receive Maximum [MQTT-3.3.4-9], and gets all of them in order.
func TestReceiveMaximumOfClient(t *testing.T) {
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 5, Clean: true, RM: 3})
	subscribe(t, s, "a", 2)
	const n = 60
	for i := range n {
		m := msg("a", "")
		m.Payload, m.QoS = number(i), message.QoS(1+i%2)
		if _, err := b.Publish(m); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < n; i += 3 {
		var round []packets.Packet
		for j := range 3 {
			pk := expect(t, s, packets.Publish)
			if numberOf(pk) != i+j {
				t.Fatalf("message %d came as number %d", numberOf(pk), i+j)
			}
			round = append(round, pk)
		}
		if i%15 == 0 {
			silent(t, s, 20*time.Millisecond)
		}
		for _, pk := range round {
			if pk.FixedHeader.Qos == 1 {
				_ = s.Ack(packets.Puback, pk.PacketID)
				continue
			}
			_ = s.Ack(packets.Pubrec, pk.PacketID)
		}
		rels := 0
		for _, pk := range round {
			rels += int(pk.FixedHeader.Qos) - 1
		}
		// PUBLISH packets that the PUBACKs made room for may come between the PUBRELs: put them back by reading in order.
		for rels > 0 {
			pk, err := s.next(5 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if pk.FixedHeader.Type == packets.Pubrel {
				_ = s.Ack(packets.Pubcomp, pk.PacketID)
				rels--
				continue
			}
			s.unread(pk)
		}
	}
}

// What was not acknowledged comes again after a reconnect: first, in order, with DUP and the old identifiers; QoS 2 goes on
// where it was.
func TestResume(t *testing.T) {
	for _, o := range []rawOptions{{ID: "s", V: 4}, {ID: "s", V: 5, Expiry: 60, RM: 4}} {
		b := startBroker(t, nil)
		s := connect(t, b.addr, o)
		subscribe(t, s, "a", 2)
		send := func(from, to int) {
			for i := from; i < to; i++ {
				m := msg("a", "")
				m.Payload, m.QoS = number(i), message.QoS(1+i%2)
				if _, err := b.Publish(m); err != nil {
					t.Fatal(err)
				}
			}
		}
		send(0, 4)
		var first []packets.Packet
		for range 4 {
			first = append(first, expect(t, s, packets.Publish))
		}
		_ = s.Ack(packets.Pubrec, first[3].PacketID) // 0 QoS 1, 1 QoS 2, 2 QoS 1, 3 QoS 2 released
		expect(t, s, packets.Pubrel)
		_ = s.Ack(packets.Puback, first[2].PacketID)
		_ = s.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		expect(t, s, packets.Pingresp)
		_ = s.Close()
		eventually(t, "offline", func() bool { return b.Clients() == 0 })
		send(4, 6)
		s = connect(t, b.addr, o)
		for _, want := range first[:2] {
			pk := expect(t, s, packets.Publish)
			if !pk.FixedHeader.Dup || pk.PacketID != want.PacketID || numberOf(pk) != numberOf(want) || pk.FixedHeader.Qos != want.FixedHeader.Qos {
				t.Errorf("repeated %+v, want %+v", pk.FixedHeader, want.FixedHeader)
			}
		}
		if rel := expect(t, s, packets.Pubrel); rel.PacketID != first[3].PacketID {
			t.Errorf("PUBREL for %d, want %d", rel.PacketID, first[3].PacketID)
		}
		_ = s.Ack(packets.Pubcomp, first[3].PacketID)
		for i := 4; i < 6; i++ {
			if pk := expect(t, s, packets.Publish); numberOf(pk) != i || pk.FixedHeader.Dup {
				t.Errorf("got %d, want %d; DUP %v", numberOf(pk), i, pk.FixedHeader.Dup)
			}
		}
	}
}

func TestUnknownPubrec(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	_ = c.Ack(packets.Pubrec, 77)
	if rel := expect(t, c, packets.Pubrel); rel.PacketID != 77 || rel.ReasonCode != codeUnknownPacketID {
		t.Errorf("PUBREL %#x for %d", rel.ReasonCode, rel.PacketID)
	}
}

func TestTopicAliasToClient(t *testing.T) {
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 5, Clean: true, AliasMax: 2})
	subscribe(t, s, "a/#", 1)
	type seen struct {
		topic string
		alias uint16
	}
	var got []seen
	for i, topic := range []string{"a/1", "a/1", "a/2", "a/3", "a/2", "a/1"} {
		m := msg(topic, "x")
		m.QoS = message.QoS(i % 2)
		_, _ = b.Publish(m)
		pk := expect(t, s, packets.Publish)
		got = append(got, seen{pk.TopicName, pk.Properties.TopicAlias})
	}
	want := []seen{{"a/1", 1}, {"", 1}, {"a/2", 2}, {"a/3", 0}, {"", 2}, {"", 1}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// One copy with the highest QoS and all identifiers [MQTT-3.3.4-2] [MQTT-3.3.4-4].
func TestOverlappingSubscriptions(t *testing.T) {
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 5, Clean: true})
	for i, f := range []packets.Subscription{
		{Filter: "o/#", Qos: 0, Identifier: 1},
		{Filter: "o/+", Qos: 2, Identifier: 2, NoLocal: true},
		{Filter: "o/x", Qos: 1, Identifier: 3, RetainAsPublished: true},
		{Filter: "other", Qos: 1, Identifier: 4},
	} {
		if code := subscribeWith(t, s, f); code != f.Qos {
			t.Fatalf("subscription %d: %#x", i, code)
		}
	}
	m := msg("o/x", "x")
	m.QoS, m.Retain = 2, true
	_, _ = b.Publish(m)
	pk := expect(t, s, packets.Publish)
	if fmt.Sprint(pk.Properties.SubscriptionIdentifier) != "[1 2 3]" || pk.FixedHeader.Qos != 2 || !pk.FixedHeader.Retain {
		t.Errorf("got %+v %v", pk.FixedHeader, pk.Properties.SubscriptionIdentifier)
	}
	_ = s.Publish(0, "o/x", 0, nil) // its own: not through the second
	pk = expect(t, s, packets.Publish)
	if fmt.Sprint(pk.Properties.SubscriptionIdentifier) != "[1 3]" {
		t.Errorf("own message came by %v", pk.Properties.SubscriptionIdentifier)
	}
	silent(t, s, 30*time.Millisecond)
}

func TestNoLocal(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	other := connect(t, b.addr, rawOptions{ID: "o", V: 5, Clean: true})
	subscribeWith(t, c, packets.Subscription{Filter: "n", NoLocal: true})
	_ = c.Publish(0, "n", 0, []byte("mine"))
	_ = other.Publish(0, "n", 0, []byte("theirs"))
	if pk := expect(t, c, packets.Publish); string(pk.Payload) != "theirs" {
		t.Errorf("got %q", pk.Payload)
	}
	silent(t, c, 30*time.Millisecond)
}

func TestUnsubscribe(t *testing.T) {
	b := startBroker(t, nil)
	for _, v := range []byte{4, 5} {
		c := connect(t, b.addr, rawOptions{ID: "c", V: v, Clean: true})
		subscribe(t, c, "u", 1)
		_ = c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: 5,
			Filters: packets.Subscriptions{{Filter: "u"}, {Filter: "never"}},
		})
		ack := expect(t, c, packets.Unsuback)
		want := map[byte]string{4: "[]", 5: "[0 17]"}[v]
		if fmt.Sprint(ack.ReasonCodes) != want || ack.PacketID != 5 {
			t.Errorf("UNSUBACK %v for %d", ack.ReasonCodes, ack.PacketID)
		}
		_ = c.Publish(0, "u", 0, nil)
		silent(t, c, 30*time.Millisecond)
	}
}

func TestRetained(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.RetainedLimit = 3 })
	p := connect(t, b.addr, rawOptions{ID: "p", V: 5, Clean: true})
	retain := func(topic, payload string) {
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: 1, TopicName: topic, Payload: []byte(payload),
		}
		_ = p.Send(pk)
		expect(t, p, packets.Puback)
	}
	retain("r/1", "old")
	retain("r/1", "one")
	retain("r/2", "two")
	retain("r/2/x", "three")
	retain("r/4", "no room")
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "retained_limit"); n != 1 {
		t.Errorf("counted %v", n)
	}
	got := func(c *rawClient) map[string]string {
		m := map[string]string{}
		for {
			pk, err := c.Recv(50 * time.Millisecond)
			if err != nil {
				return m
			}
			if !pk.FixedHeader.Retain {
				t.Errorf("%s without retain flag", pk.TopicName)
			}
			m[pk.TopicName] = string(pk.Payload)
		}
	}
	s := connect(t, b.addr, rawOptions{ID: "s", V: 5, Clean: true})
	for _, step := range []struct {
		sub  packets.Subscription
		want string
	}{
		{packets.Subscription{Filter: "r/+"}, "map[r/1:one r/2:two]"},
		{packets.Subscription{Filter: "r/2/#"}, "map[r/2:two r/2/x:three]"},
		{packets.Subscription{Filter: "#", RetainHandling: 1}, "map[r/1:one r/2:two r/2/x:three]"},
		{packets.Subscription{Filter: "#", RetainHandling: 1}, "map[]"},
		{packets.Subscription{Filter: "#", RetainHandling: 0}, "map[r/1:one r/2:two r/2/x:three]"},
		{packets.Subscription{Filter: "r/1", RetainHandling: 2}, "map[]"},
		{packets.Subscription{Filter: "$share/g/#"}, "map[]"},
		{packets.Subscription{Filter: "+/+/x"}, "map[r/2/x:three]"},
	} {
		subscribeWith(t, s, step.sub)
		if m := fmt.Sprint(got(s)); m != step.want {
			t.Errorf("%+v: %s, want %s", step.sub, m, step.want)
		}
	}
	// Live messages carry the flag only where the subscription asks for it [MQTT-3.3.1-12] [MQTT-3.3.1-13].
	live := connect(t, b.addr, rawOptions{ID: "live", V: 5, Clean: true})
	subscribeWith(t, live, packets.Subscription{Filter: "r/1", RetainHandling: 2})
	kept := connect(t, b.addr, rawOptions{ID: "kept", V: 5, Clean: true})
	subscribeWith(t, kept, packets.Subscription{Filter: "r/1", RetainHandling: 2, RetainAsPublished: true})
	retain("r/1", "") // removes it
	if pk := expect(t, live, packets.Publish); pk.FixedHeader.Retain {
		t.Error("retain flag on a live message")
	}
	if pk := expect(t, kept, packets.Publish); !pk.FixedHeader.Retain {
		t.Error("no retain flag though asked for")
	}
	if r := b.Retained("r/1"); len(r) != 0 {
		t.Errorf("still retained: %v", r)
	}
	retain("r/4", "room now")
	if r := b.Retained("r/4"); len(r) != 1 {
		t.Error("not retained though there is room")
	}
}

func TestRetainedExpires(t *testing.T) {
	b := startBroker(t, nil)
	m := msg("e", "x")
	m.Retain, m.Expires = true, time.Now().Add(60*time.Second)
	_, _ = b.Publish(m)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	subscribe(t, c, "e", 0)
	if left := expect(t, c, packets.Publish).Properties.MessageExpiryInterval; left > 60 || left < 50 {
		t.Errorf("expiry %d", left)
	}
	m.Expires = time.Now().Add(300 * time.Millisecond)
	_, _ = b.Publish(m)
	expect(t, c, packets.Publish)
	eventually(t, "expired", func() bool { return len(b.Retained("e")) == 0 })
	subscribe(t, c, "e", 0)
	silent(t, c, 30*time.Millisecond)
}

// A retained message must not come after a newer one of its topic.
func TestRetainedAndLiveInOrder(t *testing.T) {
	b := startBroker(t, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				m := msg("a", "")
				m.Payload, m.Retain, m.QoS = number(i), true, 0
				_, _ = b.Publish(m)
			}
		}
	})
	for range 20 {
		c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
		subscribe(t, c, "a", 0)
		last := -1
		for range 50 {
			pk := expect(t, c, packets.Publish)
			if i := numberOf(pk); i < last {
				t.Fatalf("%d after %d", i, last)
			} else {
				last = i
			}
		}
		c.Disconnect()
	}
}

// QoS 0 for a client that does not read: bounded, counted, and nobody else is affected.
func TestQoS0Overload(t *testing.T) {
	b := startBroker(t, nil)
	stuck := connect(t, b.addr, rawOptions{ID: "stuck", V: 4, Clean: true, RcvBuf: 64 << 10})
	subscribe(t, stuck, "a", 0)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "a", 0)
	payload := make([]byte, 16<<10)
	const n = 4000
	for range n {
		m := msg("a", "")
		m.Payload, m.QoS = payload, 0
		_, _ = b.Publish(m)
		if pk := expect(t, c, packets.Publish); len(pk.Payload) != len(payload) {
			t.Fatal("short")
		}
	}
	dropped := int(b.metric(t, "tidegate_session_drops_total", "reason", "slow"))
	if dropped == 0 {
		t.Fatal("nothing dropped: the test sends too little")
	}
	if got, _ := collectAny(stuck, n, 2*time.Second); got+dropped != n {
		t.Errorf("%d delivered and %d counted as dropped, of %d", got, dropped, n)
	}
}

// What was acknowledged to its publisher reaches a subscriber that takes it late. (The library drops it; the bare one cannot show this,
// since its publishers stall before.)
func TestSlowSubscriberGetsEverything(t *testing.T) {
	const n = 12000 // more than the library's channel and the buffers of the sockets hold
	b := startBroker(t, nil)
	s := connect(t, b.addr, rawOptions{ID: "s", V: 4, Clean: true, KeepAlive: 600, RcvBuf: 64 << 10})
	subscribe(t, s, "slow", 1)
	acked := publisher(t, b.addr, "slow", n, 500, 3000)()
	if got, inversions := collect(s, acked, 10*time.Second); acked != n || got != n || inversions > 0 {
		t.Errorf("%d of %d acknowledged, %d of them arrived, %d inversions", acked, n, got, inversions)
	}
}

func TestSessionQueueBound(t *testing.T) {
	b := startBroker(t, func(o *Options) { o.Broker.SessionQueue = 100 << 10 })
	o := rawOptions{ID: "c", V: 4}
	c := connect(t, b.addr, o)
	subscribe(t, c, "a", 1)
	c.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == 0 })
	const n = 300
	for i := range n {
		m := msg("a", "")
		m.Payload = append(number(i), make([]byte, 1000)...)
		_, _ = b.Publish(m)
		m.QoS = 0
		_, _ = b.Publish(m) // not kept for who is away, and not counted
	}
	dropped := int(b.metric(t, "tidegate_session_drops_total", "reason", "queue_full"))
	if dropped == 0 || dropped == n {
		t.Fatalf("dropped %d", dropped)
	}
	c = connect(t, b.addr, o)
	for i := dropped; i < n; i++ {
		pk := expect(t, c, packets.Publish)
		_ = c.Ack(packets.Puback, pk.PacketID)
		if numberOf(pk) != i {
			t.Fatalf("got %d, want %d: the oldest go first", numberOf(pk), i)
		}
	}
	silent(t, c, 30*time.Millisecond)
}

func TestMessageExpiry(t *testing.T) {
	b := startBroker(t, nil)
	o := rawOptions{ID: "c", V: 5, Expiry: 60}
	c := connect(t, b.addr, o)
	subscribe(t, c, "a", 1)
	c.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == 0 })
	for i, d := range []time.Duration{50 * time.Millisecond, time.Minute, 0} {
		m := msg("a", "")
		m.Payload = number(i)
		if d > 0 {
			m.Expires = time.Now().Add(d)
		}
		_, _ = b.Publish(m)
	}
	time.Sleep(100 * time.Millisecond)
	c = connect(t, b.addr, o)
	if pk := expect(t, c, packets.Publish); numberOf(pk) != 1 || pk.Properties.MessageExpiryInterval < 50 {
		t.Errorf("got %d, expiry %d", numberOf(pk), pk.Properties.MessageExpiryInterval)
	}
	if pk := expect(t, c, packets.Publish); numberOf(pk) != 2 || pk.Properties.MessageExpiryInterval != 0 {
		t.Errorf("got %d, expiry %d", numberOf(pk), pk.Properties.MessageExpiryInterval)
	}
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "expired"); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// A packet above the client's Maximum Packet Size is not sent [MQTT-3.1.2-24] and holds up nothing.
func TestMaximumPacketSizeOfClient(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true, RM: 1, Mod: func(pk *packets.Packet) {
		pk.Properties.MaximumPacketSize = 200
	}})
	subscribe(t, c, "a", 1)
	for i, size := range []int{10, 500, 500, 10} {
		m := msg("a", "")
		m.Payload = append(number(i), make([]byte, size)...)
		_, _ = b.Publish(m)
	}
	for _, want := range []int{0, 3} {
		pk := expect(t, c, packets.Publish)
		_ = c.Ack(packets.Puback, pk.PacketID)
		if numberOf(pk) != want {
			t.Errorf("got %d, want %d", numberOf(pk), want)
		}
	}
	if n := b.metric(t, "tidegate_session_drops_total", "reason", "too_large"); n != 2 {
		t.Errorf("counted %v", n)
	}
}

// Live members get equal shares, within 5 %.
func TestSharedEvenly(t *testing.T) {
	b := startBroker(t, nil)
	const members, n = 3, 3000
	var wg sync.WaitGroup
	got := make([]int, members)
	for i := range members {
		c := connect(t, b.addr, rawOptions{ID: fmt.Sprintf("m%d", i), V: byte(4 + i%2), Clean: true})
		subscribe(t, c, "$share/g/a/+", 1)
		wg.Go(func() { got[i], _ = collect(c, n, time.Second) })
	}
	away := connect(t, b.addr, rawOptions{ID: "away", V: 5, Expiry: 60})
	subscribe(t, away, "$share/g/a/+", 1)
	away.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == members })
	publisher(t, b.addr, "a/x", n, 50, 0)()
	wg.Wait()
	total := 0
	for _, k := range got {
		total += k
		if math.Abs(float64(k-n/members)) > 0.05*n/members {
			t.Errorf("shares %v", got)
		}
	}
	if total != n {
		t.Errorf("%d of %d delivered", total, n)
	}
}

// What a member of a shared subscription had not taken when its session ended goes to another one.
func TestSharedHandsOver(t *testing.T) {
	b := startBroker(t, nil)
	first := connect(t, b.addr, rawOptions{ID: "first", V: 5, Clean: true, RM: 2})
	subscribe(t, first, "$share/g/a", 1)
	publisher(t, b.addr, "a", 10, 10, 0)()
	for range 2 {
		expect(t, first, packets.Publish)
	}
	second := connect(t, b.addr, rawOptions{ID: "second", V: 5, Clean: true})
	subscribe(t, second, "$share/g/a", 1)
	_ = first.Close()
	if got, inversions := collect(second, 10, time.Second); got != 10 || inversions > 0 {
		t.Errorf("%d of 10, %d inversions", got, inversions)
	}
}

// Nobody of the group is there: the messages wait for a member whose session is kept.
func TestSharedAllOffline(t *testing.T) {
	b := startBroker(t, nil)
	o := rawOptions{ID: "m", V: 5, Expiry: 60}
	m := connect(t, b.addr, o)
	subscribe(t, m, "$share/g/a", 1)
	m.Disconnect()
	eventually(t, "offline", func() bool { return b.Clients() == 0 })
	publisher(t, b.addr, "a", 10, 10, 0)()
	m = connect(t, b.addr, o)
	if got, _ := collect(m, 10, time.Second); got != 10 {
		t.Errorf("%d of 10", got)
	}
}

func TestSubscriptionLimit(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 5, Clean: true})
	var filters packets.Subscriptions
	for i := range maxFilters + 1 {
		filters = append(filters, packets.Subscription{Filter: fmt.Sprintf("f/%d", i)})
	}
	_ = c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1, Filters: filters})
	ack := expect(t, c, packets.Suback)
	if n := len(ack.ReasonCodes); n != maxFilters+1 || ack.ReasonCodes[n-1] != codeQuota || ack.ReasonCodes[n-2] != 0 {
		t.Errorf("%d codes, the last %#x", n, ack.ReasonCodes[n-1])
	}
}

// What a subscriber saw last of a topic is what is retained, however many publish it.
func TestRetainedIsWhatWasSeenLast(t *testing.T) {
	b := startBroker(t, nil)
	c := connect(t, b.addr, rawOptions{ID: "c", V: 4, Clean: true})
	subscribe(t, c, "a", 1)
	for range 50 {
		const publishers = 8
		var wg sync.WaitGroup
		for i := range publishers {
			wg.Go(func() {
				m := msg("a", "")
				m.Payload, m.Retain = number(i), true
				_, _ = b.Publish(m)
			})
		}
		wg.Wait()
		last := -1
		for range publishers {
			pk := expect(t, c, packets.Publish)
			_ = c.Ack(packets.Puback, pk.PacketID)
			last = numberOf(pk)
		}
		if kept := b.Retained("a"); len(kept) != 1 || string(kept[0].Payload) != string(number(last)) {
			t.Fatalf("saw %d last, retained is %v", last, kept[0].Payload)
		}
	}
}
