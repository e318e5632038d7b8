package gate

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestReadsWhileAcksAreHeld(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 4)
		p.wantSent(t, connack(4))
		pk := publish(256)
		go func() {
			for range 100 {
				_, _ = p.peer.Write(pk)
			}
		}()
		for i := range uint16(100) {
			if _, err := io.ReadFull(p.c, make([]byte, len(pk))); err != nil {
				t.Fatal(err)
			}
			p.c.Hold(p.disk.at(uint64(i) + 1))
			p.write(t, puback(i))
		}
		p.wantSent(t)
		if p.c.Held() != 400 {
			t.Errorf("held %d bytes, want 400", p.c.Held())
		}
	})
}

func TestReadWaitsForTheDisk(t *testing.T) {
	for name, o := range map[string]Options{"bytes": {MaxHeld: 39}, "tickets": {MaxHeldAcks: 9}} {
		t.Run(name, func(t *testing.T) {
			var pauses atomic.Int32
			o.OnPause = func(*Conn) { pauses.Add(1) }
			bubble(t, o, func(t *testing.T, p *pair) {
				go p.peer.collect()
				p.connect(t, 4)
				_ = p.c.SetDeadline(time.Now().Add(90 * time.Second)) // keep alive of one minute
				go func() { _, _ = p.peer.Write(publish(10)) }()
				for i := range uint16(10) {
					p.c.Hold(p.disk.at(uint64(i) + 1))
					p.write(t, puback(i))
				}
				time.Sleep(time.Second)
				var done atomic.Bool
				go func() {
					if _, err := p.c.Read(make([]byte, 100)); err != nil {
						t.Errorf("read after the disk came back: %v", err)
					}
					done.Store(true)
				}()
				time.Sleep(time.Hour) // far over the keep alive
				if done.Load() || pauses.Load() != 1 {
					t.Fatalf("read came back %v, %d pauses", done.Load(), pauses.Load())
				}
				p.disk.commit(1)
				synctest.Wait()
				if !done.Load() {
					t.Fatal("read still waits after a commit")
				}
				// The deadline stood still: 89 seconds are left.
				begin := time.Now()
				_, err := p.c.Read(make([]byte, 1))
				if d := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || d != 89*time.Second {
					t.Errorf("keep alive after %v with %v, want 89s", d, err)
				}
				_ = p.c.Close()
				p.c.Kill("x")
				p.c.Wait()
				p.end.want(t, ReasonKeepAlive)
			})
		})
	}
}

func TestCloseEndsAReadThatWaitsForTheDisk(t *testing.T) {
	bubble(t, Options{MaxHeld: 3}, func(t *testing.T, p *pair) {
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		time.AfterFunc(time.Second, func() { _ = p.c.Close() })
		if _, err := p.c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
}

func TestConnectDeadline(t *testing.T) {
	connect := connectPacket(4, 0)
	for name, sent := range map[string][]byte{"nothing": nil, "half": connect[:8]} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Options{ConnectTimeout: 10 * time.Second}, func(t *testing.T, p *pair) {
				begin := time.Now()
				_ = p.c.SetDeadline(begin.Add(time.Hour))
				go func() { _, _ = p.peer.Write(sent) }()
				_, err := io.Copy(io.Discard, p.c)
				if d := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || d != 10*time.Second {
					t.Errorf("ended after %v with %v", d, err)
				}
				p.c.Wait()
				p.end.want(t, ReasonConnectTimeout)
			})
		})
	}
}

// With keep alive 0 the broker sets no deadline or takes it away; so must the gate once the CONNECT is there.
func TestConnectDeadlineEndsWithConnect(t *testing.T) {
	for _, set := range []bool{false, true} {
		bubble(t, Options{}, func(t *testing.T, p *pair) {
			go p.peer.collect()
			p.connect(t, 5)
			if set {
				_ = p.c.SetDeadline(time.Time{})
			}
			time.AfterFunc(24*time.Hour, func() { _, _ = p.peer.Write(pingresp()) })
			if n, err := p.c.Read(make([]byte, 10)); n != 2 || err != nil {
				t.Errorf("read a day later: %d, %v", n, err)
			}
		})
	}
}

// The broker's deadline applies to a Read that waits already.
func TestDeadlineReachesAWaitingRead(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 5)
		time.AfterFunc(time.Second, func() { _ = p.c.SetReadDeadline(time.Now().Add(time.Second)) })
		begin := time.Now()
		_, err := p.c.Read(make([]byte, 1))
		if d := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || d != 2*time.Second {
			t.Errorf("ended after %v with %v", d, err)
		}
	})
}

func TestDeadlinesAreForReadingOnly(t *testing.T) {
	bubble(t, Options{WriteTimeout: time.Minute}, func(t *testing.T, p *pair) {
		_ = p.c.SetDeadline(time.Now().Add(time.Second))
		_ = p.c.SetWriteDeadline(time.Now().Add(time.Second))
		p.write(t, publish(1))
		time.Sleep(30 * time.Second)
		go p.peer.collect()
		p.wantSent(t, publish(1))
	})
}

func TestFirstPacket(t *testing.T) {
	o := Options{MaxConnectBytes: 200, MaxPacket: 1000}
	cases := []struct {
		name string
		sent []byte
		err  error
		why  Reason
	}{
		{"other packet [MQTT-3.1.0-1]", publish(1), ErrNotConnect, ReasonNotConnect},
		{"no packet", []byte("GET / HTTP/1.1\r\n\r\n"), ErrNotConnect, ReasonNotConnect},
		{"type 0", []byte{0, 0}, ErrNotConnect, ReasonNotConnect},
		{"too large", connectPacket(5, 300), ErrConnectTooLarge, ReasonConnectTooLarge},
		{"claims 256 MiB", []byte{0x10, 0xff, 0xff, 0xff, 0x7f}, ErrConnectTooLarge, ReasonConnectTooLarge},
		{"five bytes of length", []byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f}, ErrMalformed, ReasonMalformed},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, o, func(t *testing.T, p *pair) {
				go p.peer.collect()
				go func() { _, _ = p.peer.Write(tc.sent) }()
				if n, err := p.c.Read(make([]byte, 512)); n != 0 || !errors.Is(err, tc.err) {
					t.Errorf("read %d bytes, %v, want %v", n, err, tc.err)
				}
				p.c.Wait()
				p.end.want(t, tc.why)
				p.wantSent(t)
			})
		})
	}
}

func TestLargePackets(t *testing.T) {
	o := Options{MaxConnectBytes: 200, MaxPacket: 1000}
	for _, level := range []byte{3, 4, 5} {
		for code, bad := range map[byte][]byte{
			codePacketTooLarge: publish(1000)[:600],
			codeMalformed:      {0x30, 0x80, 0x80, 0x80, 0x80, 0x01},
		} {
			bubble(t, o, func(t *testing.T, p *pair) {
				go p.peer.collect()
				p.connect(t, level)
				p.wantSent(t, connack(level))
				good := publish(900)
				go func() { _, _ = p.peer.Write(bytes.Join([][]byte{good, bad}, nil)) }()
				got, err := io.ReadAll(p.c)
				if !errors.Is(err, ErrPacketTooLarge) && !errors.Is(err, ErrMalformed) {
					t.Errorf("level %d: %v", level, err)
				}
				if !bytes.HasPrefix(got, good) || len(got) > len(good)+maxLengthBytes {
					t.Errorf("level %d: %d bytes handed on, want the %d before the bad packet", level, len(got), len(good))
				}
				p.c.Wait()
				if level == 5 {
					p.wantSent(t, goodbye(code))
				} else {
					p.wantSent(t)
				}
			})
		}
	}
}

// An acknowledgement that the broker writes for a packet before the bad one still leaves before the DISCONNECT.
func TestAcksBeforeRefusal(t *testing.T) {
	bubble(t, Options{MaxPacket: 1000}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 5)
		p.wantSent(t, connack(5))
		go func() { _, _ = p.peer.Write(append(publish(10), publish(2000)...)) }()
		if _, err := p.c.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		if _, err := p.c.Read(make([]byte, 4096)); !errors.Is(err, ErrPacketTooLarge) {
			t.Fatalf("read: %v", err)
		}
		p.wantSent(t)
		p.disk.commit(1)
		p.wantSent(t, puback(1), goodbye(codePacketTooLarge))
	})
}

func TestNoDisconnectBeforeConnack(t *testing.T) {
	bubble(t, Options{MaxPacket: 1000}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		go func() { _, _ = p.peer.Write(append(connectPacket(5, 0), publish(2000)...)) }()
		if _, err := io.Copy(io.Discard, p.c); !errors.Is(err, ErrPacketTooLarge) {
			t.Errorf("read: %v", err)
		}
		p.c.Wait()
		p.wantSent(t) // [MQTT-3.14.0-1]
	})
}

func TestPeerEnds(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		time.AfterFunc(time.Second, func() { _ = p.peer.Close() })
		if _, err := p.c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		_ = p.c.Close()
		p.c.Wait()
		p.end.want(t, ReasonPeer)
	})
}
