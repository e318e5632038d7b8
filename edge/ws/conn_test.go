package ws

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// serve opens one connection on a free port and hands it to f, or what Open says.
func serve(t *testing.T, o Options, f func(*Conn, error)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the connection
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		c := New(raw, &o)
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		f(c, c.Open())
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func dial(addr, path string, change func(*websocket.Dialer, http.Header)) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: []string{"mqttv3.1", "mqtt"}}
	h := http.Header{}
	if change != nil {
		change(&d, h)
	}
	return d.Dial("ws://"+addr+path, h)
}

// TestUpgrade: who is let in, and what others are told. The subprotocol is mqtt: [MQTT-6.0.0-3] [MQTT-6.0.0-4]; [MQTT-6.0.0-3]
// [MQTT-6.0.0-4] of 3.1.1.
func TestUpgrade(t *testing.T) {
	origin := func(o string) func(*websocket.Dialer, http.Header) {
		return func(_ *websocket.Dialer, h http.Header) { h.Set("Origin", o) }
	}
	for _, c := range []struct {
		name    string
		path    string
		allowed []string
		change  func(*websocket.Dialer, http.Header)
		status  int
	}{
		{"the path", "/mqtt", nil, nil, 101},
		{"no path", "/", nil, nil, 101},
		{"another path", "/other", nil, nil, 404},
		{"without the subprotocol [MQTT-6.0.0-3]", "/mqtt", nil, func(d *websocket.Dialer, _ http.Header) { d.Subprotocols = nil }, 400},
		{"another subprotocol", "/mqtt", nil, func(d *websocket.Dialer, _ http.Header) { d.Subprotocols = []string{"amqp"} }, 400},
		{"a page of another host", "/mqtt", nil, origin("https://evil.example.com"), 403},
		{"a page of nowhere", "/mqtt", nil, origin("null"), 403},
		{"a page of this host", "/mqtt", nil, func(_ *websocket.Dialer, h http.Header) {
			h.Set("Host", "hmi.example.com:8083")
			h.Set("Origin", "https://HMI.example.com:8083")
		}, 101},
		{"a page that is listed", "/mqtt", []string{"https://a.example.com", "https://hmi.example.com/"}, origin("https://hmi.example.com"), 101},
		{"a page that is not listed", "/mqtt", []string{"https://a.example.com"}, origin("http://a.example.com"), 403},
		{"every page", "/mqtt", []string{"*"}, origin("https://x"), 101},
		{"too much", "/mqtt", nil, func(_ *websocket.Dialer, h http.Header) { h.Set("X", strings.Repeat("x", maxRequest)) }, 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := serve(t, Options{Path: "/mqtt", Origins: c.allowed}, func(conn *Conn, err error) {
				if (err == nil) != (c.status == 101) {
					t.Errorf("open: %v", err)
				}
				_, _ = io.Copy(io.Discard, conn)
			})
			ws, r, err := dial(addr, c.path, c.change)
			if err == nil {
				defer ws.Close()
			}
			if r == nil || r.StatusCode != c.status {
				t.Fatalf("got %v, %v, want %d", r, err, c.status)
			}
			if c.status == 101 && ws.Subprotocol() != "mqtt" { // [MQTT-6.0.0-4]
				t.Errorf("subprotocol %q", ws.Subprotocol())
			}
		})
	}
}

// TestNotWebSocket: bytes that are no upgrade get an answer where there is one, and never a connection.
func TestNotWebSocket(t *testing.T) {
	for request, want := range map[string]string{
		"GET /mqtt HTTP/1.1\r\nHost: h\r\n\r\n":                       "HTTP/1.1 426 ",
		"POST /mqtt HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n": "HTTP/1.1 405 ",
		"GET /mqtt HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx": "HTTP/1.1 400 ",
		"\x10\x0c\x00\x04MQTT\r\n\r\n":                                "HTTP/1.1 400 ",
		"GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: mqtt\r\n" +
			"Sec-WebSocket-Version: 8\r\n\r\n": "HTTP/1.1 400 ",
		"GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: mqtt\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n": "HTTP/1.1 400 ",
	} {
		addr := serve(t, Options{Path: "/mqtt"}, func(_ *Conn, err error) {
			if err == nil {
				t.Errorf("%q opened", request)
			}
		})
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(request))
		answer, _ := io.ReadAll(c)
		_ = c.Close()
		if !strings.HasPrefix(string(answer), want) {
			t.Errorf("%q: %q, want %q", request, answer, want)
		}
	}
}

// TestSlowRequest: the owner's deadline ends a request that comes byte by byte.
func TestSlowRequest(t *testing.T) {
	result := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := New(raw, &Options{Path: "/mqtt"})
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	go func() { result <- c.Open() }()
	for range 200 {
		if _, err := client.Write([]byte("G")); err != nil {
			break
		}
		select {
		case err := <-result:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("open: %v", err)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
}

// TestStream: the stream is what was sent, whatever the borders of messages and frames [MQTT-6.0.0-2]; [MQTT-6.0.0-2] of 3.1.1.
// Pings are answered.
func TestStream(t *testing.T) {
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(i * 7)
	}
	addr := serve(t, Options{Path: "/mqtt"}, func(c *Conn, err error) {
		if err != nil {
			t.Error(err)
			return
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read: %v", err)
		}
		for i := 0; i < len(got); i += 100_000 { // as the gate does, pieces of any size
			if _, err := c.Write(got[i:min(i+100_000, len(got))]); err != nil {
				t.Errorf("write: %v", err)
			}
		}
		_ = c.CloseWrite()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	})
	ws, _, err := dial(addr, "/mqtt", func(d *websocket.Dialer, _ http.Header) { d.WriteBufferSize = 128 })
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	pongs := make(chan string, 1)
	ws.SetPongHandler(func(text string) error { pongs <- text; return nil })
	rest := want
	for i := 0; len(rest) > 0; i++ {
		n := min([]int{1, 2, 127, 5000, 70_000}[i%5], len(rest))
		w, err := ws.NextWriter(websocket.BinaryMessage) // in frames of 128 bytes
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		if i == 3 { // between the frames of a message
			if err := ws.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	var got []byte
	for len(got) < len(want) {
		kind, p, err := ws.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage {
			t.Fatalf("read %d: %v", kind, err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, want) {
		t.Error("another stream came back")
	}
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("at the end: %v", err)
	}
	if text := <-pongs; text != "hello" {
		t.Errorf("pong %q", text)
	}
}

// TestBadFrames: what the connection ends over; [MQTT-6.0.0-1] of 3.1.1.
func TestBadFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(*websocket.Conn) error
		code int
	}{
		{"text [MQTT-6.0.0-1]", func(w *websocket.Conn) error { return w.WriteMessage(websocket.TextMessage, []byte("x")) }, websocket.CloseUnsupportedData},
		{"a message without end", func(w *websocket.Conn) error {
			return w.WriteMessage(websocket.BinaryMessage, make([]byte, 5000))
		}, websocket.CloseMessageTooBig},
		{"a frame that is not masked", func(w *websocket.Conn) error {
			_, err := w.NetConn().Write([]byte{0x82, 1, 'x'})
			return err
		}, websocket.CloseProtocolError},
		{"a frame of 2^63 bytes", func(w *websocket.Conn) error {
			_, err := w.NetConn().Write([]byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
			return err
		}, 0},
		{"a reserved opcode", func(w *websocket.Conn) error {
			_, err := w.NetConn().Write([]byte{0x8b, 0x80, 1, 2, 3, 4})
			return err
		}, websocket.CloseProtocolError},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := serve(t, Options{Path: "/mqtt", MaxMessage: 4096}, func(conn *Conn, err error) {
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, conn); err == nil {
					t.Error("no error")
				}
			})
			w, _, err := dial(addr, "/mqtt", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if err := c.send(w); err != nil {
				t.Fatal(err)
			}
			_, _, err = w.ReadMessage()
			if err == nil || c.code != 0 && !websocket.IsCloseError(err, c.code) {
				t.Errorf("got %v, want %d", err, c.code)
			}
		})
	}
}

// TestPingFlood: pings of a peer that takes no answers cost one goroutine, and the stream goes on.
func TestPingFlood(t *testing.T) {
	end := make(chan struct{})
	addr := serve(t, Options{Path: "/mqtt"}, func(c *Conn, err error) {
		if err != nil {
			t.Error(err)
			return
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "still" {
			t.Errorf("read %q, %v", got, err)
		}
		close(end)
	})
	w, _, err := dial(addr, "/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 20_000 {
		if err := w.WriteControl(websocket.PingMessage, make([]byte, 125), time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteMessage(websocket.BinaryMessage, []byte("still")); err != nil {
		t.Fatal(err)
	}
	<-end
}

// TestDeadlines: one that passes is an error that says so, in either direction.
func TestDeadlines(t *testing.T) {
	end, gaveUp := make(chan struct{}), make(chan struct{})
	addr := serve(t, Options{Path: "/mqtt"}, func(c *Conn, err error) {
		defer close(end)
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		close(gaveUp)
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Errorf("read between messages once more: %v", err)
		}
		for err = nil; err == nil; { // until the peer's kernel takes no more
			_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			_, err = c.Write(make([]byte, 16<<10))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
	})
	w, _, err := dial(addr, "/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	<-gaveUp
	if err := w.WriteMessage(websocket.BinaryMessage, []byte("x")); err != nil {
		t.Fatal(err)
	}
	<-end
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: mqtt\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{0x10, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &script{in: bytes.NewReader(data)}
		conn := New(c, &Options{Path: "/mqtt", MaxMessage: 1000})
		if err := conn.Open(); err != nil {
			return
		}
		if !bytes.Contains(c.out.Bytes(), []byte(" 101 ")) {
			t.Errorf("opened with %q", c.out.Bytes())
		}
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	})
}

// script is a peer that says what it has to say and takes everything.
type script struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func BenchmarkWrite(b *testing.B) {
	c := &script{in: bytes.NewReader([]byte("GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: mqtt\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))}
	conn := New(c, &Options{Path: "/mqtt"})
	if err := conn.Open(); err != nil {
		b.Fatal(err)
	}
	p := fmt.Appendf(nil, "%0256d", 1)
	b.ReportAllocs()
	for b.Loop() {
		c.out.Reset()
		if _, err := conn.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
