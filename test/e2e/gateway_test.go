package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// gateway is one configuration and data folder, and the process that runs on them, if one runs.
type gateway struct {
	t      testing.TB
	dir    string // holds gw.toml and data/
	config string // path of gw.toml
	log    *logBuffer

	cmd   *exec.Cmd
	ended chan struct{} // closed when the process ended; then err is set
	err   error
	addrs map[string]string // of the ready line, by name: listener.dev, admin
	ready time.Duration     // from start to the ready line

	// listens is the address of head's listener, for devices that reconnect while the test restarts the gateway.
	listens atomic.Pointer[string]
}

// devices is the listener that head declares.
const devices = "listener.dev"

// head is the part of a configuration that most tests share.
const head = `version = 1
[gateway]
  id = "gw"
  data_dir = "data"
[listener.dev]
  listen = "mqtt://127.0.0.1:0"
[admin]
  listen = "http://127.0.0.1:0"
`

// newGateway writes a configuration, head first, into a folder of its own. Nothing is started.
func newGateway(t testing.TB, sections ...string) *gateway {
	t.Helper()
	dir, err := os.MkdirTemp("", "tg") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &gateway{t: t, dir: dir, config: filepath.Join(dir, "gw.toml"), log: &logBuffer{}}
	g.configure(append([]string{head}, sections...)...)
	t.Cleanup(func() {
		g.kill()
		if t.Failed() {
			t.Logf("configuration:\n%s", readFile(t, g.config))
			t.Logf("log of the gateway (end):\n%s", g.log.tail(6000))
		}
	})
	return g
}

// configure replaces the configuration file.
func (g *gateway) configure(sections ...string) {
	g.t.Helper()
	g.write("gw.toml", strings.Join(sections, "\n"))
}

// write puts a file into the gateway's folder.
func (g *gateway) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// data is the path of the data folder that head names.
func (g *gateway) data() string { return filepath.Join(g.dir, "data") }

// start runs the gateway and waits until it is ready.
func (g *gateway) start() {
	g.t.Helper()
	if err := g.tryStart(); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) tryStart() error {
	cmd := exec.Command(program, "run", "--config", g.config)
	ready := make(chan string, 1)
	cmd.Stderr = g.log.run(ready)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	g.cmd, g.ended, g.err = cmd, make(chan struct{}), nil
	ended := g.ended
	go func() { // ends with the process, which Cleanup kills
		g.err = cmd.Wait()
		close(ended)
	}()
	select {
	case line := <-ready:
		g.ready = time.Since(begin)
		g.addrs = addresses(line)
		address := g.addrs[devices]
		g.listens.Store(&address)
		return nil
	case <-ended:
		return fmt.Errorf("the gateway ended before it was ready: %v\n%s", g.err, g.log.tail(3000))
	case <-time.After(2 * time.Minute):
		return fmt.Errorf("the gateway is not ready after two minutes\n%s", g.log.tail(3000))
	}
}

// startInVain runs the gateway and kills it after a while, ready or not: recovery is interrupted like anything else.
func (g *gateway) startInVain(after time.Duration) {
	g.t.Helper()
	cmd := exec.Command(program, "run", "--config", g.config)
	cmd.Stderr = g.log.run(nil)
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// addresses reads the name=address pairs of a ready line.
func addresses(line string) map[string]string {
	m := map[string]string{}
	for _, word := range strings.Fields(line) {
		if k, v, ok := strings.Cut(word, "="); ok {
			m[k] = strings.Trim(v, `"`)
		}
	}
	return m
}

// addr returns a bound address by its name in the ready line.
func (g *gateway) addr(name string) string {
	g.t.Helper()
	a := g.addrs[name]
	if a == "" {
		g.t.Fatalf("the ready line has no address of %s: %v", name, g.addrs)
	}
	return a
}

// here is addr(devices) for devices: safe at any time, and empty before the first start.
func (g *gateway) here() string {
	if a := g.listens.Load(); a != nil {
		return *a
	}
	return ""
}

func (g *gateway) pid() int { return g.cmd.Process.Pid }

func (g *gateway) running() bool {
	if g.cmd == nil {
		return false
	}
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

// kill ends the process as a power cut does for it, and waits until it is gone.
func (g *gateway) kill() {
	if !g.running() {
		return
	}
	_ = g.cmd.Process.Kill()
	<-g.ended
}

// stop asks for an orderly stop and wants exit code 0; it returns how long that took.
func (g *gateway) stop() time.Duration {
	g.t.Helper()
	begin := time.Now()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-g.ended:
	case <-time.After(2 * time.Minute):
		_ = g.cmd.Process.Signal(syscall.SIGQUIT) // the goroutines go to the log
		<-g.ended
		g.t.Fatal("the gateway did not stop within two minutes of SIGTERM")
	}
	if g.err != nil {
		g.t.Fatalf("orderly stop: %v", g.err)
	}
	return time.Since(begin)
}

// result is what one run of a command left.
type result struct {
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstandard output: %s\nstandard error: %s", r.code, r.out, r.err)
}

// run runs one command of the binary with the gateway's configuration, in its folder.
func (g *gateway) run(args ...string) result {
	g.t.Helper()
	return runCommand(g.t, g.dir, "", append(args, "--config", g.config)...)
}

// runCommand runs the binary in a folder with text on standard input.
func runCommand(t testing.TB, dir, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "TIDEGATE_CONFIG=")
	return runLimited(t, cmd)
}

// runLimited runs any command and takes at most a minute for it.
func runLimited(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%s: still running after a minute\n%s%s", strings.Join(cmd.Args, " "), out.String(), errs.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// logBuffer keeps what all runs of a process wrote.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

// run returns the writer of one run; the first line with msg=ready goes to ready.
func (l *logBuffer) run(ready chan<- string) *logWriter { return &logWriter{log: l, ready: ready} }

func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-n):])
}

func (l *logBuffer) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text, []byte(s))
}

type logWriter struct {
	log   *logBuffer
	line  []byte
	ready chan<- string
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.log.mu.Lock()
	w.log.text = append(w.log.text, p...)
	w.log.mu.Unlock()
	for _, c := range p {
		if c != '\n' {
			w.line = append(w.line, c)
			continue
		}
		if w.ready != nil && bytes.Contains(w.line, []byte("msg=ready")) {
			w.ready <- string(w.line)
			w.ready = nil
		}
		w.line = w.line[:0]
	}
	return len(p), nil
}
