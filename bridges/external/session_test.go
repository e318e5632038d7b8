package external

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
	"tidegate/internal/testpeer"
)

// mosquitto runs a broker on a free port with further lines of configuration and returns the port and its log.
func mosquitto(t *testing.T, lines ...string) (port int, log func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir := t.TempDir()
	conf := append([]string{fmt.Sprintf("listener %d 127.0.0.1", port), "allow_anonymous true", "log_dest file " + dir + "/log", "log_type all", "user root"}, lines...)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	cmd := exec.Command(path, "-c", filepath.Join(dir, "conf"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	wait(t, "mosquitto to listen", func() bool {
		c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), time.Second)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return port, func() string {
		b, _ := os.ReadFile(filepath.Join(dir, "log"))
		return string(b)
	}
}

// TestOldSubscriptionsAreGivenUp: after a change of the configuration the session at the broker has what is wanted and nothing else.
func TestOldSubscriptionsAreGivenUp(t *testing.T) {
	port, log := mosquitto(t)
	dir := t.TempDir()
	publish := func(topic string) {
		t.Helper()
		out, err := exec.Command("mosquitto_pub", "-p", fmt.Sprint(port), "-q", "1", "-t", topic, "-m", "x").CombinedOutput()
		if err != nil {
			t.Fatalf("mosquitto_pub: %v: %s", err, out)
		}
	}
	with := func(group string, filters []string, local []string) *peer {
		return start(t, listen(t), func(c *config.External, o *Options) {
			c.Servers = []string{fmt.Sprint("mqtt://127.0.0.1:", port)}
			c.Group, c.Subscribe, c.Local = group, filters, local
			o.Dir = dir
		})
	}
	for i, c := range []struct {
		group          string
		filters, local []string
		want           []string
	}{
		{"g", []string{"a/#", "b/#"}, []string{"cmd/x"}, []string{"a/1", "b/1"}},
		{"g", []string{"b/#"}, nil, []string{"b/1"}},
		{"", []string{"b/#", "c"}, []string{"cmd/x"}, []string{"b/1", "c"}},
		{"", nil, nil, nil},
	} {
		p := with(c.group, c.filters, c.local)
		p.disk.sync(100)
		wait(t, "the bridge to be up", func() bool { return p.Status().Up })
		for _, topic := range []string{"a/1", "b/1", "c", "cmd/x", "end"} {
			publish(topic)
		}
		topics := func() (list []string) {
			for _, m := range p.disk.all() {
				list = append(list, m.Topic)
			}
			return list
		}
		wait(t, "the messages", func() bool { return len(topics()) >= len(c.want) })
		p.stop()
		if got := topics(); !slices.Equal(got, c.want) {
			t.Errorf("%d: got %v, want %v", i, got, c.want)
		}
		p.disk.mu.Lock()
		if len(p.disk.local) != len(c.local) {
			t.Errorf("%d: delivered %v", i, p.disk.local)
		}
		p.disk.mu.Unlock()
	}
	if !strings.Contains(log(), "UNSUBSCRIBE") {
		t.Error("nothing was unsubscribed")
	}
}

// TestLeaving: a member that subscribes to something else gets what waits for it and nothing more, so that it can be taken out.
func TestLeaving(t *testing.T) {
	port, _ := mosquitto(t, "max_queued_messages 0")
	dir := t.TempDir()
	publish := func(n int) {
		t.Helper()
		cmd := exec.Command("mosquitto_pub", "-p", fmt.Sprint(port), "-q", "1", "-t", "plant/a", "-l")
		cmd.Stdin = strings.NewReader(strings.Repeat("x\n", n))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_pub: %v: %s", err, out)
		}
	}
	with := func(filter string) *peer {
		p := start(t, listen(t), func(c *config.External, o *Options) {
			c.Servers, c.Subscribe, o.Dir = []string{fmt.Sprint("mqtt://127.0.0.1:", port)}, []string{filter}, dir
		})
		p.disk.sync(1000)
		wait(t, "the bridge to be up", func() bool { return p.Status().Up })
		return p
	}
	with("plant/#").stop()
	publish(100)
	p := with("nothing")
	publish(1)
	wait(t, "what waited", func() bool { n, _ := p.disk.count(); return n == 100 })
	p.stop()
	if n, _ := p.disk.count(); n != 100 {
		t.Errorf("%d messages, want the 100 that waited", n)
	}
}

// refuser is a broker that answers a SUBSCRIBE with codes, and whatever is published with nothing.
func refuser(t *testing.T, codes ...byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for {
				h, err := readHead(r)
				if err != nil {
					break
				}
				body := make([]byte, h.length)
				if _, err := io.ReadFull(r, body); err != nil {
					break
				}
				switch h.first >> 4 {
				case packets.Connect:
					_, _ = c.Write([]byte{packets.Connack << 4, 3, 0, 0, 0})
				case packets.Subscribe:
					_, _ = c.Write(append([]byte{packets.Suback << 4, byte(3 + len(codes)), body[0], body[1], 0}, codes...))
				}
			}
			_ = c.Close()
		}
	}()
	return "mqtt://" + l.Addr().String()
}

// TestRefusedSubscription: a filter that the broker refuses is told, and asked for again later.
func TestRefusedSubscription(t *testing.T) {
	url := refuser(t, 1, 0x87)
	p := start(t, listen(t), func(c *config.External, _ *Options) {
		c.Servers, c.Subscribe = []string{url}, []string{"plant/#", "secret/#"}
	})
	wait(t, "the refusal", func() bool { return strings.Contains(p.Status().LastError, "$share/tidegate/secret/#") })
	if s := p.Status(); s.Up || !strings.Contains(s.LastError, "not authorized") || strings.Contains(s.LastError, "plant") {
		t.Errorf("status %+v", s)
	}
	s := &subscriptions{open: 1, asked: time.Now().Add(-time.Minute)}
	if !s.overdue(time.Second) || s.retry(0) {
		t.Error("a missing answer is not overdue, or asked for twice")
	}
	s.open, s.failed = 0, time.Now().Add(-time.Minute)
	if s.overdue(0) || s.retry(time.Hour) || !s.retry(time.Second) {
		t.Error("a refused filter is not asked for again in time")
	}
}

// TestMemory: the file outlives the process, and one that belongs to another session counts for nothing.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	c := section("mqtt://127.0.0.1:1")
	m := newMemory(dir, c)
	if s := m.stale([]string{"a"}, true); s != nil {
		t.Errorf("stale at first: %v", s)
	}
	if err := m.add([]string{"a", "b"}, false); err != nil {
		t.Fatal(err)
	}
	m = newMemory(dir, c)
	if s := m.stale([]string{"b", "c"}, true); !slices.Equal(s, []string{"a"}) {
		t.Errorf("stale: %v", s)
	}
	if s := m.stale([]string{"b"}, false); s != nil {
		t.Errorf("stale without a session: %v", s)
	}
	if err := m.add([]string{"c"}, true); err != nil {
		t.Fatal(err)
	}
	if s := newMemory(dir, c).stale(nil, true); !slices.Equal(s, []string{"a", "b", "c"}) {
		t.Errorf("the session may have %v", s)
	}
	if err := m.keep([]string{"c"}); err != nil {
		t.Fatal(err)
	}
	if s := newMemory(dir, c).stale(nil, true); !slices.Equal(s, []string{"c"}) {
		t.Errorf("the session has %v", s)
	}
	c.Servers = append(c.Servers, "mqtt://127.0.0.1:2")
	if s := newMemory(dir, c).stale(nil, true); !slices.Equal(s, []string{"c"}) {
		t.Errorf("with another server the session has %v", s)
	}
	c.ClientID = "other"
	if s := newMemory(dir, c).stale(nil, true); s != nil {
		t.Errorf("of another session: %v", s)
	}
	if err := os.WriteFile(filepath.Join(dir, "broker.session"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := newMemory(dir, section("mqtt://127.0.0.1:1")).stale(nil, true); s != nil {
		t.Errorf("of a damaged file: %v", s)
	}
}

// TestGrantedTooLittle: a broker without what the bridge needs is told in words.
func TestGrantedTooLittle(t *testing.T) {
	zero := byte(0)
	broker := listen(t)
	broker.SetScript(testpeer.Script{Connect: func(testpeer.Connect) testpeer.Greeting { return testpeer.Greeting{MaximumQoS: &zero} }})
	p := start(t, broker, nil)
	wait(t, "the reason", func() bool { return strings.Contains(p.Status().LastError, "no QoS above 0") })
	for body, want := range map[string]string{
		"\x00\x01":                 "does not speak MQTT 5",
		"\x00\x00\x02\x2a\x00":     "no shared subscriptions",
		"\x00\x87\x00":             "not authorized",
		"\x00\x00\x03\x21\x00\x05": "",
	} {
		g, err := p.granted([]byte(body))
		if want == "" {
			if err != nil || g.window != 5 {
				t.Errorf("%q: %+v, %v", body, g, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", body, err, want)
		}
	}
}
