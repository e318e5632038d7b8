package testpeer

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// echo sends back whatever it gets, until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends when the test closes l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends when the proxy closes its side
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func through(t *testing.T) (*Proxy, net.Conn) {
	t.Helper()
	p, err := NewProxy(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, dial(t, p.Addr())
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	return c
}

func roundTrip(t *testing.T, c net.Conn, n int) time.Duration {
	t.Helper()
	out, in := bytes.Repeat([]byte("x"), n), make([]byte, n)
	started := time.Now()
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, in); err != nil || !bytes.Equal(in, out) {
		t.Fatalf("echo of %d bytes: %v", n, err)
	}
	return time.Since(started)
}

func TestProxyRelaysDelaysAndThrottles(t *testing.T) {
	p, c := through(t)
	roundTrip(t, c, 100_000)
	p.Delay(50 * time.Millisecond)
	if d := roundTrip(t, c, 10); d < 100*time.Millisecond {
		t.Errorf("round trip of %s with 50 ms each way", d)
	}
	p.Delay(0)
	p.Throttle(20_000)
	if d := roundTrip(t, c, 4000); d < 200*time.Millisecond {
		t.Errorf("4000 bytes took %s at 20000 bytes a second", d)
	}
	p.Throttle(0)
	roundTrip(t, c, 100_000)
}

func TestProxyBlackHole(t *testing.T) {
	p, c := through(t)
	roundTrip(t, c, 10)
	p.BlackHole(true)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d bytes came out of the black hole", n)
	}
	_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
	p.BlackHole(false)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestProxyCutsResetsAndRefuses(t *testing.T) {
	p, c := through(t)
	for _, end := range []func(){p.Cut, p.Reset} {
		roundTrip(t, c, 10)
		end()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("still open")
		}
		c = dial(t, p.Addr())
	}
	p.Refuse(true)
	c = dial(t, p.Addr())
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("not refused")
	}
}
