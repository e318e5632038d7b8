package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cloud is a Mosquitto with a configuration, a store and a port of its own. It can be stopped and started again; what it
// took over it keeps, as its store is written on an orderly stop.
type cloud struct {
	t     testing.TB
	dir   string
	port  int
	log   *logBuffer
	cmd   *exec.Cmd
	ended chan struct{}
}

// newCloud prepares a cloud broker; extra are further lines of its configuration. It is not started.
func newCloud(t testing.TB, extra ...string) *cloud {
	t.Helper()
	dir, err := os.MkdirTemp("", "tgcloud")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cloud{t: t, dir: dir, port: freePort(t), log: &logBuffer{}}
	lines := append([]string{
		fmt.Sprintf("listener %d 127.0.0.1", c.port),
		"user root", // else it gives up root and cannot write its store
		"persistence true",
		"persistence_location " + dir + "/",
		"autosave_interval 0",
		"max_queued_messages 0",
		"set_tcp_nodelay true",
		"log_dest stderr",
	}, extra...)
	if !strings.Contains(strings.Join(extra, "\n"), "allow_anonymous") {
		lines = append(lines, "allow_anonymous true")
	}
	path := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("log of the cloud broker (end):\n%s", c.log.tail(1500))
		}
	})
	return c
}

// startCloud is newCloud and start.
func startCloud(t testing.TB, extra ...string) *cloud {
	t.Helper()
	c := newCloud(t, extra...)
	c.start()
	return c
}

// addr is HOST:PORT; url is what an uplink's servers name.
func (c *cloud) addr() string { return fmt.Sprintf("127.0.0.1:%d", c.port) }
func (c *cloud) url() string  { return "mqtt://" + c.addr() }

// start runs Mosquitto and waits until it takes connections.
func (c *cloud) start() {
	c.t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	cmd := exec.Command(path, "-c", filepath.Join(c.dir, "mosquitto.conf"))
	cmd.Stderr = c.log.run(nil)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.cmd, c.ended = cmd, make(chan struct{})
	ended := c.ended
	go func() { // ends with the process, which Cleanup kills
		_ = cmd.Wait()
		close(ended)
	}()
	waitFor(c.t, soon, "mosquitto to listen", func() bool {
		select {
		case <-ended:
			c.t.Fatalf("mosquitto ended: %s", c.log.tail(2000))
		default:
		}
		conn, err := net.DialTimeout("tcp", c.addr(), time.Second)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// stop ends Mosquitto in an orderly way, so that it keeps what it took over for its sessions.
func (c *cloud) stop() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-time.After(soon):
		c.t.Fatal("mosquitto did not stop")
	}
}

func (c *cloud) running() bool {
	if c.cmd == nil {
		return false
	}
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

func (c *cloud) kill() {
	if c.running() {
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

// uplinkTo is the configuration of an uplink to a URL; extra are further lines of its table.
func uplinkTo(name, url, protocol string, extra ...string) string {
	return fmt.Sprintf("[uplink.%s]\n  servers = [%q]\n  protocol = %q\n%s\n", name, url, protocol, strings.Join(extra, "\n"))
}

func listenLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

func portOf(a net.Addr) int { return a.(*net.TCPAddr).Port }

func hostPort(addr string) (host, port string) {
	host, port, _ = net.SplitHostPort(addr)
	return host, port
}
