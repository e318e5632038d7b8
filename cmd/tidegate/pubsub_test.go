package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// numbered returns n lines that count from 0.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d\n", i)
	}
	return b.String()
}

func TestPubSubWrongUse(t *testing.T) {
	for _, c := range []struct{ args, errs string }{
		{"pub -m x", "-t TOPIC is missing"},
		{"pub -t a", "exactly one of -m, -l, -n and -s"},
		{"pub -t a -m x -l", "exactly one of -m, -l, -n and -s"},
		{"pub -t a/+ -m x", "wildcard"},
		{"pub -t a -m x -q 3", "-q 3"},
		{"pub -t a -m x -p 0", "-p 0"},
		{"pub -t a -m x -V mqttv31", "want mqttv311 or mqttv5"},
		{"pub -t a -m x -P secret", "-P without -u"},
		{"pub -t a -m x y", `unexpected argument "y"`},
		{"sub", "-t FILTER is missing"},
		{"sub -t a/#/b", "# must be the last level"},
		{"sub -t a -C -1", "-C -1"},
		{"sub -t a -W -1", "-W -1"},
		{"sub -t a b", `unexpected argument "b"`},
	} {
		t.Run(c.args, func(t *testing.T) {
			r := tidegate(t, "", strings.Fields(c.args)...)
			r.want(t, exitUsage, "", c.errs)
			if strings.Contains(r.err, "secret") {
				t.Errorf("a password is printed: %q", r.err)
			}
		})
	}
}

func TestPubSubNoBroker(t *testing.T) {
	port := strconv.Itoa(freePort(t))
	for _, version := range []string{"mqttv311", "mqttv5"} {
		tidegate(t, "", "pub", "-h", "127.0.0.1", "-p", port, "-t", "a", "-m", "x", "-V", version).
			want(t, exitUnavailable, "", "cannot reach the broker at 127.0.0.1:"+port)
		tidegate(t, "", "sub", "-h", "127.0.0.1", "-p", port, "-t", "a", "-V", version).
			want(t, exitUnavailable, "", "check -h and -p")
	}
}

// Against a real Mosquitto, in both versions and every QoS: what is published from -l comes out in order.
func TestPubSubMosquitto(t *testing.T) {
	port := strconv.Itoa(mosquitto(t, "allow_anonymous true"))
	const n = 500
	for _, version := range []string{"311", "5"} {
		for qos := range 3 {
			t.Run(fmt.Sprintf("version %s QoS %d", version, qos), func(t *testing.T) {
				topic := fmt.Sprintf("t/%s/%d", version, qos)
				q := strconv.Itoa(qos)
				at := []string{"-p", port, "-q", q, "-V", version}
				// The retained message tells that the subscription is there.
				tidegate(t, "", append([]string{"pub", "-t", topic, "-m", "first", "-r"}, at...)...).want(t, exitOK, "", "")
				sub := start(t, nil, append([]string{"sub", "-t", topic, "-C", strconv.Itoa(n + 1), "-W", "20"}, at...)...)
				eventually(t, "the retained message comes", func() bool { return sub.out.String() == "first\n" })
				tidegate(t, numbered(n), append([]string{"pub", "-t", topic, "-l"}, at...)...).want(t, exitOK, "", "")
				r := sub.wait(t)
				r.want(t, exitOK, "", "")
				if r.out != "first\n"+numbered(n) {
					t.Errorf("got %d lines, not in order or not all", strings.Count(r.out, "\n"))
				}
			})
		}
	}
}

func TestSubOutput(t *testing.T) {
	port := strconv.Itoa(mosquitto(t, "allow_anonymous true"))
	pub := func(in string, args ...string) {
		t.Helper()
		tidegate(t, in, append([]string{"pub", "-p", port, "-q", "1", "-r"}, args...)...).want(t, exitOK, "", "")
	}
	pub("", "-t", "a/1", "-m", "one")
	pub("two\nlines", "-t", "a/2", "-s")
	pub("", "-t", "b", "-m", "")
	sub := func(args ...string) result {
		t.Helper()
		return tidegate(t, "", append([]string{"sub", "-p", port}, args...)...)
	}
	sub("-t", "a/1", "-v", "-C", "1", "-W", "20").want(t, exitOK, "a/1 one\n", "")
	sub("-t", "a/2", "-C", "1", "-W", "20").want(t, exitOK, "two\nlines\n", "")
	if r := sub("-t", "a/1", "-t", "a/2", "-v", "-C", "2", "-W", "20"); strings.Count(r.out, "a/") != 2 {
		t.Errorf("two filters: %+v", r)
	}
	sub("-t", "nothing", "-C", "1", "-W", "0.2").want(t, exitFailed, "", "0 of 1 messages came within 200ms")
	sub("-t", "a/1", "-W", "0.2").want(t, exitOK, "one\n", "")

	clear := start(t, nil, "sub", "-p", port, "-t", "a/1", "-v", "-C", "2", "-W", "20")
	eventually(t, "the retained message comes", func() bool { return clear.out.String() != "" })
	pub("", "-t", "a/1", "-n")
	clear.wait(t).want(t, exitOK, "a/1 one\na/1 (null)\n", "")
	sub("-t", "a/1", "-W", "0.2", "-C", "1").want(t, exitFailed, "", "0 of 1")
}

// A login that is refused, a message and a subscription that are not allowed: 1, with the broker's reason.
func TestPubSubRefused(t *testing.T) {
	acl := filepath.Join(t.TempDir(), "acl")
	if err := os.WriteFile(acl, []byte("topic readwrite open/#\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(mosquitto(t, "allow_anonymous true", "acl_file "+acl))
	closed := strconv.Itoa(mosquitto(t, "allow_anonymous false"))
	for _, version := range []string{"311", "5"} {
		tidegate(t, "", "pub", "-p", closed, "-t", "a", "-m", "x", "-V", version).want(t, exitFailed, "", "connection refused: not")
		tidegate(t, "", "sub", "-p", closed, "-t", "a", "-V", version).want(t, exitFailed, "", "check -u and -P")
	}
	for _, qos := range []string{"1", "2"} {
		r := tidegate(t, "1\n2\n", "pub", "-p", port, "-t", "shut", "-l", "-q", qos, "-V", "5")
		r.want(t, exitFailed, "", "message to shut refused: not authorized (0x87)")
		if strings.Count(r.err, "refused") != 2 {
			t.Errorf("each refused message has a line: %q", r.err)
		}
	}
}

// A connection that ends before the acknowledgement: 1, and the count of what is open.
func TestPubLost(t *testing.T) {
	for _, version := range []string{"311", "5"} {
		port := strconv.Itoa(mute(t))
		tidegate(t, numbered(3), "pub", "-h", "127.0.0.1", "-p", port, "-t", "a", "-l", "-q", "1", "-V", version).
			want(t, exitFailed, "", "messages were not acknowledged: the connection was lost")
	}
}

// mute is a broker that accepts every connection, answers a CONNECT, and closes at the first PUBLISH.
func mute(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		packet := make([]byte, 4096)
		n, err := c.Read(packet)
		if err != nil || n < 9 {
			return
		}
		connack := []byte{0x20, 2, 0, 0}
		if packet[8] == 5 { // protocol level: behind the fixed header and the name
			connack = []byte{0x20, 3, 0, 0, 0}
		}
		_, _ = c.Write(connack)
		_, _ = c.Read(packet)
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

func TestPubUnreadableInput(t *testing.T) {
	port := strconv.Itoa(mosquitto(t, "allow_anonymous true"))
	b := start(t, iotest.ErrReader(errors.New("input broke")), "pub", "-p", port, "-t", "a", "-l")
	b.wait(t).want(t, exitFailed, "", "read standard input: input broke")
	b = start(t, iotest.ErrReader(errors.New("input broke")), "pub", "-p", port, "-t", "a", "-s")
	b.wait(t).want(t, exitFailed, "", "read standard input: input broke")
}
