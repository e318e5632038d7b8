package opcua

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/message"
)

// childEnv makes the test binary a gateway of its own: it holds what childOptions says.
const childEnv = "TIDEGATE_OPCUA_CHILD"

type childOptions struct {
	URL, Dir, Out string
	Counters      int
}

// fileBus has a message on disk when it is in the file, which survives the process.
type fileBus struct {
	mu sync.Mutex
	f  *os.File
}

func (b *fileBus) Publish(m message.Message) (message.Ticket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := fmt.Fprintf(b.f, "%s %s\n", m.Topic, m.Payload); err != nil {
		return message.Ticket{}, fmt.Errorf("%w: %w", message.ErrBusy, err)
	}
	return message.Ticket{}, nil
}

func (b *fileBus) Subscribe(string, message.Handler) (func(), error) { return func() {}, nil }
func (b *fileBus) Retained(string) []message.Message                 { return nil }

// runChild is the whole life of the child.
func runChild(text string) error {
	var o childOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	f, err := os.OpenFile(o.Out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := New("press1", counterConfig(o.URL, o.Counters), Options{Bus: &fileBus{f: f}, Dir: o.Dir, GatewayID: "gw"})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return b.Run(ctx)
}

// TestKilledGateway: a process that is killed at any moment, again and again, and starts anew.
func TestKilledGateway(t *testing.T) {
	const n = 100
	peer := startPeer(t, peerOptions{Counters: n, Interval: 100})
	dir := t.TempDir()
	o := childOptions{URL: peer.url(), Dir: dir, Out: filepath.Join(dir, "out"), Counters: n}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+string(text))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	peer.do("run")
	for i := range 5 {
		cmd := start()
		time.Sleep(time.Duration(1000+137*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		time.Sleep(300 * time.Millisecond)
	}
	cmd := start()
	defer cmd.Wait() //nolint:errcheck // it was told to end
	defer cmd.Process.Signal(syscall.SIGTERM)
	time.Sleep(time.Second)
	last := peer.do("stop").Count
	bus := newBus()
	var got counted
	until(t, 20*time.Second, "every counter has its last value", func() bool {
		bus.load(t, o.Out)
		got = bus.counters(t, "count/")
		return got.counters == n && got.least >= last
	})
	t.Logf("five kills: %d values of %d counters, %d lost, %d repeated, %d out of order", got.values, got.counters, got.lost, got.repeated, got.disordered)
	if got.lost != 0 || got.disordered != 0 {
		t.Errorf("%+v", got)
	}
	if s := peer.do("sessions"); s.Sessions != 1 {
		t.Errorf("%d sessions after five kills", s.Sessions)
	}
}

// load reads what fileBus wrote. A line that is cut was never on disk.
func (b *fakeBus) load(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.messages = nil
	for lines := bufio.NewScanner(f); lines.Scan(); {
		topic, payload, ok := strings.Cut(lines.Text(), " ")
		if ok && strings.HasSuffix(payload, "}") {
			b.messages = append(b.messages, message.Message{Topic: topic, Payload: []byte(payload)})
		}
	}
}
