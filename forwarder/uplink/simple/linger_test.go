package simple

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
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

// TestCloseBesideAStuckWriter: a broker that reads nothing holds a writer, and over TLS the end of the sending side waits for that.
func TestCloseBesideAStuckWriter(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := pair(t)
	broker := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	shaken := make(chan error, 1)
	go func() { shaken <- broker.Handshake() }() // and then it reads nothing
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{}, 1)
	stuck := make(chan struct{})
	go func() { // ends with the connection
		defer close(stuck)
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil {
				return
			}
			select {
			case wrote <- struct{}{}:
			default:
			}
		}
	}()
	for last := false; !last; { // until the buffers on the way are full
		select {
		case <-wrote:
		case <-time.After(time.Second):
			last = true
		}
	}
	closed := make(chan struct{})
	go func() { _ = (&lingering{Conn: client}).Close(); close(closed) }()
	for _, c := range []chan struct{}{closed, stuck} {
		select {
		case <-c:
		case <-time.After(time.Minute):
			t.Fatal("Close waits for the writer, which waits for the broker")
		}
	}
}
