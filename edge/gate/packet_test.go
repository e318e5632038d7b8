package gate

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// all reads packets to the end of the stream and returns their bytes, with the shortest form of the remaining length.
func all(c *Conn) (got []byte, err error) {
	for {
		first, body, err := c.ReadPacket(0)
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, frameOf(first, body)...)
	}
}

// TestReadPacket: whatever the sizes of packets and of the pieces in which they come, every packet arrives once and in order, whole, and
// nothing is kept of a connection that is silent.
func TestReadPacket(t *testing.T) {
	for _, kind := range []string{"tcp", "pipe", "tls"} {
		t.Run(kind, func(t *testing.T) {
			for seed := range uint64(10) {
				r := rand.New(rand.NewPCG(seed, 1))
				server, client := ends(t, kind)
				c := Wrap(server, Options{})
				sent := connectPacket(4, r.IntN(700))
				for len(sent) < 200<<10 {
					sent = append(sent, publish(r.IntN(40<<r.IntN(12)))...)
				}
				go func() { // ends with the last byte
					for rest := sent; len(rest) > 0; {
						n := min(1+r.IntN(1<<r.IntN(16)), len(rest))
						if _, err := client.Write(rest[:n]); err != nil {
							return
						}
						rest = rest[n:]
					}
					_ = client.Close()
				}()
				got, err := all(c)
				if err != nil || !bytes.Equal(got, sent) {
					t.Fatalf("seed %d: %v, got %d bytes of %d, or others", seed, err, len(got), len(sent))
				}
				if n := c.BytesRead(); n != uint64(len(sent)) {
					t.Errorf("%d bytes counted", n)
				}
				if c.in.buf != nil {
					t.Error("a buffer is kept")
				}
				_ = c.Close()
			}
		})
	}
}

// ends returns both ends of a connection.
func ends(t *testing.T, kind string) (server, client net.Conn) {
	t.Helper()
	switch kind {
	case "pipe":
		return net.Pipe()
	case "tls":
		sv, cl := tcpPair(t)
		return tls.Server(sv, &tls.Config{Certificates: []tls.Certificate{certificate(t, 1)}}),
			tls.Client(cl, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // test
	}
	return tcpPair(t)
}

// TestWaitsWithoutBuffer: a client that is silent, after a packet or in the middle of one, holds no buffer.
func TestWaitsWithoutBuffer(t *testing.T) {
	for _, kind := range []string{"tcp", "pipe"} {
		server, client := ends(t, kind)
		c := Wrap(server, Options{})
		in := bytes.Join([][]byte{connectPacket(4, 0), publish(20000), publish(20000)[:300]}, nil)
		go func() { _, _ = client.Write(in) }()
		for range 2 {
			if _, _, err := c.ReadPacket(0); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		go func() { // ends with the connection
			defer close(done)
			_, _, _ = c.ReadPacket(0)
		}()
		eventually(t, "everything is read", func() bool { return c.BytesRead() == uint64(len(in)) })
		_ = c.Close()
		<-done
		if c.in.buf != nil || c.in.rest != nil {
			t.Errorf("%s: a buffer is held", kind)
		}
		c.Wait()
	}
}

// TestSlowPacketsTakeLittle: a packet takes memory for what has arrived of it, not for what it claims to be.
func TestSlowPacketsTakeLittle(t *testing.T) {
	const conns = 200
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all := make([]*Conn, conns)
	for i := range all {
		server, client := tcpPair(t)
		c := Wrap(server, Options{MaxPacket: 64 << 20, MaxConnectBytes: 72 << 10})
		all[i] = c
		in := connectPacket(4, 70<<10)[:200]
		if i%2 == 0 {
			in = append(connectPacket(4, 0), publish(60 << 20)[:5000]...)
		}
		if _, err := client.Write(in); err != nil {
			t.Fatal(err)
		}
		go func() { // ends with the connection
			for {
				if _, _, err := c.ReadPacket(0); err != nil {
					return
				}
			}
		}()
		eventually(t, "everything is read", func() bool { return c.BytesRead() == uint64(len(in)) })
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / conns; n > 40<<10 {
		t.Errorf("%d bytes for a connection", n)
	}
	for _, c := range all {
		c.Kill("end of test")
		c.Wait()
	}
}

// What is no CONNECT, or never comes whole, is an error.
func TestReadConnectFails(t *testing.T) {
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
		if _, _, err := c.ReadPacket(0); !errors.Is(err, s.want) {
			t.Errorf("%s: %v", s.name, err)
		}
		_ = c.Close()
		_ = cl.Close()
		c.Wait()
	}
}

func TestReadPacketEnds(t *testing.T) {
	connect := connectPacket(5, 0)
	for _, s := range []struct {
		name string
		send []byte
		most int
		want error
	}{
		{"between packets", nil, 0, io.EOF},
		{"in the header", []byte{0x30}, 0, io.ErrUnexpectedEOF},
		{"in the length", []byte{0x30, 0x80}, 0, io.ErrUnexpectedEOF},
		{"in the body", publish(10)[:5], 0, io.ErrUnexpectedEOF},
		{"in a long body", publish(100000)[:50000], 0, io.ErrUnexpectedEOF},
		{"larger than asked for", publish(100), 50, ErrPacketTooLarge},
		{"no larger than asked for", publish(100), 200, nil},
		{"malformed", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 1}, 0, ErrMalformed},
	} {
		sv, cl := tcpPair(t)
		c := Wrap(sv, Options{})
		_, _ = cl.Write(append(connect[:len(connect):len(connect)], s.send...))
		_ = cl.CloseWrite()
		if _, _, err := c.ReadPacket(0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadPacket(s.most); !errors.Is(err, s.want) {
			t.Errorf("%s: %v", s.name, err)
		}
		_ = c.Close()
		_ = cl.Close()
		c.Wait()
	}
}

// TestKeepAlive: the next packet has to have arrived in time [MQTT-3.1.2-22]; a few bytes of it now and then are none.
func TestKeepAlive(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connectByPacket(t, 5)
		p.c.SetKeepAlive(90 * time.Second)
		written := make(chan struct{})
		go func() {
			defer close(written)
			for range 5 {
				time.Sleep(80 * time.Second)
				_, _ = p.peer.Write(publish(1000))
			}
			for _, b := range publish(100) {
				time.Sleep(20 * time.Second)
				if _, err := p.peer.Write([]byte{b}); err != nil {
					return
				}
			}
		}()
		begin := time.Now()
		for range 5 {
			if _, _, err := p.c.ReadPacket(0); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := p.c.ReadPacket(0)
		if d := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || d != 490*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
		p.c.Kill("keep alive")
		<-written
	})
}

// TestKeepAliveStandsStill: while the disk is waited for the client's silence does not count.
func TestKeepAliveStandsStill(t *testing.T) {
	bubble(t, Options{MaxHeld: 3}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connectByPacket(t, 5)
		p.c.SetKeepAlive(90 * time.Second)
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		time.AfterFunc(time.Hour, func() { p.disk.commit(1) })
		begin := time.Now()
		_, _, err := p.c.ReadPacket(0)
		if d := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || d != time.Hour+90*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
	})
}

// connectByPacket is connect where packets are read.
func (p *pair) connectByPacket(t *testing.T, level byte) {
	t.Helper()
	go func() { _, _ = p.peer.Write(connectPacket(level, 0)) }()
	if _, _, err := p.c.ReadPacket(0); err != nil {
		t.Fatalf("read connect: %v", err)
	}
	p.write(t, connack(level))
	synctest.Wait()
}
