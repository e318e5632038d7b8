package opcua

import (
	"bufio"
	"context"
	"encoding/json"
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
)

// peerFolder has the server that the tests talk to, and its packages.
const peerFolder = "testdata/node"

var installPeer = sync.OnceValue(func() error {
	lock, err := os.ReadFile(filepath.Join(peerFolder, "package-lock.json"))
	if err != nil {
		return err
	}
	stamp := filepath.Join(peerFolder, "node_modules", ".tidegate-lock")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == string(lock) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
	cmd.Dir = peerFolder
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in %s: %w\n%s", peerFolder, err, out)
	}
	return os.WriteFile(stamp, lock, 0o600)
})

// peerOptions say what the server shall be; see server.mjs.
type peerOptions struct {
	Port         int               `json:"port"`
	Dir          string            `json:"dir"`
	Counters     int               `json:"counters,omitempty"`
	Interval     int               `json:"interval,omitempty"`
	Present      *int              `json:"present,omitempty"`
	Start        int               `json:"start,omitempty"`
	Pad          int               `json:"pad,omitempty"`
	ItemsPerCall int               `json:"itemsPerCall,omitempty"`
	Users        map[string]string `json:"users,omitempty"`
	Anonymous    *bool             `json:"anonymous,omitempty"`
	Policies     []string          `json:"policies,omitempty"`
	Modes        []string          `json:"modes,omitempty"`
	Announce     string            `json:"announce,omitempty"`
}

// peer is a node-opcua server in a process of its own.
type peer struct {
	t      testing.TB
	o      peerOptions
	cmd    *exec.Cmd
	in     io.WriteCloser
	events chan peerEvent
	ended  chan struct{}

	certificate []byte
}

type peerEvent struct {
	Event       string `json:"event"`
	Error       string `json:"error"`
	Port        int    `json:"port"`
	Certificate []byte `json:"certificate"`
	Count       int    `json:"count"`
	Type        string `json:"type"`
	Value       string `json:"value"`
	Status      string `json:"status"`
	Sessions    int    `json:"sessions"`
	Subs        int    `json:"subscriptions"`
}

// peerDir holds the certificate of all servers: making one takes node seconds.
var peerDir string

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	if peerDir, err = os.MkdirTemp("", "tidegate-opcua"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(peerDir)
	os.Exit(code)
}

// startPeer starts a server and waits until it listens. The test fails where it cannot be started.
func startPeer(t testing.TB, o peerOptions) *peer {
	t.Helper()
	if err := installPeer(); err != nil {
		t.Fatalf("the tests need node and npm: %v", err)
	}
	if o.Port == 0 {
		o.Port = freePort(t)
	}
	if o.Dir == "" {
		o.Dir = peerDir
	}
	p := &peer{t: t, o: o}
	p.start()
	return p
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start starts the server, again for a while where its port has become that of somebody's connection.
func (p *peer) start() {
	p.t.Helper()
	p.t.Cleanup(p.kill)
	for tries := 1; ; tries++ {
		p.spawn()
		e := p.next(60 * time.Second)
		if e.Event == "ready" {
			p.certificate = e.Certificate
			return
		}
		if !strings.Contains(e.Error, "EADDRINUSE") || tries == 30 {
			p.t.Fatalf("the server does not start: %+v", e)
		}
		p.kill()
		time.Sleep(2 * time.Second)
	}
}

func (p *peer) spawn() {
	p.t.Helper()
	arg, err := json.Marshal(p.o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command("node", "server.mjs", string(arg))
	p.cmd.Dir = peerFolder
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start node: %v", err)
	}
	events, ended := make(chan peerEvent, 16), make(chan struct{})
	p.events, p.ended = events, ended
	cmd := p.cmd
	go func() { // ends with the process
		defer close(ended)
		defer close(events)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e peerEvent
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				events <- e
			}
		}
		_ = cmd.Wait()
	}()
}

func (p *peer) next(timeout time.Duration) peerEvent {
	p.t.Helper()
	select {
	case e, ok := <-p.events:
		if !ok {
			p.t.Fatal("the server has ended")
		}
		return e
	case <-time.After(timeout):
		p.t.Fatalf("the server says nothing for %s", timeout)
		return peerEvent{}
	}
}

// do gives the server a command and returns its answer.
func (p *peer) do(command string, more ...any) peerEvent {
	p.t.Helper()
	args := map[string]any{"do": command}
	for i := 0; i+1 < len(more); i += 2 {
		args[more[i].(string)] = more[i+1]
	}
	line, err := json.Marshal(args)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		p.t.Fatalf("command %s: %v", command, err)
	}
	e := p.next(30 * time.Second)
	if e.Error != "" {
		p.t.Fatalf("command %s: %s", command, e.Error)
	}
	return e
}

// kill ends the process without a word to anybody.
func (p *peer) kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// url is where the server can be reached, url of a proxy in front of it.
func (p *peer) url() string { return fmt.Sprintf("opc.tcp://127.0.0.1:%d/UA/Test", p.o.Port) }
