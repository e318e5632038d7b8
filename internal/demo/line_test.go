package demo

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestLine: bytes pass while the line is up, connections end when it is cut, and new ones pass again when it is mended.
func TestLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	ln, err := newLine(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.close()
	echoed := func() bool {
		c, err := net.Dial("tcp", ln.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return false
		}
		b := make([]byte, 1)
		_, err = io.ReadFull(c, b)
		return err == nil
	}
	if !echoed() {
		t.Error("nothing passes at the start")
	}
	c, err := net.Dial("tcp", ln.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ln.cut()
	_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("an open connection outlives the cut")
	}
	if echoed() {
		t.Error("a new connection passes a line that is cut")
	}
	ln.mend()
	if !echoed() {
		t.Error("nothing passes a line that was mended")
	}
}
