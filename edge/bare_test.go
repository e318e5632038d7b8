package edge

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// bareVariable makes this test binary a bare broker: the library without anything of ours, in a process of its own, since
// some of its defects leave it beyond stopping.
const bareVariable = "TIDEGATE_TEST_BARE_BROKER"

func TestMain(m *testing.M) {
	if os.Getenv(bareVariable) != "" {
		if err := runBare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runBare serves until standard input ends.
func runBare() error {
	s, addr, err := newBare(nil)
	if err != nil {
		return err
	}
	if err := s.Serve(); err != nil {
		return err
	}
	fmt.Println(addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// newBare returns the library's server with one TCP listener, and its address once it serves. hook may be nil.
func newBare(hook mqtt.Hook) (*mqtt.Server, func() string, error) {
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if hook == nil {
		hook = &admitAll{}
	}
	if err := s.AddHook(hook, nil); err != nil {
		return nil, nil, err
	}
	l := listeners.NewTCP(listeners.Config{ID: "bare", Address: "127.0.0.1:0"})
	if err := s.AddListener(l); err != nil {
		return nil, nil, err
	}
	return s, l.Address, nil
}

// admitAll lets everybody do everything.
type admitAll struct{ mqtt.HookBase }

func (*admitAll) ID() string { return "admit-all" }

func (*admitAll) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (*admitAll) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*admitAll) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// startBare starts a bare broker as a process and returns its address.
func startBare(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), bareVariable+"=1")
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
