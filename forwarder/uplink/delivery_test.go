package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

func TestEachMessageCompletesOnceInOrder(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		for _, qos := range []message.QoS{1, 2} {
			t.Run(fmt.Sprintf("qos%d", qos), func(t *testing.T) {
				const n = 3000
				peer := cloud(t, testpeer.Options{})
				h := run(t, v, nil, nil, peer.URL())
				l := newLedger(n)
				err := l.drain(within(t, 30*time.Second), h.Client, func(i int) message.Message { return reading(i, qos) })
				if err != nil {
					t.Fatal(err)
				}
				l.once(t, success)
				if extra := arrivals(t, peer, n); extra != 0 {
					t.Errorf("%d messages were sent twice without a reason", extra)
				}
				for _, r := range telemetry(peer) {
					if r.QoS != byte(qos) {
						t.Fatalf("sent with qos %d, want %d", r.QoS, qos)
					}
				}
			})
		}
	})
}

// hostile loses acknowledgements, cuts in mid-packet and between packets, and forgets the session now and then.
func hostile(seed uint64, grant uint16) testpeer.Script {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	return testpeer.Script{
		Connect: func(c testpeer.Connect) testpeer.Greeting {
			return testpeer.Greeting{ReceiveMaximum: grant, Forget: c.Conn%3 == 0}
		},
		Publish: func(r testpeer.Received) testpeer.Answer {
			mu.Lock()
			defer mu.Unlock()
			switch x := rng.IntN(1000); {
			case x < 2:
				return testpeer.Answer{Drop: true}
			case x == 3:
				return testpeer.Answer{Then: testpeer.Fault{Kind: testpeer.Cut}}
			case x == 4:
				return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Cut}}
			case x == 5:
				return testpeer.Answer{Then: testpeer.Fault{Kind: testpeer.Tear}}
			}
			return testpeer.Answer{}
		},
	}
}

func TestLostAcknowledgements(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		for _, qos := range []message.QoS{1, 2} {
			t.Run(fmt.Sprintf("qos%d", qos), func(t *testing.T) {
				const n = 4000
				peer := cloud(t, testpeer.Options{})
				peer.SetScript(hostile(uint64(qos), 200))
				h := run(t, v, func(c *config.Uplink) {
					c.AckTimeout = config.Duration(300 * time.Millisecond)
					if v.commands { // a session that outlives connections: Session Present 0 and 1
						c.Commands = []config.Command{{From: "cmd/{gateway}/#"}}
					}
				}, nil, peer.URL())
				l := newLedger(n)
				err := l.drain(within(t, 100*time.Second), h.Client, func(i int) message.Message { return reading(i, qos) })
				if err != nil {
					t.Fatal(err)
				}
				l.once(t, success)
				extra := arrivals(t, peer, n)
				t.Logf("%d messages, %d connections, %d sent again", n, len(peer.Connects()), extra)
				if got := len(peer.Connects()); got < 5 {
					t.Errorf("only %d connections, the peer was not hostile", got)
				}
			})
		}
	})
}

func TestIdentifiersWrapOnOneConnection(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		const n = 66_000 // more than there are packet identifiers
		// The first message stays in flight while all identifiers go round. Paho's tokens are waited for in order of
		// sending, so there it would fill the window.
		stuck := v.name != "mqtt311-paho"
		var count int
		var first uint16
		var reused atomic.Uint32
		h := run(t, v, func(c *config.Uplink) { c.AckTimeout = config.Duration(time.Minute) }, nil,
			"mqtt://"+sink(t, func(id uint16) bool {
				count++ // the status is number 1
				if count == 2 {
					first = id
				} else if id == first {
					reused.Store(uint32(id))
				}
				return count != 2 || !stuck
			}))
		link := connected(t, h)
		l := newLedger(n)
		ctx := within(t, 60*time.Second)
		for i := range n {
			if err := link.Send(ctx, reading(i, 1), Identity{}, l.done(i)); err != nil {
				t.Fatal(err)
			}
		}
		if !stuck {
			eventually(t, "all are acknowledged", func() bool { return l.remaining() == 0 })
			l.once(t, success)
			return
		}
		eventually(t, "one is open", func() bool { return l.remaining() == 1 })
		h.stop()
		if l.remaining() == 0 {
			t.Error("the message that got no acknowledgement was completed with success")
		}
		if id := reused.Load(); id != 0 {
			t.Errorf("packet identifier %d was used again while in flight [MQTT-2.2.1-3]", id)
		}
	})
}

func TestWindowIsKept(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		release := make(chan struct{})
		var once sync.Once
		peer.SetScript(testpeer.Script{
			Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{ReceiveMaximum: 5} },
			Publish: func(r testpeer.Received) testpeer.Answer { return testpeer.Answer{Drop: r.Conn == 1} },
		})
		h := run(t, v, func(c *config.Uplink) {
			if !v.is5() {
				c.MaxInFlight = 5
			}
			c.AckTimeout = config.Duration(time.Minute)
		}, nil, peer.URL())
		link := connected(t, h)
		l := newLedger(20)
		sent := make(chan int, 1)
		go func() {
			n := 0
			for i := range 20 {
				ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
				err := link.Send(ctx, reading(i, 1), Identity{}, l.done(i))
				cancel()
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("send: %v", err)
					}
					break
				}
				n++
			}
			sent <- n
		}()
		if n := <-sent; n != 4 { // and the status message
			t.Errorf("%d messages were taken with a window of 5 and the status message in flight, want 4", n)
		}
		if got := peer.Count(); got != 5 {
			t.Errorf("%d messages arrived without an acknowledgement, want 5", got)
		}
		s := h.Status()
		if s.InFlight != 5 || s.Window != 5 {
			t.Errorf("status says %d of %d in flight, want 5 of 5", s.InFlight, s.Window)
		}
		if want := 5; v.is5() && s.Granted != want {
			t.Errorf("status says %d granted, want %d", s.Granted, want)
		}
		once.Do(func() { close(release) })
		link.Close(errors.New("test"))
		if err := l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
			t.Fatal(err)
		}
		l.once(t, success)
	})
}

func TestEverythingOfAMessageTravels(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		link := connected(t, h)
		m := message.Message{
			Topic: "plant/press1/report", Payload: []byte(`{"v":1}`), QoS: 1, Retain: true, ContentType: "application/json",
			ResponseTopic: "answers/gw", CorrelationData: []byte{1, 2, 3}, PayloadUTF8: true,
			Properties: []message.Property{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}, {Key: "tg-id", Value: "forged"}},
			Expires:    time.Now().Add(90 * time.Second),
		}
		l := newLedger(1)
		if err := link.Send(within(t, time.Second), m, identity(7), l.done(0)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "acknowledged", func() bool { return l.remaining() == 0 })
		r := telemetry(peer)[0]
		if r.Topic != m.Topic || !bytes.Equal(r.Payload, m.Payload) || !r.Retain || r.QoS != 1 {
			t.Errorf("arrived as %+v", r)
		}
		if !v.is5() {
			return
		}
		if r.ContentType != m.ContentType || r.ResponseTopic != m.ResponseTopic || !r.PayloadUTF8 ||
			!bytes.Equal(r.CorrelationData, m.CorrelationData) {
			t.Errorf("properties arrived as %+v", r)
		}
		if r.Expiry < 88 || r.Expiry > 90 {
			t.Errorf("expiry is %d s, want about 90", r.Expiry)
		}
		want := []message.Property{
			{Key: "a", Value: "1"},
			{Key: "a", Value: "2"},
			{Key: "tg-id", Value: "id-7"},
			{Key: "tg-seq", Value: "e-normal-7"},
			{Key: "tg-src", Value: "press7"},
			{Key: "tg-up", Value: "gw/cloud"},
		}
		if fmt.Sprint(r.Properties) != fmt.Sprint(want) {
			t.Errorf("user properties %v, want %v", r.Properties, want)
		}
	})
}

func TestRefusedPublications(t *testing.T) {
	codes := map[int]struct {
		code byte
		want error
	}{
		0: {0x00, nil},
		1: {0x10, nil},
		2: {0x97, ErrQuota},
		3: {0x87, ErrNotAuthorized},
		4: {0x90, &RefusedError{Code: 0x90}},
		5: {0x95, &RefusedError{Code: 0x95}},
		6: {0x99, &RefusedError{Code: 0x99}},
		7: {0x80, &RefusedError{Code: 0x80}},
		8: {0x83, &RefusedError{Code: 0x83}},
	}
	each(t, func(t *testing.T, v variant) {
		if !v.is5() {
			return // MQTT 3.1.1 has no reason codes
		}
		for _, qos := range []message.QoS{1, 2} {
			peer := cloud(t, testpeer.Options{})
			peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
				var n int
				if _, err := fmt.Sscan(string(r.Payload), &n); err != nil {
					return testpeer.Answer{} // the status
				}
				a := testpeer.Answer{Code: codes[n%len(codes)].code}
				if a.Code >= 0x80 {
					a.Reason = "because"
				}
				return a
			}})
			h := run(t, v, nil, nil, peer.URL())
			l := newLedger(900)
			err := l.drain(within(t, 20*time.Second), h.Client, func(i int) message.Message { return reading(i, qos) })
			if err != nil {
				t.Fatal(err)
			}
			l.once(t, func(n int) error { return codes[n%len(codes)].want })
			var refused *RefusedError
			if !errors.As(l.results[4], &refused) || refused.Reason != "because" {
				t.Errorf("the broker's reason is lost: %v", l.results[4])
			}
			if len(peer.Connects()) != 1 {
				t.Errorf("a refused message cost the connection")
			}
			h.stop()
		}
	})
}

func TestMessagesThatCannotBeSent(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
			return testpeer.Greeting{MaximumPacketSize: 2000}
		}})
		h := run(t, v, nil, nil, peer.URL())
		link := connected(t, h)
		cases := []struct {
			name string
			m    message.Message
			want byte
			only bool // on MQTT 5
		}{
			{"wildcard in the topic name [MQTT-3.3.2-2]", message.Message{Topic: "a/#"}, 0x90, false},
			{"empty topic name", message.Message{}, 0x90, false},
			{"larger than the broker takes [MQTT-3.2.2-15]", message.Message{Topic: "a", Payload: make([]byte, 2000)}, 0x95, true},
			{
				"user property too long", message.Message{
					Topic: "a", Properties: []message.Property{{Key: "k", Value: string(make([]byte, 70000))}},
				}, 0x95, true,
			},
		}
		for _, c := range cases {
			if c.only && !v.is5() {
				continue
			}
			var got error
			if err := link.Send(within(t, time.Second), c.m, Identity{}, func(err error) { got = err }); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			var refused *RefusedError
			if !errors.As(got, &refused) || refused.Code != c.want {
				t.Errorf("%s: done got %v, want %#x", c.name, got, c.want)
			}
		}
		if n := len(telemetry(peer)); n != 0 {
			t.Errorf("%d of them were sent", n)
		}
	})
}

func TestQoSAndRetainAreClampedToWhatTheBrokerTakes(t *testing.T) {
	peer := cloud(t, testpeer.Options{})
	one := byte(1)
	peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
		return testpeer.Greeting{MaximumQoS: &one, RetainRefused: true}
	}})
	h := run(t, variants()[0], nil, nil, peer.URL())
	l := newLedger(1)
	err := l.drain(within(t, 5*time.Second), h.Client, func(int) message.Message {
		return message.Message{Topic: "t", Payload: []byte("0"), QoS: 2, Retain: true}
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := telemetry(peer)[0]; r.QoS != 1 || r.Retain {
		t.Errorf("sent with qos %d, retain %v", r.QoS, r.Retain)
	}
}
