package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// local is a gateway without uplinks: a broker.
func local(t *testing.T, sections ...string) *gateway {
	t.Helper()
	g := newGateway(t, sections...)
	g.start()
	return g
}

func TestRetained(t *testing.T) {
	g := local(t)
	dev := g.addr(devices)
	for i, version := range []string{"3.1.1", "5"} {
		topic := fmt.Sprintf("state/%d", i)
		publish(t, dev, "-V", mosquittoVersion[version], "-q", "1", "-r", "-t", topic, "-m", "old")
		publish(t, dev, "-V", mosquittoVersion[version], "-q", "1", "-r", "-t", topic, "-m", "new")
		for _, reader := range []string{"3.1.1", "5"} {
			s := subscribe(t, dev, "%r %q %t %p", "-V", mosquittoVersion[reader], "-q", "1", "-t", topic)
			s.await("1 1 " + topic + " new")
			publish(t, dev, "-q", "1", "-t", topic, "-m", "live")
			s.await("0 1 " + topic + " live")
			s.stop()
		}
		publish(t, dev, "-q", "1", "-r", "-n", "-t", topic) // takes it away
		s := subscribe(t, dev, "%r %t %p", "-t", topic, "-t", "marker")
		publish(t, dev, "-q", "1", "-t", "marker", "-m", "end")
		s.await("0 marker end")
		if len(s.got()) != 1 {
			t.Errorf("%s: a retained message that was taken away: %q", version, s.got())
		}
	}
	g.stop()
}

// TestWill: a client that dies leaves its will to local subscribers and to the cloud; one that says goodbye does not,
// unless it asks for it.
func TestWill(t *testing.T) {
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"#\"]\n", uplinkTo("cloud", c.url(), "5"))
	g.start()
	dev := g.addr(devices)
	near := subscribe(t, dev, "", "-q", "1", "-t", "wills/#")
	far := subscribe(t, c.addr(), "", "-q", "1", "-t", "wills/#")
	for _, version := range []string{"3.1.1", "5"} {
		will := func(name string) *subscriber {
			return subscribe(t, dev, "", "-V", mosquittoVersion[version], "-i", name+version, "-t", "x", "-k", "10",
				"--will-topic", "wills/"+name+version, "--will-payload", "gone", "--will-qos", "1")
		}
		publish(t, dev, "-V", mosquittoVersion[version], "-i", "polite"+version, "-q", "1", "-t", "x", "-m", "y",
			"--will-topic", "wills/polite"+version, "--will-payload", "gone", "--will-qos", "1")
		leaving, dead := will("leaving"), will("dead")
		leaving.stop() // says DISCONNECT, on version 5 with reason code 0x04: publish the will
		dead.kill()
		for _, s := range []*subscriber{near, far} {
			if version == "5" {
				s.await("wills/leaving5 gone")
			}
			s.await("wills/dead" + version + " gone")
		}
		for _, l := range append(near.got(), far.got()...) {
			if strings.HasPrefix(l, "wills/polite") || strings.HasPrefix(l, "wills/leaving3") {
				t.Errorf("the will of a client that disconnected: %q", l)
			}
		}
	}
	g.stop()
}

// TestSession: QoS 1 and 2 messages wait for a client that keeps its session, in order; QoS 0 does not matter.
func TestSession(t *testing.T) {
	g := local(t)
	dev := g.addr(devices)
	for _, version := range []string{"3.1.1", "5"} {
		args := []string{"-V", mosquittoVersion[version], "-i", "reader" + version, "-c", "-q", "2", "-t", "news/" + version + "/#"}
		if version == "5" {
			args = append(args, "-x", "600")
		}
		s := subscribe(t, dev, "%p", args...)
		publishLines(t, dev, version, "first", "news/"+version+"/a", 1, 1, 1)
		s.await("first 1")
		s.stop()
		publishLines(t, dev, "3.1.1", "one", "news/"+version+"/a", 1, 1, 300)
		publishLines(t, dev, "5", "two", "news/"+version+"/a", 2, 1, 300)
		s = subscribe(t, dev, "%p", args...)
		s.await("two 300")
		got := s.got()
		if len(got) != 600 {
			t.Errorf("%s: %d messages after coming back, want 600", version, len(got))
		}
		for i, l := range got {
			want := fmt.Sprintf("one %d", i+1)
			if i >= 300 {
				want = fmt.Sprintf("two %d", i-299)
			}
			if l != want {
				t.Errorf("%s: message %d is %q, want %q", version, i+1, l, want)
				break
			}
		}
		s.stop()
	}
	if n := g.metrics().sum("tidegate_sessions"); n < 2 {
		t.Errorf("tidegate_sessions is %v with two kept sessions", n)
	}
	g.stop()
}

const usersAndRules = `[auth]
  anonymous = false
  users_file = "users.toml"
  [[auth.rule]]
    user = "hmi"
    deny_publish = ["#"]
    subscribe = ["#"]
  [[auth.rule]]
    user = "press-*"
    publish = ["plant/{user}/#"]
    subscribe = ["cmd/{user}/#"]
`

// secured starts a gateway with users hmi and press-1, both with the password secret-NAME.
func secured(t *testing.T, sections ...string) *gateway {
	t.Helper()
	g := newGateway(t, append([]string{usersAndRules}, sections...)...)
	for _, user := range []string{"hmi", "press-1"} {
		if r := runCommand(t, g.dir, "secret-"+user+"\n", "passwd", "--config", g.config, user); r.code != 0 {
			t.Fatalf("passwd %s: %v", user, r)
		}
	}
	if text := readFile(t, g.dir+"/users.toml"); strings.Contains(text, "secret-") {
		t.Errorf("the users file holds a password in the clear:\n%s", text)
	}
	g.start()
	return g
}

func as(user string) login {
	return login{client: "client-of-" + user, user: user, password: "secret-" + user}
}

// TestUsers: who may connect.
func TestUsers(t *testing.T) {
	g := secured(t)
	for _, version := range []string{"3.1.1", "5"} {
		bad := map[string]byte{"3.1.1": 5, "5": 0x87}
		for name, l := range map[string]login{
			"anonymous":      {client: "a"},
			"unknown user":   {client: "b", user: "nobody", password: "x"},
			"wrong password": {client: "c", user: "hmi", password: "secret-press-1"},
			"no password":    {client: "d", user: "hmi"},
		} {
			_, err := dial(g.addr(devices), version, l)
			var refused *refusal
			if !errors.As(err, &refused) {
				t.Errorf("%s, %s: %v, want a refusal", version, name, err)
				continue
			}
			// 3.1.1 knows 4 (bad user name or password) and 5 (not authorized), MQTT 5 0x86 and 0x87.
			if refused.code != bad[version] && refused.code != bad[version]-1 {
				t.Errorf("%s, %s: reason %#x", version, name, refused.code)
			}
		}
		w, err := dial(g.addr(devices), version, as("hmi"))
		if err != nil {
			t.Errorf("%s, hmi with its password: %v", version, err)
			continue
		}
		w.close()
	}
	if n := g.uplinkCount(); n != 0 {
		t.Errorf("%d uplinks in status, want none", n)
	}
	g.stop()
}

func (g *gateway) uplinkCount() int { return len(g.status().Uplinks) }

// TestRules: what a user may publish, subscribe to and receive. A refusal of MQTT 5 has a reason code; 3.1.1 has none for a
// PUBLISH: it is acknowledged and goes nowhere.
func TestRules(t *testing.T) {
	c := startCloud(t)
	g := secured(t, "[route.up]\n  from = [\"#\"]\n", uplinkTo("cloud", c.url(), "5"))
	dev := g.addr(devices)
	near := subscribe(t, dev, "", "-u", "hmi", "-P", "secret-hmi", "-q", "1", "-t", "#")
	far := subscribe(t, c.addr(), "", "-q", "1", "-t", "plant/#", "-t", "other/#", "-t", "cmd/#")

	five, err := dial(dev, "5", as("press-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer five.close()
	three, err := dial(dev, "3.1.1", login{client: "three", user: "press-1", password: "secret-press-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer three.close()
	for i, topic := range []string{"plant/press-2/x", "other/x", "tidegate/gw/status", "$SYS/x"} {
		for qos := byte(1); qos <= 2; qos++ {
			if got := ackOf(t, five, topic, qos, uint16(10*i)+uint16(qos), []byte("forbidden")); got < 0x80 {
				t.Errorf("MQTT 5, QoS %d to %s: reason %#x, want a refusal", qos, topic, got)
			} else if i < 2 && got != reasonForbidden {
				t.Errorf("MQTT 5, QoS %d to %s: reason %#x, want 0x87", qos, topic, got)
			}
		}
		if got := ackOf(t, three, topic, 1, uint16(i+1), []byte("forbidden")); got != 0 {
			t.Errorf("3.1.1 to %s: reason %#x", topic, got)
		}
	}
	if got := ackOf(t, five, "plant/press-1/x", 1, 100, []byte("allowed")); got != 0 {
		t.Errorf("publish within the rules: reason %#x", got)
	}
	near.await("plant/press-1/x allowed")
	far.await("plant/press-1/x allowed")
	for _, l := range append(near.got(), far.got()...) {
		if strings.Contains(l, "forbidden") {
			t.Errorf("delivered what was refused: %q", l)
		}
	}
	if n := g.metrics().sum("tidegate_refused_messages_total", "protocol=mqtt"); n != 12 {
		t.Errorf("tidegate_refused_messages_total is %v, want 12", n)
	}
	g.requireLedger("cloud", 1)

	for filter, want := range map[string]string{"cmd/press-1/#": "granted", "cmd/press-2/x": "refused", "plant/press-1/x": "refused"} {
		for version, w := range map[string]*wire{"5": five, "3.1.1": three} {
			code, err := w.subscribe(filter, 1)
			if err != nil {
				t.Fatal(err)
			}
			if granted := code < 0x80; granted != (want == "granted") {
				t.Errorf("%s subscribes to %s: code %#x, want %s", version, filter, code, want)
			} else if !granted && (version == "5") != (code == 0x87) {
				t.Errorf("%s subscribes to %s: code %#x", version, filter, code)
			}
		}
	}
	g.stop()
}

// TestRulesForDeliveryAndWills: a wide subscription gets only what the rules let through, and a will is a message like any
// other.
func TestRulesForDeliveryAndWills(t *testing.T) {
	g := newGateway(t, `[auth]
  anonymous = true
  [[auth.rule]]
    user = "anonymous"
    deny_publish = ["secret/will"]
    deny_subscribe = ["secret/#"]
    publish = ["#"]
    subscribe = ["#"]
`)
	g.start()
	dev := g.addr(devices)
	// A filter that reaches beyond what is denied is granted; the delivery is filtered.
	for _, filter := range []string{"#", "+/open"} {
		s := subscribe(t, dev, "", "-q", "1", "-t", filter)
		publish(t, dev, "-q", "1", "-t", "secret/open", "-m", "hidden")
		publish(t, dev, "-q", "1", "-t", "public/open", "-m", "shown")
		s.await("public/open shown")
		for _, l := range s.got() {
			if strings.Contains(l, "hidden") {
				t.Errorf("subscribed to %s: got %q", filter, l)
			}
		}
		s.stop()
	}
	watch := subscribe(t, dev, "", "-q", "1", "-t", "#")
	// A client whose will the rules forbid is refused when it connects; that is better than a promise that is not kept.
	refused := trySubscribe(t, dev, "", "-V", "mqttv5", "-t", "x", "--will-topic", "secret/will", "--will-payload", "gone")
	refused.awaitDebug("received CONNACK (135)") // 0x87
	refused.kill()
	allowed := subscribe(t, dev, "", "-t", "x", "--will-topic", "public/will", "--will-payload", "gone", "--will-qos", "1")
	allowed.kill()
	watch.await("public/will gone")
	for _, l := range watch.got() {
		if strings.HasPrefix(l, "secret/will") {
			t.Errorf("a forbidden will was published: %q", l)
		}
	}
	g.stop()
}

// TestAnonymousByListener: a listener may have its own word on clients without a name.
func TestAnonymousByListener(t *testing.T) {
	g := newGateway(t, `[listener.open]
  listen = "mqtt://127.0.0.1:0"
  anonymous = true
`, usersAndRules)
	g.write("users.toml", "")
	if r := runCommand(t, g.dir, "secret-hmi\n", "passwd", "--config", g.config, "hmi"); r.code != 0 {
		t.Fatalf("passwd: %v", r)
	}
	g.start()
	if _, err := dial(g.addr(devices), "5", login{client: "a"}); err == nil {
		t.Error("anonymous on the closed listener: accepted")
	}
	w, err := dial(g.addr("listener.open"), "5", login{client: "a"})
	if err != nil {
		t.Errorf("anonymous on the open listener: %v", err)
	} else {
		w.close()
	}
	g.stop()
}
