package uplink

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestOutageIsNews: each failure of each server is news once, and again after an hour.
func TestOutageIsNews(t *testing.T) {
	var o outage
	now := time.Now()
	for _, c := range []struct {
		server, failure string
		after           time.Duration
		want            bool
	}{
		{"mqtt://s1", "read tcp 10.0.0.1:4711->10.0.0.2:1883: reset", 0, true},
		{"mqtt://s2", "read tcp 10.0.0.1:4712->10.0.0.3:1883: reset", 0, true},
		{"mqtt://s1", "read tcp 10.0.0.1:4713->10.0.0.2:1883: reset", time.Second, false},
		{"mqtt://s2", "read tcp 10.0.0.1:4714->10.0.0.3:1883: reset", time.Second, false},
		{"mqtt://s1", "no route to host", time.Minute, true},
		{"mqtt://s1", "read tcp 10.0.0.1:4715->10.0.0.2:1883: reset", 59 * time.Minute, false},
		{"mqtt://s1", "read tcp 10.0.0.1:4716->10.0.0.2:1883: reset", 60 * time.Minute, true},
		{"mqtt://s1", "read tcp 10.0.0.1:4717->10.0.0.2:1883: reset", 61 * time.Minute, false},
	} {
		if got := o.news(c.server, c.failure, now.Add(c.after)); got != c.want {
			t.Errorf("%s %s after %s: %t", c.server, c.failure, c.after, got)
		}
	}
	for i := range 1000 {
		o.news("mqtt://s1", strings.Repeat("x", i), now)
	}
	if len(o.logged) > maxFailures {
		t.Errorf("%d failures are remembered", len(o.logged))
	}
}

// TestOutageIsLoggedOnce: with one server and with several the attempts of an outage make few lines.
func TestOutageIsLoggedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
			_ = c.Close()
		}
	}()
	for name, servers := range map[string][]string{
		"reset":         {"mqtt://" + l.Addr().String()},
		"two servers":   {"mqtt://" + unusedAddr(t), "mqtt://" + unusedAddr(t)},
		"three servers": {"mqtt://" + unusedAddr(t), "mqtt://" + l.Addr().String(), "mqtt://" + unusedAddr(t)},
	} {
		h := run(t, variants()[0], nil, nil, servers...)
		eventually(t, "tried often", func() bool { return h.reconnects(endNetwork) >= 20 })
		h.stop()
		// A reset shows as one or as an end of the stream, in the reading or in the writing.
		if n := strings.Count(h.log.String(), "uplink not connected"); n > len(servers)+3 {
			t.Errorf("%s: %g attempts, %d lines of log\n%s", name, h.reconnects(endNetwork), n, h.log)
		}
	}
}

// TestOutageAfterAConnectionIsNewsAgain: what was logged before the connection is logged after it.
func TestOutageAfterAConnectionIsNewsAgain(t *testing.T) {
	h := open(t, variants()[0], nil, "mqtt://s0")
	sv := h.settings.servers[0]
	failure := func() { h.failed("connect to", sv, ended(endNetwork, "no route to host")) }
	failure()
	failure()
	h.up(sv, &link{conn: newTestConn(version5)})
	failure()
	if n := strings.Count(h.log.String(), "uplink not connected"); n != 2 {
		t.Errorf("%d lines\n%s", n, h.log)
	}
	if want := fmt.Sprintf("connect to %s: no route to host", sv.url); h.Status().LastError != want {
		t.Errorf("last error %q", h.Status().LastError)
	}
}
