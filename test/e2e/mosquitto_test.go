package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// version names of mosquitto's clients, by ours.
var mosquittoVersion = map[string]string{"3.1.1": "mqttv311", "5": "mqttv5"}

// publish runs mosquitto_pub against addr and wants it to succeed.
func publish(t testing.TB, addr string, args ...string) {
	t.Helper()
	if r := tryPublish(t, addr, args...); r.code != 0 {
		t.Fatalf("mosquitto_pub %v: %v", args, r)
	}
}

func tryPublish(t testing.TB, addr string, args ...string) result {
	t.Helper()
	host, port := hostPort(addr)
	return runLimited(t, exec.Command("mosquitto_pub", append([]string{"-h", host, "-p", port}, args...)...))
}

// publishLines runs one mosquitto_pub -l as a device that sends n numbered messages: "NAME 1", "NAME 2" and so on.
func publishLines(t testing.TB, addr, version, name, topic string, qos, from, n int) {
	t.Helper()
	host, port := hostPort(addr)
	cmd := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-V", mosquittoVersion[version], "-i", name,
		"-t", topic, "-q", fmt.Sprint(qos), "-l")
	var lines strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&lines, "%s %d\n", name, i)
	}
	cmd.Stdin = strings.NewReader(lines.String())
	if r := runLimited(t, cmd); r.code != 0 {
		t.Fatalf("device %s: %v", name, r)
	}
}

// subscriber is a running mosquitto_sub.
type subscriber struct {
	t     testing.TB
	cmd   *exec.Cmd
	ended chan struct{}

	mu    sync.Mutex
	lines []string // what -F made of each message
	debug []string // what -d said
}

// subscribe starts mosquitto_sub and waits until its subscriptions are acknowledged. Each message becomes one line of
// format, see mosquitto_sub(1); "" means topic and payload.
func subscribe(t testing.TB, addr, format string, args ...string) *subscriber {
	t.Helper()
	s := trySubscribe(t, addr, format, args...)
	s.awaitDebug("Subscribed (mid")
	return s
}

// trySubscribe starts mosquitto_sub and waits for nothing.
func trySubscribe(t testing.TB, addr, format string, args ...string) *subscriber {
	t.Helper()
	if format == "" {
		format = "%t %p"
	}
	host, port := hostPort(addr)
	s := &subscriber{t: t, ended: make(chan struct{})}
	// What -d says would sit in a buffer; stdbuf becomes mosquitto_sub, under the same process identifier.
	s.cmd = exec.Command("stdbuf", append([]string{"-oL", "mosquitto_sub", "-h", host, "-p", port, "-d", "-F", messageMark + format}, args...)...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.read(out) // ends with the process
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("mosquitto_sub %v: %d messages; debug (end):\n%s", args, len(s.got()), strings.Join(s.debugTail(6), "\n"))
		}
	})
	return s
}

// messageMark tells messages from debugging lines.
const messageMark = ">> "

func (s *subscriber) read(out io.Reader) {
	for scan := bufio.NewScanner(out); scan.Scan(); {
		s.mu.Lock()
		if text, ok := strings.CutPrefix(scan.Text(), messageMark); ok {
			s.lines = append(s.lines, text)
		} else if len(s.debug) < 100000 {
			s.debug = append(s.debug, scan.Text())
		}
		s.mu.Unlock()
	}
	_ = s.cmd.Wait()
	close(s.ended)
}

// got returns the messages so far.
func (s *subscriber) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

func (s *subscriber) debugTail(n int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.debug[max(0, len(s.debug)-n):]...)
}

// sawDebug reports whether mosquitto_sub said something.
func (s *subscriber) sawDebug(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.debug, "\n"), text)
}

func (s *subscriber) awaitDebug(text string) {
	s.t.Helper()
	waitFor(s.t, soon, fmt.Sprintf("mosquitto_sub to say %q", text), func() bool { return s.sawDebug(text) },
		func() string { return strings.Join(s.debugTail(10), "\n") })
}

// await waits for a message line.
func (s *subscriber) await(line string) {
	s.t.Helper()
	waitFor(s.t, soon, fmt.Sprintf("the message %q", line), func() bool {
		for _, l := range s.got() {
			if l == line {
				return true
			}
		}
		return false
	}, func() string { return strings.Join(s.got(), "\n") })
}

// stop disconnects in an orderly way.
func (s *subscriber) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.ended
}

// kill ends it without a DISCONNECT.
func (s *subscriber) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}
