package gate

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// AwaitConnect returns with the whole CONNECT, and Read gives that and what came with it, whatever the pieces.
func TestAwaitConnect(t *testing.T) {
	want := append(connectPacket(5, 700), 0xc0, 0, 0xe0, 1, 0x04)
	for _, piece := range []int{1, 7, 128, len(want)} {
		sv, cl := tcpPair(t)
		c := Wrap(sv, Options{})
		go func() {
			for rest := want; len(rest) > 0; {
				n := min(piece, len(rest))
				_, _ = cl.Write(rest[:n])
				rest = rest[n:]
			}
			_ = cl.CloseWrite()
		}()
		if c.Level() != 0 {
			t.Error("a level before the CONNECT")
		}
		if err := c.AwaitConnect(); err != nil || c.Level() != 5 {
			t.Fatalf("pieces of %d: %v, level %d", piece, err, c.Level())
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: read %d bytes, %v", piece, len(got), err)
		}
		if n := c.BytesRead(); n != uint64(len(want)) {
			t.Errorf("%d bytes counted", n)
		}
		if c.ShortDisconnect() != 0x04 {
			t.Error("the short DISCONNECT is lost")
		}
		_ = c.Close()
		_ = cl.Close()
		c.Wait()
	}
}

// What is no CONNECT, or never comes whole, is an error of AwaitConnect.
func TestAwaitConnectFails(t *testing.T) {
	for _, s := range []struct {
		name string
		send []byte
		want error
	}{
		{"another packet", []byte{0xc0, 0}, ErrNotConnect},
		{"too large", []byte{0x10, 0xff, 0xff, 0x7f}, ErrConnectTooLarge},
		{"half of one", connectPacket(4, 100)[:50], os.ErrDeadlineExceeded},
		{"nothing", nil, os.ErrDeadlineExceeded},
	} {
		sv, cl := tcpPair(t)
		c := Wrap(sv, Options{ConnectTimeout: 50 * time.Millisecond})
		_, _ = cl.Write(s.send)
		if err := c.AwaitConnect(); !errors.Is(err, s.want) {
			t.Errorf("%s: %v", s.name, err)
		}
		_ = c.Close()
		_ = cl.Close()
		c.Wait()
	}
}

// Limits that two listeners have together count the connections of both.
func TestSharedLimits(t *testing.T) {
	limits := NewLimits(5, 3, 0, 0)
	var refused []Reason
	listen := func() *Listener {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return NewListener(inner, ListenerOptions{Limits: limits, OnRefuse: func(_ net.Addr, why Reason) { refused = append(refused, why) }})
	}
	a, b := listen(), listen()
	defer a.Close()
	defer b.Close()
	from := func(l *Listener, ip string) *Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		cl, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cl.Close() })
		raw, err := l.inner.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return l.admit(raw)
	}
	first := from(a, "127.0.0.1")
	for _, s := range []struct {
		l    *Listener
		ip   string
		good bool
	}{{a, "127.0.0.1", true}, {b, "127.0.0.1", true}, {b, "127.0.0.1", false}, {b, "127.0.0.2", true}, {a, "127.0.0.2", true}, {a, "127.0.0.3", false}} {
		if c := from(s.l, s.ip); (c != nil) != s.good {
			t.Errorf("%s: %t", s.ip, c != nil)
		}
	}
	if len(refused) != 2 || refused[0] != ReasonTooManyPerAddr || refused[1] != ReasonTooMany {
		t.Errorf("refused %v", refused)
	}
	first.Kill("test")
	first.Wait()
	if from(b, "127.0.0.1") == nil {
		t.Error("a place that became free is not given away")
	}
}
