package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

func TestAckTimeoutDropsTheConnection(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Drop: r.Conn == 1 && string(r.Payload) == "3"} // all others are acknowledged
		}})
		h := run(t, v, func(c *config.Uplink) { c.AckTimeout = config.Duration(100 * time.Millisecond) }, nil, peer.URL())
		l := newLedger(50)
		err := l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
		if err != nil {
			t.Fatal(err)
		}
		l.once(t, success)
		arrivals(t, peer, 50)
		if h.reconnects(endAckTimeout) == 0 {
			t.Errorf("no reconnect because of ack_timeout\n%s", h.log)
		}
	})
}

func TestSlowLineIsNoAckTimeout(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		proxy, err := testpeer.NewProxy(peer.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
		h := run(t, v, func(c *config.Uplink) {
			c.AckTimeout = config.Duration(1500 * time.Millisecond)
		}, nil, "mqtt://"+proxy.Addr())
		connected(t, h)
		proxy.Throttle(35_000) // a full window takes three seconds
		l := newLedger(100)
		err = l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message {
			m := reading(i, 1)
			m.Payload = append(make([]byte, 1000), m.Payload...)
			return m
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(peer.Connects()); n != 1 {
			t.Errorf("%d connections on a line that was slow but moved\n%s", n, h.log)
		}
	})
}

func TestBlackHole(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
			if r.Conn == 1 && r.N == 10 {
				return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Stall}}
			}
			return testpeer.Answer{}
		}})
		h := run(t, v, func(c *config.Uplink) { c.AckTimeout = config.Duration(time.Second) }, nil, peer.URL())
		l := newLedger(600)
		payload := make([]byte, 16<<10) // fills every buffer on the way
		for i := range payload {
			payload[i] = ' '
		}
		err := l.drain(within(t, 40*time.Second), h.Client, func(i int) message.Message {
			m := reading(i, 1)
			m.Payload = append(append([]byte(nil), payload...), m.Payload...)
			return m
		})
		if err != nil {
			t.Fatal(err)
		}
		l.once(t, success)
		if h.reconnects(endAckTimeout) == 0 {
			t.Errorf("not dropped because of ack_timeout\n%s", h.log)
		}
	})
}

func TestIdleBlackHoleIsFoundByKeepAlive(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		proxy, err := testpeer.NewProxy(peer.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
		h := run(t, v, func(c *config.Uplink) { c.KeepAlive = config.Duration(time.Second) }, nil, "mqtt://"+proxy.Addr())
		first := connected(t, h)
		eventually(t, "status acknowledged", func() bool { return h.Status().InFlight == 0 })
		select {
		case <-first.Lost():
			t.Fatalf("an idle connection was dropped\n%s", h.log)
		case <-time.After(2500 * time.Millisecond): // longer than one and a half keep alive intervals
		}
		proxy.BlackHole(true)
		select {
		case <-first.Lost():
		case <-time.After(60 * time.Second):
			t.Fatal("a dead connection was not noticed")
		}
		proxy.Cut()
		proxy.BlackHole(false)
		connected(t, h)
	})
}

func TestServersAreTriedInOrder(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		refusing := cloud(t, testpeer.Options{})
		refusing.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
			return testpeer.Greeting{Code: map[bool]byte{true: 0x88, false: 3}[v.is5()]}
		}})
		good := cloud(t, testpeer.Options{})
		gone := "mqtt://" + unusedAddr(t)
		h := run(t, v, nil, nil, gone, refusing.URL(), good.URL())
		connected(t, h)
		if s := h.Status(); s.Server != h.urls[2] || !s.Connected {
			t.Errorf("status %+v, want connected to %s", s, h.urls[2])
		}
		if h.reconnects(endNetwork) < 1 || h.reconnects(endRefused) < 1 {
			t.Error("the failed attempts were not counted")
		}
		if testutil.ToFloat64(h.metrics.connected()) != 1 {
			t.Error("tidegate_uplink_connected is not 1")
		}
		// When the link goes, the first server gets its chance again.
		refusing.SetScript(testpeer.Script{})
		good.Down()
		eventually(t, "the second server is used", func() bool {
			s := h.Status()
			return s.Connected && s.Server == h.urls[1]
		})
	})
}

// unusedAddr is an address on which nobody listens.
func unusedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestRefusedLoginIsRetriedSlowly(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		code := byte(4)
		if v.is5() {
			code = 0x86
		}
		peer.SetScript(testpeer.Script{Connect: func(c testpeer.Connect) testpeer.Greeting {
			if c.Username == "gw" && c.Password == "secret" && c.Conn > 2 {
				return testpeer.Greeting{}
			}
			return testpeer.Greeting{Code: code, Reason: "who are you"}
		}})
		started := time.Now()
		h := run(t, v, func(c *config.Uplink) {
			c.Username, c.Password = "gw", config.NewSecret("secret")
		}, nil, peer.URL())
		connected(t, h)
		if d := time.Since(started); d < 2*h.pace.slow {
			t.Errorf("two refusals took %s, want at least %s", d, 2*h.pace.slow)
		}
		s := h.Status()
		if !strings.Contains(s.LastError, "bad user name or password") {
			t.Errorf("last error %q", s.LastError)
		}
		if v.is5() && !strings.Contains(s.LastError, "who are you") {
			t.Errorf("the broker's reason is not in %q", s.LastError)
		}
		if n := strings.Count(h.log.String(), "not connected"); n != 1 {
			t.Errorf("%d lines about the same refusal, want 1:\n%s", n, h.log)
		}
		if strings.Contains(h.log.String(), "secret") || strings.Contains(s.LastError, "secret") {
			t.Error("the password is in the log")
		}
	})
}

func TestABrokerThatAnswersNothing(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting {
			return testpeer.Greeting{Silent: true}
		}})
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		h := open(t, v, nil, peer.URL())
		hi := hello{server: h.settings.servers[0], will: h.will(0)}
		if cn, err := h.driver.connect(ctx, &h.settings, hi); err == nil {
			cn.drop(errors.New("test"))
			t.Fatal("connected without a CONNACK")
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connect: %v, want the deadline", err)
		}
	})
}

func TestTakenOverByAnotherClient(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		if !v.is5() {
			return // MQTT 3.1.1 has no DISCONNECT from the broker
		}
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		link := connected(t, h)
		peer.KickAll(0x8E)
		<-link.Lost()
		eventually(t, "said so", func() bool {
			return strings.Contains(h.Status().LastError, "another client connected with the same client identifier")
		})
		if h.reconnects(endTakenOver) != 1 {
			t.Error("not counted as taken_over")
		}
		connected(t, h)
		peer.KickAll(0x97)
		eventually(t, "reason known", func() bool { return strings.Contains(h.Status().LastError, "quota exceeded") })
	})
}

func TestCloseDropsTheConnectionAndFailsWhatIsInFlight(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Drop: r.Topic == "t"}
		}})
		h := run(t, v, nil, nil, peer.URL())
		link := connected(t, h)
		got := make(chan error, 10)
		for range 10 {
			m := message.Message{Topic: "t", QoS: 1}
			if err := link.Send(within(t, time.Second), m, Identity{}, func(err error) { got <- err }); err != nil {
				t.Fatal(err)
			}
		}
		link.Close(errors.New("stuck head"))
		select {
		case <-link.Lost():
		case <-time.After(60 * time.Second):
			t.Fatal("not lost after Close")
		}
		if len(got) != 10 {
			t.Fatalf("%d of 10 were completed when Lost was closed", len(got))
		}
		for range 10 {
			if err := <-got; !errors.Is(err, ErrDisconnected) {
				t.Errorf("completed with %v", err)
			}
		}
		if err := link.Send(within(t, time.Second), message.Message{Topic: "t"}, Identity{}, func(error) {
			t.Error("done of a refused Send was called")
		}); !errors.Is(err, ErrDisconnected) {
			t.Errorf("Send on a lost link: %v", err)
		}
		again := connected(t, h)
		if again == link {
			t.Error("a lost link was given out")
		}
		eventually(t, "reason counted", func() bool { return h.reconnects(endClosed) == 1 })
		if !strings.Contains(h.Status().LastError, "stuck head") {
			t.Errorf("last error %q", h.Status().LastError)
		}
	})
}

func TestConnectedWaitsForContext(t *testing.T) {
	h := open(t, variants()[0], nil, "mqtt://"+unusedAddr(t))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.Connected(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Connected: %v", err)
	}
}

func TestConnectedFailsAfterRun(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		link := connected(t, h)
		h.stop()
		select {
		case <-link.Lost():
		default:
			t.Error("Run ended before its connection")
		}
		if _, err := h.Connected(within(t, time.Second)); !errors.Is(err, ErrDisconnected) {
			t.Errorf("Connected after Run: %v", err)
		}
	})
}

func TestCloudGoesDownAndComesBack(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		l := newLedger(4000)
		ended := make(chan error, 1)
		go func() {
			ended <- l.drain(within(t, 30*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) })
		}()
		for n := range 3 {
			eventually(t, "some arrived", func() bool { return peer.Count() > 500*(n+1) })
			peer.Down()
			eventually(t, "noticed", func() bool { return !h.Status().Connected })
			if err := peer.Up(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		l.once(t, success)
		arrivals(t, peer, 4000)
	})
}

// A connection that took records earns a quick next attempt, however short it was; one that only took the status does not.
func TestShortButUsefulConnectionsDoNotSlowReconnects(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := open(t, v, nil, peer.URL())
		h.pace = pace{base: 100 * time.Millisecond, limit: time.Minute, slow: time.Minute, stable: time.Hour}
		h.start(t, nil)
		started := time.Now()
		for range 12 { // twelve failures in a row would take minutes
			l := connected(t, h)
			answered := make(chan error, 1)
			if err := l.Send(within(t, 5*time.Second), reading(1, 1), identity(1), func(err error) { answered <- err }); err != nil {
				t.Fatal(err)
			}
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			peer.DropAll()
			<-l.Lost()
		}
		if d := time.Since(started); d > 20*time.Second {
			t.Errorf("twelve short connections took %s", d)
		}
	})
	p := defaultPace()
	if got := p.after(5, time.Second, false); got != 5 {
		t.Errorf("a short connection that took nothing leaves %d failures, want 5", got)
	}
}

func TestStatusTopicAndWill(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		connected(t, h)
		eventually(t, "online", func() bool { return peer.Count() == 1 })
		if r := peer.Received()[0]; !r.Retain || r.QoS != 1 || r.Topic != "tidegate/gw/status" || stateOf(t, r.Payload) != "online" {
			t.Errorf("first message %+v %s", r, r.Payload)
		}
		c := peer.Connects()[0]
		if c.WillTopic != "tidegate/gw/status" || !c.WillRetain || c.WillQoS != 1 || stateOf(t, c.WillPayload) != "offline" {
			t.Errorf("will %+v %s", c, c.WillPayload)
		}
		if c.Client != "gw-cloud" || c.KeepAlive != 30 || !c.Clean {
			t.Errorf("connect %+v", c)
		}
		peer.DropAll()
		eventually(t, "the will is published", func() bool { return len(peer.Wills()) == 1 })
		eventually(t, "online again", func() bool { return peer.Count() == 2 })
		h.stop()
		r := peer.Received()
		if last := r[len(r)-1]; stateOf(t, last.Payload) != "offline" || !last.Retain {
			t.Errorf("last message %+v %s, want the retained state offline", last, last.Payload)
		}
		eventually(t, "gone", func() bool { return peer.Open() == 0 })
		if n := len(peer.Wills()); n != 1 {
			t.Errorf("the orderly end published the will: %d wills", n)
		}
		if testutil.ToFloat64(h.metrics.connected()) != 0 || h.Status().Connected {
			t.Error("still counted as connected after the end")
		}
	})
}

func TestStatusTopicTellsTheVersionThatWasSet(t *testing.T) {
	peer := cloud(t, testpeer.Options{})
	h := open(t, variants()[0], nil, peer.URL())
	h.SetVersion("1.2.3")
	h.start(t, nil)
	connected(t, h)
	eventually(t, "online", func() bool { return peer.Count() == 1 })
	for _, payload := range [][]byte{peer.Received()[0].Payload, peer.Connects()[0].WillPayload} {
		var s state
		if err := json.Unmarshal(payload, &s); err != nil || s.Version != "1.2.3" {
			t.Errorf("status %s: %v", payload, err)
		}
	}
}

// TestTell: what the gateway says about its parts is at the cloud after every connect, newest last, and changes live.
func TestTell(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := open(t, v, nil, peer.URL())
		say := func(topic, payload string) {
			h.Tell(message.Message{
				ID: message.NewID(), Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true, Source: message.Source{Protocol: message.Self},
			})
		}
		last := func(topic string) (payload string, n int) {
			for _, r := range peer.Received() {
				if r.Topic == topic {
					payload, n = string(r.Payload), n+1
					if !r.Retain || r.QoS != 1 {
						t.Errorf("%+v is not retained with QoS 1", r)
					}
				}
			}
			return payload, n
		}
		say("a", "1")
		say("b", "1")
		say("a", "2") // before the connection: only the newest counts
		h.start(t, nil)
		connected(t, h)
		eventually(t, "both are told", func() bool { return peer.Count() == 3 })
		if p, n := last("a"); p != "2" || n != 1 {
			t.Errorf("a: %q, %d times", p, n)
		}
		if r := peer.Received()[0]; r.Topic != "tidegate/gw/status" {
			t.Errorf("the first message is about %s, want the gateway", r.Topic)
		}
		say("b", "2")
		eventually(t, "b changed", func() bool { p, n := last("b"); return p == "2" && n == 2 })
		peer.DropAll()
		eventually(t, "all is told again", func() bool { _, a := last("a"); _, b := last("b"); return a == 2 && b == 3 })
	})
}

func stateOf(t *testing.T, payload []byte) string {
	t.Helper()
	var s state
	if err := json.Unmarshal(payload, &s); err != nil {
		t.Fatalf("status %q: %v", payload, err)
	}
	if _, err := time.Parse(time.RFC3339, s.Since); err != nil || s.Version == "" {
		t.Errorf("status %s", payload)
	}
	return s.State
}

func TestStopDoesNotHangOnASilentBroker(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		connected(t, h)
		eventually(t, "online", func() bool { return h.Status().InFlight == 0 })
		peer.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Drop: true, Then: testpeer.Fault{Kind: testpeer.Stall}}
		}})
		started := time.Now()
		h.stop()
		if d := time.Since(started); d > goodbyeTimeout+3*time.Second {
			t.Errorf("stopping took %s", d)
		}
	})
}

// TestGoodbyeThatIsNotTaken: where the broker does not take the status offline it keeps the will, which says the same.
func TestGoodbyeThatIsNotTaken(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		h := run(t, v, nil, nil, peer.URL())
		connected(t, h)
		eventually(t, "online", func() bool { return h.Status().InFlight == 0 })
		peer.SetScript(testpeer.Script{Publish: deaf})
		h.stop()
		eventually(t, "gone", func() bool { return peer.Open() == 0 })
		if w := peer.Wills(); len(w) != 1 || stateOf(t, w[0].Payload) != "offline" {
			t.Errorf("wills %v", w)
		}
	})
}

func TestBrokerWithoutRetainedMessages(t *testing.T) {
	peer := cloud(t, testpeer.Options{})
	peer.SetScript(testpeer.Script{Connect: func(c testpeer.Connect) testpeer.Greeting {
		if c.WillRetain {
			return testpeer.Greeting{Code: 0x9A}
		}
		return testpeer.Greeting{RetainRefused: true}
	}})
	h := run(t, variants()[0], nil, nil, peer.URL())
	connected(t, h)
	eventually(t, "online", func() bool { return peer.Count() == 1 })
	if peer.Received()[0].Retain {
		t.Error("retained status sent to a broker that has none")
	}
}

// TestWillOfAnotherServer: that one server takes no retained will says nothing of the next one, where the status is retained and
// must not stay online for ever.
func TestWillOfAnotherServer(t *testing.T) {
	first, second := cloud(t, testpeer.Options{}), cloud(t, testpeer.Options{})
	first.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{Code: 0x9A} }})
	h := run(t, variants()[0], nil, nil, first.URL(), second.URL())
	connected(t, h)
	eventually(t, "online", func() bool { return second.Count() == 1 })
	if !second.Received()[0].Retain || !second.Connects()[0].WillRetain {
		t.Errorf("status retained: %t, will retained: %t", second.Received()[0].Retain, second.Connects()[0].WillRetain)
	}
	second.DropAll()
	eventually(t, "the first server is tried again", func() bool { return len(first.Connects()) == 2 })
	if first.Connects()[1].WillRetain {
		t.Error("the first server is asked for what it refused")
	}
}

// TestMetricsAreSharedByUplinks: each that runs has a series, one that never ran has none, and one that is forgotten none any more.
func TestMetricsAreSharedByUplinks(t *testing.T) {
	h := open(t, variants()[0], nil, "mqtt://127.0.0.1")
	c := config.Uplink{Servers: []string{"mqtt://127.0.0.1"}, Protocol: "3.1.1"}
	second, err := New("second", c, "gw", h.Client.log, h.reg)
	if err != nil {
		t.Fatal(err)
	}
	series := func(want int) {
		t.Helper()
		if n, err := testutil.GatherAndCount(h.reg, "tidegate_uplink_connected"); err != nil || n != want {
			t.Errorf("%d series, want %d, %v", n, want, err)
		}
	}
	series(0)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, client := range []*Client{h.Client, second} {
		if err := client.Run(over, nil); err != nil {
			t.Error(err)
		}
	}
	series(2)
	second.Forget()
	series(1)
}

func TestBadSettings(t *testing.T) {
	for name, c := range map[string]config.Uplink{
		"no servers":       {Protocol: "5"},
		"unknown scheme":   {Protocol: "5", Servers: []string{"http://h"}},
		"no host":          {Protocol: "5", Servers: []string{"mqtt://"}},
		"unknown protocol": {Protocol: "3.1", Servers: []string{"mqtt://h"}},
		"no such ca":       {Protocol: "5", Servers: []string{"mqtts://h"}, CA: "/does/not/exist"},
		"no such key":      {Protocol: "5", Servers: []string{"mqtts://h"}, Cert: "/does/not/exist", Key: "/does/not/exist"},
	} {
		h := open(t, variants()[0], nil, "mqtt://127.0.0.1")
		if _, err := New("u", c, "gw", h.Client.log, h.reg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	sv, err := parseServer("mqtts://broker.example.com")
	if err != nil || sv.addr != "broker.example.com:8883" || !sv.secure {
		t.Errorf("parsed %+v, %v", sv, err)
	}
}

func TestProvenOnceSomethingWasAnswered(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Drop: r.Conn == 1}
		}})
		h := run(t, v, nil, nil, peer.URL())
		first := connected(t, h)
		eventually(t, "the status arrived", func() bool { return peer.Count() == 1 })
		var refused error
		if err := first.Send(within(t, time.Second), message.Message{}, Identity{}, func(err error) { refused = err }); err != nil {
			t.Fatal(err)
		}
		if refused == nil || first.Proven() {
			t.Errorf("proven by a message that was refused here (%v)", refused)
		}
		if first.ClosedByPeer() {
			t.Error("closed by the peer while it is open")
		}
		peer.DropAll()
		<-first.Lost()
		if !first.ClosedByPeer() {
			t.Error("not closed by the peer, which closed it")
		}
		second := connected(t, h)
		eventually(t, "proven", second.Proven)
		second.Close(errors.New("test"))
		<-second.Lost()
		if second.ClosedByPeer() {
			t.Error("closed by the peer, though it was closed here")
		}
	})
}
