package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// waitTime bounds every wait for a condition; the machine may be busy.
const waitTime = 60 * time.Second

// eventually waits until f holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(waitTime); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("within %v: %s", waitTime, what)
		}
	}
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

// tidegate runs a command line to its end.
func tidegate(t *testing.T, in string, args ...string) result {
	t.Helper()
	var out, errs syncBuffer
	code := dispatch(args, stdio{in: strings.NewReader(in), out: &out, err: &errs})
	return result{code, out.String(), errs.String()}
}

// want checks how a command ended; empty parts of out and errs match anything.
func (r result) want(t *testing.T, code int, out, errs string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, errs) {
		t.Errorf("got code %d, out %q, errors %q; want %d, %q, %q", r.code, r.out, r.err, code, out, errs)
	}
}

// freePort returns a port on which nobody listens.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// mosquitto starts a Mosquitto on a free port with more lines of configuration and returns the port. It ends with the test.
// "user root" keeps one that root starts from giving up its rights to the files of the test; others may not read them.
func mosquitto(t *testing.T, lines ...string) (port int) {
	t.Helper()
	port = freePort(t)
	mosquittoOn(t, port, lines...)
	return port
}

// mosquittoOn starts it on a port of the caller's.
func mosquittoOn(t *testing.T, port int, lines ...string) {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("user root\nlistener %d 127.0.0.1\nmax_queued_messages 100000\n%s\n", port, strings.Join(lines, "\n"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	cmd := exec.Command(path, "-c", conf)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("mosquitto: %s", log.String())
		}
	})
	waitPort(t, port)
}

// waitPort waits until somebody listens on port.
func waitPort(t *testing.T, port int) {
	t.Helper()
	eventually(t, fmt.Sprintf("somebody listens on port %d", port), func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// background runs a command line in its own goroutine; what it writes can be looked at meanwhile.
type background struct {
	out, err syncBuffer
	done     chan int
}

func start(t *testing.T, in io.Reader, args ...string) *background {
	t.Helper()
	b := &background{done: make(chan int, 1)}
	go func() { b.done <- dispatch(args, stdio{in: in, out: &b.out, err: &b.err}) }()
	return b
}

// wait returns how the command ended.
func (b *background) wait(t *testing.T) result {
	t.Helper()
	select {
	case code := <-b.done:
		return result{code, b.out.String(), b.err.String()}
	case <-time.After(waitTime):
		t.Fatalf("the command did not end; out %q, errors %q", b.out.String(), b.err.String())
		return result{}
	}
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
