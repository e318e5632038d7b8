package gate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// certificate makes a self-signed certificate for localhost with that serial number.
func certificate(t *testing.T, serial int64) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "gate"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLS(t *testing.T) {
	before := runtime.NumGoroutine()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := func(serial int64) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certificate(t, serial)}, MinVersion: tls.VersionTLS12}
	}
	l := NewListener(inner, ListenerOptions{TLS: config(1)})
	d := disk{}
	var level atomic.Uint32
	var handshakes atomic.Int32
	go serve(l, func(c *Conn) {
		if _, ok := c.ConnectionState(); ok {
			t.Error("connection state before the handshake")
		}
		_, _ = c.Read(make([]byte, 100))
		if _, ok := c.ConnectionState(); ok {
			handshakes.Add(1)
		}
		level.Store(uint32(c.Level()))
		_, _ = c.Write(connack(5))
		c.Hold(d.at(1))
		_, _ = c.Write(append(puback(1), publish(40000)...))
		readAll(c)
	})

	// A client that never begins its handshake stands in nobody's way.
	silent, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := func() *tls.Conn {
		t.Helper()
		// The certificate is our own of a moment ago; only its serial number is looked at.
		cl, err := tls.Dial("tcp", inner.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // test
		if err != nil {
			t.Fatal(err)
		}
		return cl
	}
	first := client()
	_, _ = first.Write(connectPacket(5, 0))
	want := append(connack(5), publish(40000)...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(first, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("client read %v", err)
	}
	d.commit(1)
	if _, err := io.ReadFull(first, got[:4]); err != nil || !bytes.Equal(got[:4], puback(1)) {
		t.Fatalf("client read %x, %v", got[:4], err)
	}
	if level.Load() != 5 || handshakes.Load() != 1 {
		t.Errorf("level %d, %d handshakes", level.Load(), handshakes.Load())
	}

	l.SetTLS(nil) // ignored
	l.SetTLS(config(2))
	second := client()
	serial := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
	if serial(first) != 1 || serial(second) != 2 {
		t.Errorf("serials %d, %d, want 1, 2", serial(first), serial(second))
	}

	stopped := make(chan error)
	go func() { stopped <- l.Shutdown(t.Context(), 0x8b) }()
	if rest, err := io.ReadAll(first); err != nil || !bytes.Equal(rest, goodbye(0x8b)) {
		t.Errorf("client read %x, %v at the end", rest, err)
	}
	_, _, _ = first.Close(), second.Close(), silent.Close()
	if err := <-stopped; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	eventually(t, "no goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestHandshakeEndsByConnectTimeout(t *testing.T) {
	sv, cl := tcpPair(t)
	var end ending
	c := Wrap(tls.Server(sv, &tls.Config{Certificates: []tls.Certificate{certificate(t, 1)}}), Options{
		ConnectTimeout: 30 * time.Millisecond, OnClose: end.note,
	})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = cl.Close()
	c.Wait()
	end.want(t, ReasonConnectTimeout)
}

func TestHandshakeFails(t *testing.T) {
	sv, cl := tcpPair(t)
	var end ending
	c := Wrap(tls.Server(sv, &tls.Config{Certificates: []tls.Certificate{certificate(t, 1)}}), Options{OnClose: end.note})
	_, _ = cl.Write(connectPacket(5, 0))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("plain bytes made a handshake")
	}
	_ = c.Close()
	_ = cl.Close()
	c.Wait()
	end.want(t, ReasonHandshake)
}

// Closing a *tls.Conn waits for a write that hangs; Kill must not.
func TestKillTLSWithStuckPeer(t *testing.T) {
	sv, cl := tcpPair(t)
	_, _ = sv.SetWriteBuffer(64<<10), cl.SetReadBuffer(64<<10)
	var end ending
	c := Wrap(tls.Server(sv, &tls.Config{Certificates: []tls.Certificate{certificate(t, 1)}}), Options{
		OnClose: end.note,
	})
	go readAll(c)
	client := tls.Client(cl, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // test
	if _, err := client.Write(connectPacket(5, 0)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the CONNECT is read", func() bool { return c.Level() == 5 })
	if _, err := c.Write(publish(4 << 20)); err != nil { // more than the socket buffers take
		t.Fatal(err)
	}
	var last uint64
	eventually(t, "the writer is stuck", func() bool {
		before := last
		last = c.BytesWritten()
		time.Sleep(5 * time.Millisecond)
		return last > 0 && last == before
	})
	begin := time.Now()
	c.Kill("taken over")
	c.Wait()
	if d := time.Since(begin); d > time.Second {
		t.Errorf("kill took %v", d)
	}
	end.want(t, "taken over")
}
