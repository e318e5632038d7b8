package gate

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseEndsAWaitingRead(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 4)
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1)) // keeps the socket open after Close
		begin := time.Now()
		time.AfterFunc(time.Second, func() {
			_ = p.c.Close()
			// The broker does so when it loses the race; it must not undo the end of the Read.
			if err := p.c.SetReadDeadline(time.Now().Add(time.Hour)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("set deadline after close: %v", err)
			}
		})
		if _, err := p.c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) || time.Since(begin) != time.Second {
			t.Errorf("read: %v after %v", err, time.Since(begin))
		}
		if p.m.closed.Load() {
			t.Error("socket closed before what is held was waited for")
		}
	})
}

func TestCloseFlushesWhatBecomesDurable(t *testing.T) {
	bubble(t, Options{LingerTimeout: 2 * time.Second}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 5)
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		p.write(t, publish(100))
		p.c.Hold(p.disk.at(2))
		p.write(t, puback(2))
		p.wantSent(t, connack(5), publish(100))
		p.c.Disconnect(0x8b, ReasonShutdown)
		time.Sleep(time.Second)
		p.wantSent(t)
		p.disk.commit(1)
		p.wantSent(t, puback(1))
		time.Sleep(900 * time.Millisecond)
		p.disk.commit(2)
		p.wantSent(t, puback(2), goodbye(0x8b))
		p.c.Wait()
		p.end.want(t, ReasonShutdown)
		if !errors.Is(p.peer.end(), io.EOF) {
			t.Errorf("peer: %v", p.peer.end())
		}
	})
}

func TestCloseNeverReleasesWhatIsNotDurable(t *testing.T) {
	bubble(t, Options{LingerTimeout: 2 * time.Second}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 5)
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		p.wantSent(t, connack(5))
		begin := time.Now()
		p.c.Disconnect(0x8b, ReasonShutdown)
		p.c.Wait()
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("closed after %v, want 2s", d)
		}
		p.wantSent(t, goodbye(0x8b))
		p.disk.commit(1) // too late
		p.wantSent(t)
	})
}

func TestCloseWithStuckPeer(t *testing.T) {
	bubble(t, Options{LingerTimeout: 2 * time.Second}, func(t *testing.T, p *pair) {
		p.write(t, publish(100))
		begin := time.Now()
		_ = p.c.Close()
		if d := time.Since(begin); d != 0 {
			t.Errorf("close took %v", d)
		}
		p.c.Wait()
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("socket closed after %v, want 2s", d)
		}
		p.end.want(t, ReasonClosed)
	})
}

func TestCloseManyTimes(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		for range 10 {
			go func() { _ = p.c.Close() }()
			go p.c.Kill("other")
			go p.c.Disconnect(0, "another")
		}
		p.c.Wait()
		synctest.Wait()
		if n := p.end.times.Load(); n != 1 {
			t.Errorf("OnClose called %d times", n)
		}
	})
}

// A DISCONNECT must reach a client that has sent more than we read: closing a socket with unread bytes resets the
// connection, and the reset overtakes what the client has not read yet.
func TestLastPacketArrivesDespiteUnreadBytes(t *testing.T) {
	sv, cl := tcpPair(t)
	var end ending
	c := Wrap(sv, Options{OnClose: end.note})
	if _, err := cl.Write(connectPacket(5, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	// Less than what the kernel takes, so that the client's Write returns.
	if _, err := cl.Write(bytes.Repeat(publish(200), 200)); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(connack(5))
	_, _ = c.Write(goodbye(0x97))
	_ = c.Close()
	time.Sleep(50 * time.Millisecond) // what a close would break has happened by then
	if _, err := cl.Write(publish(200)); err != nil {
		t.Errorf("client cannot write any more: %v", err)
	}
	got, err := io.ReadAll(cl)
	if want := append(connack(5), goodbye(0x97)...); !bytes.Equal(got, want) || err != nil {
		t.Errorf("client read %x, %v, want %x", got, err, want)
	}
	_ = cl.Close()
	c.Wait()
	end.want(t, ReasonClosed)
}

func TestPeerThatNeverClosesIsLeftAfterTheDrain(t *testing.T) {
	sv, cl := tcpPair(t)
	c := Wrap(sv, Options{DrainTimeout: 30 * time.Millisecond})
	_ = c.Close()
	c.Wait()
	if _, err := io.ReadAll(cl); err != nil {
		t.Errorf("client read: %v", err)
	}
}

func TestKillIsImmediate(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		p.write(t, publish(100))
		synctest.Wait()
		begin := time.Now()
		p.c.Kill("taken over")
		p.c.Wait()
		if d := time.Since(begin); d != 0 || !p.m.closed.Load() {
			t.Errorf("killed after %v, closed %v", d, p.m.closed.Load())
		}
		p.end.want(t, "taken over")
	})
}

func TestIdleConnectionsHaveNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	conns := make([]*Conn, 50)
	for i := range conns {
		sv, cl := tcpPair(t)
		conns[i] = Wrap(sv, Options{DrainTimeout: 10 * time.Millisecond})
		_, _ = conns[i].Write(pingresp())
		if _, err := io.ReadFull(cl, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "idle connections have no goroutines", func() bool { return runtime.NumGoroutine() <= before })
	for _, c := range conns {
		_ = c.Close()
	}
	for _, c := range conns {
		c.Wait()
	}
	eventually(t, "closed connections have no goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// Shutdown does not wait for peers that never close, not even those that were being closed already.
func TestShutdownDrainsBriefly(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(inner, ListenerOptions{Conn: Options{DrainTimeout: time.Minute}})
	for i := range 2 {
		cl, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cl.Close() })
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			_ = c.Close()
			if _, err := io.ReadAll(cl); err != nil { // the end of the stream: it drains
				t.Fatal(err)
			}
		}
	}
	begin := time.Now()
	if err := l.Shutdown(t.Context(), 0x8b); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d < shutdownDrain || d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}
