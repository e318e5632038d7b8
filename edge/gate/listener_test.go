package gate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// doorway is a net.Listener fed by the test.
type doorway struct {
	in     chan any // net.Conn or error
	closed chan struct{}
	once   sync.Once
}

func newDoorway() *doorway { return &doorway{in: make(chan any), closed: make(chan struct{})} }

func (d *doorway) Accept() (net.Conn, error) {
	select {
	case v := <-d.in:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *doorway) Close() error   { d.once.Do(func() { close(d.closed) }); return nil }
func (d *doorway) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1883} }

// from is a connection that says it comes from an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// dial lets a client with that address connect and returns its end.
func (d *doorway) dial(addr string) net.Conn {
	a, b := net.Pipe()
	d.in <- from{a, &net.TCPAddr{IP: net.ParseIP(addr), Port: 4711}}
	return b
}

// serve accepts until the listener is closed and gives each connection to f on a goroutine of its own.
func serve(l *Listener, f func(*Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go f(c.(*Conn))
	}
}

// readAll reads a connection to its end and closes it, as the broker does.
func readAll(c *Conn) {
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
}

func TestAcceptGoesOnAfterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		var failed atomic.Int32
		d := newDoorway()
		l := NewListener(d, ListenerOptions{
			Logger:        slog.New(slog.NewTextHandler(&logs, nil)),
			OnAcceptError: func(error) { failed.Add(1) },
		})
		go serve(l, readAll)
		begin := time.Now()
		for range 20 {
			d.in <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
		}
		cl := d.dial("192.0.2.1")
		synctest.Wait()
		// 5, 10, ... 640 ms, then twelve times a second
		if d := time.Since(begin); d < 12*time.Second || d > 14*time.Second {
			t.Errorf("20 failures took %v", d)
		}
		if failed.Load() != 20 || l.Open() != 1 {
			t.Errorf("%d failures told, %d open, want 20, 1", failed.Load(), l.Open())
		}
		if n := strings.Count(logs.String(), "\n"); n != 2 {
			t.Errorf("want one line when it begins and one when it ends:\n%s", &logs)
		}
		_ = cl.Close()
		_ = l.Close()
		l.Wait()
	})
}

func TestCloseEndsAcceptThatPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway()
		l := NewListener(d, ListenerOptions{})
		time.AfterFunc(time.Hour, func() { d.in <- errors.New("no more files") })
		time.AfterFunc(time.Hour+time.Millisecond, func() { _ = l.Close() })
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var refused []Reason
		d := newDoorway()
		l := NewListener(d, ListenerOptions{MaxConns: 3, MaxPerAddr: 2, OnRefuse: func(_ net.Addr, why Reason) {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, why)
		}})
		go serve(l, readAll)
		wantRefused := func(n int, why Reason) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(refused) != n || n > 0 && refused[n-1] != why {
				t.Fatalf("refused %v, want %d, last %q", refused, n, why)
			}
		}
		a, _ := d.dial("192.0.2.1"), d.dial("::ffff:192.0.2.1")
		wantRefused(0, "")
		third := d.dial("192.0.2.1")
		wantRefused(1, ReasonTooManyPerAddr)
		if _, err := third.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("refused connection: %v", err)
		}
		other := d.dial("192.0.2.2")
		wantRefused(1, ReasonTooManyPerAddr)
		d.dial("192.0.2.3")
		wantRefused(2, ReasonTooMany)
		_, _ = a.Close(), other.Close() // room again
		synctest.Wait()
		d.dial("192.0.2.1")
		wantRefused(2, ReasonTooMany)
		_ = l.Close()
		for _, c := range l.Conns() {
			c.Kill("end of test")
		}
		l.Wait()
		if n := len(l.limits.addrs.entries); n != 0 {
			t.Errorf("%d addresses remembered", n)
		}
	})
}

func TestRateSlowsOneAddressDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway()
		var mu sync.Mutex
		begin := time.Now()
		read := map[string][]time.Duration{}
		l := NewListener(d, ListenerOptions{RatePerAddr: 2, Burst: 3})
		go serve(l, func(c *Conn) {
			if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Errorf("read: %v", err)
			}
			mu.Lock()
			ip := c.RemoteAddr().(*net.TCPAddr).IP.String()
			read[ip] = append(read[ip], time.Since(begin))
			mu.Unlock()
			readAll(c)
		})
		for range 6 {
			cl := d.dial("192.0.2.1")
			go func() { _, _ = cl.Write(connectPacket(4, 0)); _ = cl.Close() }()
		}
		cl := d.dial("192.0.2.2")
		go func() { _, _ = cl.Write(connectPacket(4, 0)); _ = cl.Close() }()
		synctest.Wait() // all are let in
		_ = l.Close()
		l.Wait()
		ms := time.Millisecond
		want := []time.Duration{0, 0, 0, 500 * ms, 1000 * ms, 1500 * ms}
		if got := read["192.0.2.1"]; len(got) != len(want) {
			t.Errorf("read at %v, want %v", got, want)
		} else {
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("read at %v, want %v", got, want)
					break
				}
			}
		}
		if got := read["192.0.2.2"]; len(got) != 1 || got[0] != 0 {
			t.Errorf("other address read at %v, want at once", got)
		}
	})
}

func TestAddrTable(t *testing.T) {
	now := time.Unix(1000, 0)
	table := newAddrTable(0, 1, 1)
	key := keyOf(&net.TCPAddr{IP: net.ParseIP("192.0.2.1")})
	var last time.Duration
	for range 100 {
		last = table.enter(key, now)
	}
	if last != maxDelay {
		t.Errorf("hundredth connection waits %v, want %v", last, maxDelay)
	}
	if d := table.enter(addrKey{}, now); d != 0 {
		t.Errorf("unknown address waits %v", d)
	}
	for i := range 5000 {
		k := keyOf(&net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i))})
		table.enter(k, now)
		table.leave(k, now)
		now = now.Add(10 * time.Millisecond)
	}
	if n := len(table.entries); n > 2*sweepAbove {
		t.Errorf("%d addresses remembered", n)
	}
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway()
		var ends atomic.Int32
		l := NewListener(d, ListenerOptions{Conn: Options{OnClose: func(*Conn, Reason, error) { ends.Add(1) }}})
		accepted := make(chan *Conn, 1)
		go serve(l, func(c *Conn) { accepted <- c; readAll(c) })
		cl := &peer{Conn: d.dial("192.0.2.1")}
		c := <-accepted
		go cl.collect()
		_, _ = cl.Write(connectPacket(5, 0))
		synctest.Wait()
		_, _ = c.Write(connack(5))
		synctest.Wait()
		if err := l.Shutdown(t.Context(), 0x8b); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		synctest.Wait()
		if got, want := cl.take(), append(connack(5), goodbye(0x8b)...); !bytes.Equal(got, want) {
			t.Errorf("client got %x, want %x", got, want)
		}
		if ends.Load() != 1 || l.Open() != 0 {
			t.Errorf("%d ends told, %d open", ends.Load(), l.Open())
		}
	})
}

func TestShutdownKillsWhatIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway()
		l := NewListener(d, ListenerOptions{Conn: Options{LingerTimeout: time.Hour, WriteTimeout: time.Hour}})
		accepted := make(chan *Conn, 1)
		go serve(l, func(c *Conn) { accepted <- c; readAll(c) })
		d.dial("192.0.2.1")
		c := <-accepted
		_, _ = c.Write(publish(100)) // never read
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		err := l.Shutdown(ctx, 0x8b)
		if d := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || d != time.Second {
			t.Errorf("shutdown: %v after %v", err, d)
		}
	})
}

func TestManyConnections(t *testing.T) {
	before := runtime.NumGoroutine()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var d disk
	var pos atomic.Uint64
	l := NewListener(inner, ListenerOptions{})
	go serve(l, func(c *Conn) {
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len(connectPacket(4, 0)))); err != nil {
			return
		}
		_, _ = c.Write(connack(4))
		for i := range uint16(100) {
			if _, err := io.ReadFull(c, make([]byte, len(publish(50)))); err != nil {
				return
			}
			c.Hold(d.at(pos.Add(1)))
			_, _ = c.Write(puback(i))
		}
	})
	stop := make(chan struct{})
	var committer sync.WaitGroup
	committer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				d.commit(pos.Load())
			}
		}
	})
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			cl, err := net.Dial("tcp", inner.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer cl.Close()
			_, _ = cl.Write(append(connectPacket(4, 0), bytes.Repeat(publish(50), 100)...))
			want := connack(4)
			for i := range uint16(100) {
				want = append(want, puback(i)...)
			}
			if got, err := io.ReadAll(cl); err != nil || !bytes.Equal(got, want) {
				t.Errorf("client got %d bytes, %v, want %d", len(got), err, len(want))
			}
		})
	}
	clients.Wait()
	_ = l.Close()
	l.Wait()
	close(stop)
	committer.Wait()
	eventually(t, "no goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
}
