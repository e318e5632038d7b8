package uplink

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// TestReturnWaitsForQuiet: an earlier server has to answer for the whole time without a break.
func TestReturnWaitsForQuiet(t *testing.T) {
	type answers func(server string, since time.Duration) error
	down := errors.New("connection refused")
	for name, c := range map[string]struct {
		current  int
		answer   answers
		to       int
		from, by time.Duration // when the move is due; 0: never within a day
	}{
		"answers at once": {1, func(string, time.Duration) error { return nil }, 0, 5 * time.Minute, 8 * time.Minute},
		"answers later": {1, func(_ string, d time.Duration) error {
			if d < 2*time.Hour {
				return down
			}
			return nil
		}, 0, 2*time.Hour + 5*time.Minute, 2*time.Hour + 14*time.Minute},
		"never": {1, func(string, time.Duration) error { return down }, 0, 0, 0},
		"comes and goes": {1, func(_ string, d time.Duration) error {
			if d%(5*time.Minute) < 90*time.Second { // away for 90 s of every five minutes
				return down
			}
			return nil
		}, 0, 0, 0},
		"the second of three": {2, func(s string, _ time.Duration) error {
			if strings.Contains(s, "s0") {
				return down
			}
			return nil
		}, 1, 5 * time.Minute, 8 * time.Minute},
		"the first before the second": {2, func(string, time.Duration) error { return nil }, 0, 5 * time.Minute, 8 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := open(t, variants()[0], func(c *config.Uplink) { c.Failback = config.Age(5 * time.Minute) }, "mqtt://s0", "mqtt://s1", "mqtt://s2")
				started := time.Now()
				h.probe = func(_ context.Context, sv server) error { return c.answer(sv.url, time.Since(started)) }
				ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
				defer cancel()
				m := h.awaitEarlier(ctx, c.current)
				took := time.Since(started)
				switch {
				case c.by == 0 && m != nil:
					t.Errorf("moves after %s: %v", took, m)
				case c.by == 0:
				case m == nil || m.to != c.to || m.label != endFailback:
					t.Errorf("move %+v, want to server %d", m, c.to)
				case took < c.from || took > c.by:
					t.Errorf("moves after %s, want from %s to %s", took, c.from, c.by)
				}
				if n := h.Status().Note; n != "" {
					t.Errorf("the note stays behind: %s", n)
				}
			})
		})
	}
}

// TestReturnWithTokens: the time for which an earlier server has answered counts over connections that are made anew with another
// token, however often that is.
func TestReturnWithTokens(t *testing.T) {
	for _, life := range []time.Duration{20 * time.Second, 51 * time.Second, 4 * time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			h := open(t, variants()[0], func(c *config.Uplink) { c.Failback = config.Age(5 * time.Minute) }, "mqtt://s0", "mqtt://s1")
			h.probe = func(context.Context, server) error { return nil }
			started := time.Now()
			var m *move
			for m == nil && time.Since(started) < 24*time.Hour {
				ctx, cancel := context.WithTimeout(context.Background(), life)
				m = h.awaitEarlier(ctx, 1)
				cancel()
			}
			if took := time.Since(started); m == nil || took < 5*time.Minute || took > 8*time.Minute {
				t.Errorf("with a new connection every %s the move comes after %s: %v", life, took, m)
			}
		})
	}
}

// TestServersThatStayAwayAreAskedLessOften: each question costs a handshake.
func TestServersThatStayAwayAreAskedLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, variants()[0], func(c *config.Uplink) { c.Failback = config.Age(5 * time.Minute) }, "mqtt://s0", "mqtt://s1")
		asked := 0
		h.probe = func(context.Context, server) error {
			asked++
			return errors.New("no route to host")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		h.awaitEarlier(ctx, 1)
		if asked < 24*12*9/10 || asked > 24*12*12/10 {
			t.Errorf("asked %d times a day, want about once in five minutes", asked)
		}
	})
}

// TestReturnIsSaid: the status says how it stands, the log says each change once.
func TestReturnIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, variants()[0], func(c *config.Uplink) { c.Failback = config.Age(5 * time.Minute) }, "mqtt://s0", "mqtt://s1")
		var mu sync.Mutex
		var answer error = errors.New("no route to host")
		h.probe = func(context.Context, server) error {
			mu.Lock()
			defer mu.Unlock()
			return answer
		}
		ctx, cancel := context.WithCancel(context.Background())
		moved := make(chan *move, 1)
		go func() { moved <- h.awaitEarlier(ctx, 1) }()
		time.Sleep(10 * time.Minute)
		if n := h.Status().Note; !strings.Contains(n, "mqtt://s0 does not answer: no route to host") {
			t.Errorf("note %q", n)
		}
		mu.Lock()
		answer = nil
		mu.Unlock()
		for range 60 { // it is asked once in five minutes at least
			if time.Sleep(10 * time.Second); strings.Contains(h.Status().Note, "answers again") {
				break
			}
		}
		if n := h.Status().Note; !strings.Contains(n, "mqtt://s0 answers again; the uplink returns to it when that has lasted for 5m0s") {
			t.Errorf("note %q", n)
		}
		if n := strings.Count(h.log.String(), "answers again"); n != 1 {
			t.Errorf("said %d times:\n%s", n, h.log)
		}
		cancel()
		if m := <-moved; m != nil {
			t.Errorf("moved after the end: %v", m)
		}
	})
}

// TestReturnThatDoesNotLast: the next one waits twice as long, up to a bound, and one that lasts makes it forget. A token that is
// renewed ends no return, and says nothing of it.
func TestReturnThatDoesNotLast(t *testing.T) {
	h := open(t, variants()[0], func(c *config.Uplink) { c.Failback = config.Age(5 * time.Minute) }, "mqtt://s0", "mqtt://s1")
	renewed, moved := &move{label: endRenewed, why: "the token"}, &move{label: endFailback, why: "still earlier"}
	var got []string
	ends := func(ago time.Duration, err error) {
		h.returned = time.Now().Add(-ago)
		h.tried(err)
		got = append(got, h.quiet.String())
	}
	for range 6 {
		ends(time.Second, errors.New("refused"))
	}
	h.tried(errors.New("cut")) // no return
	ends(2*time.Hour, errors.New("cut"))
	ends(time.Second, errors.New("cut"))
	ends(time.Second, renewed)
	if h.returned.IsZero() {
		t.Error("over with a renewal")
	}
	ends(time.Hour, fmt.Errorf("%w: %w", errConnected, moved))
	if s := strings.Join(got, " "); s != "10m0s 20m0s 40m0s 1h0m0s 1h0m0s 1h0m0s 5m0s 10m0s 10m0s 5m0s" {
		t.Errorf("waits %s", s)
	}
	if !h.returned.IsZero() {
		t.Error("still taken for a return")
	}
	off := open(t, variants()[0], nil, "mqtt://s0", "mqtt://s1")
	if m := off.movers(1, login{}); len(m) != 0 {
		t.Error("returns although failback is off")
	}
	if m := h.movers(0, login{}); len(m) != 0 {
		t.Error("looks for something better than the first server")
	}
}

// TestReturnLosesAndRepeatsNothing: the move waits for what is in flight, so that no message arrives twice, in order, and the
// first broker is not disturbed by the questions before.
func TestReturnLosesAndRepeatsNothing(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		first, second := cloud(t, testpeer.Options{}), cloud(t, testpeer.Options{})
		second.SetScript(testpeer.Script{Publish: func(testpeer.Received) testpeer.Answer {
			return testpeer.Answer{Delay: 30 * time.Millisecond} // so that much is in flight at any time
		}})
		first.Down()
		h := run(t, v, func(c *config.Uplink) { c.Failback = config.Age(time.Second) }, nil, first.URL(), second.URL())
		connected(t, h)
		const n = 3000
		l := newLedger(n)
		ended := make(chan error, 1)
		ctx := within(t, 60*time.Second)
		go func() {
			ended <- l.drain(ctx, h.Client, func(i int) message.Message {
				time.Sleep(time.Millisecond)
				return reading(i, 1)
			})
		}()
		eventually(t, "some arrived", func() bool { return second.Count() > 100 })
		if err := first.Up(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatalf("%v, %+v\n%s", err, h.Status(), h.log)
		}
		eventually(t, "the first server is in use", func() bool { s := h.Status(); return s.Connected && s.Server == h.urls[0] })
		l.once(t, success)
		seen := map[int]string{}
		last := map[string]int{}
		for _, broker := range []*testpeer.Cloud{second, first} {
			for _, r := range telemetry(broker) {
				i, err := strconv.Atoi(string(r.Payload))
				if err != nil {
					t.Fatal(err)
				}
				if at, twice := seen[i]; twice {
					t.Errorf("message %d arrived twice, at %s and %s", i, at, broker.Addr())
				}
				seen[i] = broker.Addr()
				if before, ok := last[r.Topic]; ok && before > i {
					t.Errorf("%s: %d after %d", r.Topic, i, before)
				}
				last[r.Topic] = i
			}
		}
		if len(seen) != n || len(telemetry(first)) == 0 {
			t.Errorf("%d of %d messages arrived, %d at the first server", len(seen), n, len(telemetry(first)))
		}
		if len(second.Wills()) != 0 {
			t.Error("the second server published the will")
		}
		if h.reconnects(endFailback) != 1 {
			t.Errorf("%g returns", h.reconnects(endFailback))
		}
		probes := 0
		for _, c := range first.Connects() {
			if c.Client == "gw-cloud" {
				break
			}
			if probes++; c.Client != probeID("gw-cloud") || !c.Clean || c.WillTopic != "" || c.SessionExpiry != 0 {
				t.Errorf("asked with %+v", c)
			}
		}
		if probes < 3 {
			t.Errorf("moved after %d answers", probes)
		}
		if strings.Count(h.log.String(), "uplink moves") != 1 {
			t.Errorf("the log does not tell of the move:\n%s", h.log)
		}
	})
}

// TestServerThatRefusesIsNotBack: a broker that listens and lets nobody in is left alone.
func TestServerThatRefusesIsNotBack(t *testing.T) {
	for _, c := range []struct {
		protocol string
		code     byte
		back     bool
	}{
		{"5", 0x88, false},   // server unavailable
		{"5", 0x86, false},   // bad user name or password
		{"5", 0x97, false},   // quota
		{"5", 0x85, true},    // this identifier is not admitted
		{"5", 0x87, false},   // not authorized: so may the uplink be
		{"3.1.1", 3, false},  // server unavailable
		{"3.1.1", 2, true},   // identifier rejected
		{"3.1.1", 4, false},  // bad user name or password
		{"3.1.1", 5, false},  // not authorized
		{"5", 0, true},       // welcome
		{"3.1.1", 0, true},   // welcome
		{"5", 0x9D, false},   // server moved
		{"3.1.1", 99, false}, // who knows
	} {
		peer := cloud(t, testpeer.Options{})
		peer.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{Code: c.code} }})
		h := open(t, variant{protocol: c.protocol, driver: pipelinedDriver{}}, nil, peer.URL())
		err := h.look(within(t, 60*time.Second), h.settings.servers[0])
		if (err == nil) != c.back {
			t.Errorf("MQTT %s, code %#x: %v", c.protocol, c.code, err)
		}
		if c.code == 0x87 && (err == nil || !strings.Contains(err.Error(), `the question came from client identifier "`+probeID("gw-cloud")+`"`)) {
			t.Errorf("it is not said who was refused: %v", err)
		}
	}
	silent := cloud(t, testpeer.Options{})
	silent.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{Silent: true} }})
	h := open(t, variants()[0], nil, silent.URL())
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := h.look(ctx, h.settings.servers[0]); err == nil {
		t.Error("a server that says nothing counts as back")
	}
}

// TestRefusedLoginIsNotBack: a real broker that listens and does not take this login is not back.
func TestRefusedLoginIsNotBack(t *testing.T) {
	t.Parallel()
	passwords := filepath.Join(t.TempDir(), "passwords")
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", passwords, "somebody", "else").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	m := startMosquitto(t, "allow_anonymous false", "password_file "+passwords)
	for _, protocol := range []string{"5", "3.1.1"} {
		for password, back := range map[string]bool{"else": true, "wrong here": false} {
			h := open(t, variant{protocol: protocol, driver: pipelinedDriver{}}, func(c *config.Uplink) {
				c.Username, c.Password = "somebody", config.NewSecret(password)
			}, m.url())
			if err := h.look(within(t, 60*time.Second), h.settings.servers[0]); (err == nil) != back {
				t.Errorf("MQTT %s with the password %q: %v", protocol, password, err)
			}
		}
	}
}

// TestProbeIdentifier: it is nobody's by accident, the same every time, and no longer than the broker has to take.
func TestProbeIdentifier(t *testing.T) {
	long := strings.Repeat("ö", 32767)
	seen := map[string]string{}
	for _, id := range []string{"gw", "gw-cloud", "gw-cloud-probe", "press-hall-3-aws-and-so-on", "press-hall-3-aws-and-so-on2", "ö23456789ö", long} {
		p := probeID(id)
		if other, taken := seen[p]; taken || p == id || len(p) > max(len(id), 23) || !utf8.ValidString(p) || p != probeID(id) {
			t.Errorf("%.30s asks as %.60s (%d bytes), as does %q", id, p, len(p), other)
		}
		if !strings.Contains(p, "-probe-") {
			t.Errorf("%s says nothing", p)
		}
		seen[p] = id
	}
}

// TestReturnBetweenMosquittos: two real brokers, one over WebSocket; the session of the commands at the first one survives the
// questions.
func TestReturnBetweenMosquittos(t *testing.T) {
	t.Parallel()
	first, second := startMosquitto(t), startMosquitto(t)
	ws, _ := webSocketListeners.Load("127.0.0.1:" + first.port)
	first.kill()
	seen := second.subscribe(t, "-q", "1", "-t", "plant/#", "-F", "%p")
	k := &taker{}
	h := run(t, variants()[0], func(c *config.Uplink) {
		withCommands(c)
		c.Failback = config.Age(time.Second)
	}, k.handle, ws.(string), second.url())
	connected(t, h)
	first.start(t)
	seenFirst := first.subscribe(t, "-q", "1", "-t", "plant/#", "-F", "%p")
	first.publish(t, "-r", "-t", "plant/probe", "-m", "ready")
	eventually(t, "the judge listens", func() bool { return len(seenFirst.lines()) == 1 })
	second.publish(t, "-r", "-t", "plant/probe", "-m", "ready")
	eventually(t, "the other judge listens", func() bool { return len(seen.lines()) == 1 })
	const n = 2000
	l := newLedger(n)
	err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message {
		time.Sleep(time.Millisecond)
		return reading(i, 1)
	})
	if err != nil {
		t.Fatalf("%v, %+v\n%s", err, h.Status(), h.log)
	}
	l.once(t, success)
	eventually(t, "back on the first server", func() bool { s := h.Status(); return s.Connected && s.Server == ws.(string) })
	eventually(t, "everything arrived, once", func() bool { return len(seen.lines())+len(seenFirst.lines()) == n+2 })
	if state := stateOf(t, []byte(second.retained(t, "tidegate/gw/status"))); state != "offline" {
		t.Errorf("at the server that was left the gateway is %s", state)
	}
	if state := stateOf(t, []byte(first.retained(t, "tidegate/gw/status"))); state != "online" {
		t.Errorf("at the first server the gateway is %s", state)
	}
	first.publish(t, "-t", "cmd/gw/x", "-m", "after")
	eventually(t, "commands come from the first server", func() bool { return strings.HasSuffix(k.payloads(), "after") })
}

// TestSealedLink: a link that is being left takes nothing, cannot be dropped, and has drained when everything was answered.
func TestSealedLink(t *testing.T) {
	peer := cloud(t, testpeer.Options{})
	hold := make(chan struct{})
	peer.SetScript(testpeer.Script{Publish: func(r testpeer.Received) testpeer.Answer {
		if r.Topic == "a" {
			<-hold
		}
		return testpeer.Answer{}
	}})
	h := run(t, variants()[0], nil, nil, peer.URL())
	l := connected(t, h).(*link)
	results := make(chan error, 1)
	if err := l.Send(t.Context(), message.Message{Topic: "a", QoS: 1}, Identity{}, func(err error) { results <- err }); err != nil {
		t.Fatal(err)
	}
	l.seal()
	if err := l.Send(t.Context(), message.Message{Topic: "b", QoS: 1}, Identity{}, func(error) { t.Error("done is called") }); !errors.Is(err, ErrDisconnected) {
		t.Errorf("a sealed link takes a message: %v", err)
	}
	l.Close(errors.New("takes nothing"))
	if l.drained() {
		t.Error("drained with a message in flight")
	}
	close(hold)
	if err := <-results; err != nil {
		t.Errorf("what was in flight ended with %v", err)
	}
	eventually(t, "drained", l.drained)
	select {
	case <-l.Lost():
		t.Error("the connection was dropped")
	default:
	}
}
