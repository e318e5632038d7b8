package simple

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// pair gives both ends of a connection.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// TestCloseResetsNothing: what was written before Close arrives, although the broker reads it later and has sent something that nobody read,
// where a plain close resets the connection.
func TestCloseResetsNothing(t *testing.T) {
	near, far := pair(t)
	if _, err := far.Write([]byte("a pong nobody waits for")); err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("message"), 1000)
	if _, err := near.Write(sent); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- (&lingering{Conn: near}).Close() }() // ends when far closes
	time.Sleep(50 * time.Millisecond)                          // so that a plain close would come first
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(sent), err)
	}
	_ = far.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestCloseDoesNotWaitForever: a broker that neither reads nor closes holds nobody up for long.
func TestCloseDoesNotWaitForever(t *testing.T) {
	near, _ := pair(t)
	closed := make(chan error, 1)
	go func() { closed <- (&lingering{Conn: near}).Close() }() // ends by its own deadline
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for ever")
	}
}
