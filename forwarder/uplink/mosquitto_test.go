package uplink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// mosquitto is a broker process of one test.
type mosquitto struct {
	port  string
	conf  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has
}

// startMosquitto starts the installed mosquitto on free ports with its state in a folder of the test. Somebody else may take one of them
// before it does; then it tries others.
func startMosquitto(t *testing.T, extra ...string) *mosquitto {
	t.Helper()
	for range 5 {
		if m := newMosquitto(t, extra); m.launch(t) {
			t.Cleanup(m.kill)
			return m
		}
	}
	t.Fatal("mosquitto ends without listening, whatever the ports")
	return nil
}

// newMosquitto writes the configuration of one.
func newMosquitto(t *testing.T, extra []string) *mosquitto {
	t.Helper()
	dir := t.TempDir()
	_, port, err := net.SplitHostPort(unusedAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	_, wsPort, err := net.SplitHostPort(unusedAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	webSocketListeners.Store("127.0.0.1:"+port, "ws://127.0.0.1:"+wsPort)
	t.Cleanup(func() { webSocketListeners.Delete("127.0.0.1:" + port) }) // the port may be lent to another test
	lines := append([]string{
		"listener " + wsPort + " 127.0.0.1", "protocol websockets", // comes with a port of its own
		"listener " + port + " 127.0.0.1", "allow_anonymous true", "persistence true", "persistence_location " + dir + "/",
		"max_queued_messages 0", // by default it acknowledges and then drops what a slow subscriber has not taken
		"user root",             // it would give up the right to its folder otherwise
	}, extra...)
	m := &mosquitto{port: port, conf: filepath.Join(dir, "mosquitto.conf")}
	if err := os.WriteFile(m.conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mosquitto) url() string { return "mqtt://127.0.0.1:" + m.port }

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	if !m.launch(t) {
		t.Fatalf("mosquitto does not listen on port %s", m.port)
	}
}

// launch starts the process and reports whether it listens; false: it has ended.
func (m *mosquitto) launch(t *testing.T) bool {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // where it is installed outside the PATH of a user
	}
	cmd := exec.Command(path, "-c", m.conf)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start mosquitto: %v", err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		_ = cmd.Wait()
		close(ended)
	}()
	m.cmd, m.ended = cmd, ended
	listens := false
	eventually(t, "mosquitto listens or has ended", func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		c, err := net.Dial("tcp", "127.0.0.1:"+m.port)
		if err == nil {
			_ = c.Close()
			listens = true
		}
		return listens
	})
	return listens
}

func (m *mosquitto) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.ended
	m.cmd = nil
}

// subscriber is a mosquitto_sub process.
type subscriber struct {
	out *safeBuffer
	cmd *exec.Cmd
}

func (m *mosquitto) subscribe(t *testing.T, args ...string) *subscriber {
	t.Helper()
	s := &subscriber{out: &safeBuffer{}}
	s.cmd = exec.Command("mosquitto_sub", append([]string{"-h", "127.0.0.1", "-p", m.port}, args...)...)
	s.cmd.Stdout = s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start mosquitto_sub: %v", err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	return s
}

func (s *subscriber) lines() []string { return strings.Fields(s.out.String()) }

func (m *mosquitto) publish(t *testing.T, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("mosquitto_pub", append([]string{"-h", "127.0.0.1", "-p", m.port, "-q", "1"}, args...)...)
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("mosquitto_pub: %v %s", err, out.String())
	}
}

// retained waits for the retained message of a topic.
func (m *mosquitto) retained(t *testing.T, topic string) string {
	t.Helper()
	out, err := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", m.port, "-t", topic, "-C", "1", "-W", "5").Output()
	if err != nil {
		t.Fatalf("retained message of %s: %v", topic, err)
	}
	return string(out)
}

func TestMosquittoOutage(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		for _, qos := range []message.QoS{1, 2} {
			m := startMosquitto(t)
			// A subscriber with a session, so that the broker itself keeps what it acknowledged. With QoS 1, because
			// mosquitto_sub 2.0.11 with QoS 2 receives nothing more after a restart of its broker.
			args := []string{"-i", "judge", "-c", "-q", "1", "-t", "plant/#", "-F", "%p"}
			if v.is5() {
				args = append(args, "-V", "mqttv5", "-x", "3600")
			}
			m.publish(t, "-r", "-t", "plant/probe", "-m", "subscribed")
			sub := m.subscribe(t, args...)
			eventually(t, "subscribed", func() bool { return len(sub.lines()) == 1 })
			h := run(t, v, nil, nil, m.url())
			connected(t, h)
			const n = 4000
			l := newLedger(n)
			ended := make(chan error, 1)
			go func() {
				ended <- l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message {
					if i == n/2 {
						time.Sleep(50 * time.Millisecond) // so that the outage finds messages still to come
					}
					return reading(i, qos)
				})
			}()
			eventually(t, "some are acknowledged", func() bool { return l.remaining() < n-500 })
			_ = m.cmd.Process.Signal(os.Interrupt) // an orderly end: it saves its state
			<-m.ended
			eventually(t, "noticed", func() bool { return !h.Status().Connected })
			m.start(t)
			if err := <-ended; err != nil {
				t.Fatalf("%v, %+v", err, h.Status())
			}
			l.once(t, success)
			missing := n
			eventually(t, "everything arrived at the subscriber", func() bool {
				seen := map[string]bool{}
				for _, p := range sub.lines() {
					seen[p] = true
				}
				missing = n + 1 - len(seen)
				return missing == 0
			})
			t.Logf("qos %d: %d messages, %d arrivals, window %d, broker granted %d",
				qos, n, len(sub.lines()), h.Status().Window, h.Status().Granted)
			h.stop()
			m.kill()
		}
	})
}

func TestMosquittoCommandsWhileAway(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		m := startMosquitto(t)
		first := run(t, v, withCommands, nil, m.url())
		connected(t, first)
		k := &taker{}
		m.publish(t, "-t", "cmd/gw/x", "-m", "warm-up") // the subscription is in force once this was answered
		first.stop()
		for i := range 5 {
			m.publish(t, "-t", "cmd/gw/x", "-m", fmt.Sprint(i))
		}
		second := run(t, v, withCommands, k.handle, m.url())
		connected(t, second)
		eventually(t, "all came", func() bool { return strings.HasSuffix(k.payloads(), "0 1 2 3 4") })
		m.publish(t, "-t", "cmd/gw/x", "-m", "live")
		eventually(t, "live ones too", func() bool { return strings.HasSuffix(k.payloads(), "4 live") })
		second.stop()
		third := run(t, v, withCommands, k.handle, m.url()) // nothing comes twice
		connected(t, third)
		m.publish(t, "-t", "cmd/gw/x", "-m", "last")
		eventually(t, "the last one", func() bool { return strings.HasSuffix(k.payloads(), "live last") })
	})
}

func TestMosquittoCommandIsNotLostByAnAbandonedHandler(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		m := startMosquitto(t)
		entered := make(chan struct{}, 1)
		first := run(t, v, withCommands, func(ctx context.Context, m message.Message) error {
			signal(entered)
			if string(m.Payload) != "precious" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}, m.url())
		connected(t, first)
		for range 100 { // until the subscription is there
			m.publish(t, "-t", "cmd/gw/x", "-m", "probe")
			select {
			case <-entered:
			case <-time.After(100 * time.Millisecond):
				continue
			}
			break
		}
		m.publish(t, "-t", "cmd/gw/x", "-m", "precious")
		<-entered
		first.stop()
		k := &taker{}
		second := run(t, v, withCommands, k.handle, m.url())
		connected(t, second)
		eventually(t, "it comes again", func() bool { return strings.HasSuffix(k.payloads(), "precious") })
	})
}

func TestMosquittoStatusAndWill(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		m := startMosquitto(t)
		h := run(t, v, nil, nil, m.url())
		link := connected(t, h)
		eventually(t, "online is retained", func() bool {
			return h.Status().InFlight == 0 && strings.Contains(m.retained(t, "tidegate/gw/status"), `"state":"online"`)
		})
		sub := m.subscribe(t, "-t", "tidegate/gw/status", "-F", "%p")
		eventually(t, "seen", func() bool { return len(sub.lines()) == 1 })
		link.Close(fmt.Errorf("cable pulled")) // no DISCONNECT: the broker publishes the will
		eventually(t, "the will and the return", func() bool { return len(sub.lines()) >= 3 })
		if l := sub.lines(); !strings.Contains(l[1], "offline") || !strings.Contains(l[2], "online") {
			t.Errorf("states %v", l)
		}
		h.stop()
		if s := m.retained(t, "tidegate/gw/status"); !strings.Contains(s, `"state":"offline"`) {
			t.Errorf("after an orderly end the retained state is %s", s)
		}
	})
}

func TestMosquittoSessionResumedWithQoS2(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		m := startMosquitto(t)
		m.publish(t, "-r", "-t", "plant/probe", "-m", "subscribed")
		sub := m.subscribe(t, "-q", "2", "-t", "plant/#", "-F", "%p")
		eventually(t, "subscribed", func() bool { return len(sub.lines()) == 1 })
		h := run(t, v, func(c *config.Uplink) {
			withCommands(c)
			c.AckTimeout = config.Duration(2 * time.Second)
		}, nil, m.url())
		l := newLedger(2000)
		var cut sync.Once
		err := l.drain(within(t, 30*time.Second), h.Client, func(i int) message.Message {
			if i == 700 {
				cut.Do(func() { connected(t, h).Close(fmt.Errorf("cable pulled")) })
			}
			return reading(i, 2)
		})
		if err != nil {
			t.Fatalf("%v, %+v", err, h.Status())
		}
		l.once(t, success)
		eventually(t, "everything arrived", func() bool {
			seen := map[string]bool{}
			for _, p := range sub.lines() {
				seen[p] = true
			}
			return len(seen) == 2001
		})
	})
}

// Identifiers that a killed process left at the broker use up its Receive Maximum: mosquitto ends the connection over
// the next message of any QoS until they are released.
func TestMosquittoHoldsIdentifiersOfAnEarlierProcess(t *testing.T) {
	eachCommands(t, func(t *testing.T, v variant) {
		m := startMosquitto(t)
		hello, publish, received := "\x10\x14\x00\x04MQTT\x04\x00\x00\x3c\x00\x08gw-cloud", "\x34\x06\x00\x01t\x00%cx", 4
		if v.is5() {
			hello = "\x10\x1a\x00\x04MQTT\x05\x00\x00\x3c\x05\x11\x00\x00\x0e\x10\x00\x08gw-cloud"
			publish = "\x34\x07\x00\x01t\x00%c\x00x"
		}
		c, err := net.Dial("tcp", "127.0.0.1:"+m.port)
		if err != nil {
			t.Fatal(err)
		}
		packets := hello
		for id := rune(1); id <= 20; id++ {
			packets += fmt.Sprintf(publish, id)
		}
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := c.Write([]byte(packets)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4+20*received)); err != nil { // CONNACK and PUBRECs, never released
			t.Fatal(err)
		}
		_ = c.Close()

		h := run(t, v, withCommands, nil, m.url())
		l := newLedger(300)
		err = l.drain(within(t, 10*time.Second), h.Client, func(i int) message.Message { return reading(i, message.QoS(1+i%2)) })
		if err != nil {
			t.Fatalf("%v, %+v", err, h.Status())
		}
		l.once(t, success)
	})
}

func TestMosquittoRefusesAWrongPassword(t *testing.T) {
	each(t, func(t *testing.T, v variant) {
		passwords := filepath.Join(t.TempDir(), "passwords")
		if out, err := exec.Command("mosquitto_passwd", "-b", "-c", passwords, "gw", "right").CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v %s", err, out)
		}
		m := startMosquitto(t, "allow_anonymous false", "password_file "+passwords)
		login := func(password string) func(*config.Uplink) {
			return func(c *config.Uplink) { c.Username, c.Password = "gw", config.NewSecret(password) }
		}
		h := run(t, v, login("wrong"), nil, m.url())
		eventually(t, "refused", func() bool { return strings.Contains(h.Status().LastError, "not authorized") })
		h.stop()
		connected(t, run(t, v, login("right"), nil, m.url()))
	})
}
