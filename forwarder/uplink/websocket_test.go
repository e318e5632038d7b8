package uplink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// webSocketListeners are the WebSocket addresses of brokers that have their own, by their TCP address.
var webSocketListeners sync.Map

// overWebSocket returns a ws:// address that leads to the same peer as an mqtt:// address: the broker's own listener, or a
// relay, so that every way in which the scripted peer misbehaves is met over WebSocket too.
func overWebSocket(t *testing.T, server string) string {
	t.Helper()
	addr, ok := strings.CutPrefix(server, "mqtt://")
	if !ok {
		return server
	}
	if url, ok := webSocketListeners.Load(addr); ok {
		return url.(string)
	}
	return "ws" + strings.TrimPrefix(newRelay(t, addr).URL, "http") + "/mqtt"
}

// relay is a WebSocket server that passes everything on to a TCP address, in messages whose borders have nothing to do with
// the packets ([MQTT-6.0.0-2]).
type relay struct {
	*httptest.Server
	target  string
	running sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	r := &relay{target: target, conns: map[net.Conn]struct{}{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(func() {
		r.mu.Lock()
		for c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.Close()
		r.running.Wait()
	})
	return r
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.running.Add(1)
	defer r.running.Done()
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10}
	out, err := net.Dial("tcp", r.target)
	if err != nil {
		http.Error(w, "the broker is away", http.StatusBadGateway)
		return
	}
	ws, err := up.Upgrade(w, req, nil)
	if err != nil {
		_ = out.Close()
		return
	}
	r.mu.Lock()
	r.conns[out], r.conns[ws.NetConn()] = struct{}{}, struct{}{}
	r.mu.Unlock()
	var ways sync.WaitGroup
	ways.Go(func() {
		in := newWebSocketConn(ws, ws.NetConn())
		_, _ = io.Copy(out, in)
		_ = out.Close()
	})
	ways.Go(func() {
		r.down(ws, out)
		_ = ws.Close()
	})
	ways.Wait()
	r.mu.Lock()
	delete(r.conns, out)
	delete(r.conns, ws.NetConn())
	r.mu.Unlock()
}

// down passes on what the broker sends: several packets in a message, one in several, an empty message in between.
func (r *relay) down(ws *websocket.Conn, from net.Conn) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		for rest := b[:n]; len(rest) > 0; {
			part := min(len(rest), 1+rand.IntN(len(rest)))
			if rand.IntN(8) == 0 && ws.WriteMessage(websocket.BinaryMessage, nil) != nil {
				return
			}
			if ws.WriteMessage(websocket.BinaryMessage, rest[:part]) != nil {
				return
			}
			rest = rest[part:]
		}
		if err != nil {
			if rand.IntN(2) == 0 { // some servers say that they close, some do not
				_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(time.Second))
			}
			return
		}
	}
}

// handshake is a server that answers the request for an upgrade as f does.
func handshakeServer(t *testing.T, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func TestWebSocketThatIsNone(t *testing.T) {
	upgrade := func(protocols ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			up := websocket.Upgrader{Subprotocols: protocols}
			if ws, err := up.Upgrade(w, r, nil); err == nil {
				_, _, _ = ws.ReadMessage()
				_ = ws.WriteMessage(websocket.TextMessage, []byte("hello"))
				_ = ws.Close()
			}
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"not found":      {http.NotFound, `the server answers "404 Not Found" to a request for /mqtt; check the path in servers`},
		"other protocol": {upgrade("chat"), "does not speak the subprotocol mqtt at /mqtt"},
		"no protocol":    {upgrade(), "does not speak the subprotocol mqtt at /mqtt"},
		"text":           {upgrade("mqtt"), "a text message over websocket"},
		"endless head": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 2*maxHead))
			w.WriteHeader(http.StatusSwitchingProtocols)
		}, "an answer of more than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			h := run(t, variants()[0], nil, nil, handshakeServer(t, c.answer))
			eventually(t, "refused", func() bool { return strings.Contains(h.Status().LastError, c.want) })
		})
	}
}

// TestWebSocketPathAndHost: what stands behind the port is asked for as it is written.
func TestWebSocketPathAndHost(t *testing.T) {
	asked := make(chan *http.Request, 100)
	addr := handshakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		http.Error(w, "no", http.StatusTeapot)
	})
	for path, want := range map[string]string{
		"": "/mqtt", "/": "/", "/a%2Fb/c": "/a%2Fb/c", "/x?a=1&b=%20": "/x?a=1&b=%20", "//mqtt": "//mqtt", "//h/p?q": "//h/p?q", "/a//b": "/a//b", "?a=1": "/mqtt?a=1", "/$iothub/websocket": "/$iothub/websocket",
	} {
		sv, err := parseServer(addr + path)
		if err != nil {
			t.Fatal(err)
		}
		s := settings{}
		if _, _, err := dial(within(t, 60*time.Second), &s, sv); err == nil {
			t.Fatal("connected to a teapot")
		}
		r := <-asked
		if r.RequestURI != want {
			t.Errorf("%q asked for %q, want %q", path, r.RequestURI, want)
		}
		if p := r.Header.Get("Sec-Websocket-Protocol"); p != "mqtt" {
			t.Errorf("asked for the subprotocol %q", p)
		}
	}
	for server, want := range map[string]string{
		"ws://h": "ws://h/mqtt", "wss://h": "wss://h/mqtt", "wss://h:8084": "wss://h:8084/mqtt", "ws://[::1]:80/x": "ws://[::1]/x",
		"wss://h:80/x?y=z": "wss://h:80/x?y=z", "ws://h//mqtt": "ws://h//mqtt", "wss://[fe80::1%25eth0]:444": "wss://[fe80::1]:444/mqtt",
	} {
		sv, err := parseServer(server)
		if err != nil {
			t.Fatal(err)
		}
		if u, err := webSocketURL(sv); err != nil || u.String() != want {
			t.Errorf("%s becomes %s (%v), want %s", server, u, err, want)
		}
	}
}

// TestWebSocketHandshakeHangs: a server that takes the connection and says nothing does not hold anything up.
func TestWebSocketHandshakeHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sv, err := parseServer("ws://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, _, err := dial(ctx, &settings{}, sv)
		ended <- err
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel(errors.New("enough"))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("ended with %v", err)
	}
}

// TestSecureWebSocket: TLS below WebSocket has the same settings as below MQTT.
func TestSecureWebSocket(t *testing.T) {
	a := newAuthority(t)
	a.leaf(t, "cloud", "localhost")
	a.leaf(t, "gateway")
	peer := cloud(t, testpeer.Options{})
	r := &relay{target: peer.Addr(), conns: map[net.Conn]struct{}{}}
	r.Server = httptest.NewUnstartedServer(r)
	names := make(chan string, 100)
	r.TLS = a.server(t, "cloud")
	r.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- h.ServerName + " " + strings.Join(h.SupportedProtos, ",")
		return nil, nil
	}
	r.Config.ErrorLog = nil
	r.StartTLS()
	t.Cleanup(func() {
		peer.DropAll()
		r.running.Wait()
		r.Close()
	})
	_, port, _ := net.SplitHostPort(r.Listener.Addr().String())
	h := run(t, variants()[0], func(c *config.Uplink) {
		c.CA, c.Cert, c.Key = a.path("ca.crt"), a.path("gateway.crt"), a.path("gateway.key")
	}, nil, "wss://localhost:"+port)
	l := newLedger(500)
	if err := l.drain(within(t, 60*time.Second), h.Client, func(i int) message.Message { return reading(i, 1) }); err != nil {
		t.Fatalf("%v\n%s", err, h.log)
	}
	l.once(t, success)
	arrivals(t, peer, 500)
	if got := <-names; got != "localhost http/1.1" {
		t.Errorf("the server was asked for %q", got)
	}
	unknown := run(t, variants()[0], func(c *config.Uplink) { c.CA = a.path("ca.crt") }, nil, "wss://localhost:"+port)
	eventually(t, "no certificate, no connection", func() bool { return unknown.Status().LastError != "" })
	if unknown.Status().Connected {
		t.Error("connected without a client certificate")
	}
	unknown.stop()
	h.stop()
}

// TestWebSocketMessages: a large write leaves as messages that servers take, and arrives whole.
func TestWebSocketMessages(t *testing.T) {
	sizes := make(chan int, 100)
	got := make(chan []byte, 1)
	addr := handshakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		var all []byte
		for len(all) < 100_000 {
			_, b, err := ws.ReadMessage()
			if err != nil {
				break
			}
			sizes <- len(b)
			all = append(all, b...)
		}
		got <- all
		_ = ws.WriteMessage(websocket.PingMessage, []byte("alive?"))
		_ = ws.WriteMessage(websocket.BinaryMessage, []byte("yes"))
		_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		_, _, _ = ws.ReadMessage() // a pong would be lost with a connection that is closed at once
	})
	sv, err := parseServer(addr)
	if err != nil {
		t.Fatal(err)
	}
	nc, tcp, err := dial(within(t, 60*time.Second), &settings{}, sv)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	if n, err := nc.Write(data); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if all := <-got; !bytes.Equal(all, data) {
		t.Errorf("%d bytes arrived, or others", len(all))
	}
	close(sizes)
	for n := range sizes {
		if n > webSocketMessage {
			t.Errorf("a message of %d bytes", n)
		}
	}
	answer := make([]byte, 100)
	if n, err := nc.Read(answer); string(answer[:n]) != "yes" || err != nil {
		t.Errorf("read %q, %v", answer[:n], err)
	}
	if _, err := nc.Read(answer); !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "closed the websocket (1000") {
		t.Errorf("after a close frame: %v", err)
	}
}

// TestWebSocketPingsOnASlowLine: a server that pings while nothing can be written, because the line is slow and every buffer
// is full, gets its pong when there is room. The connection is not given up over it, and reading goes on meanwhile.
func TestWebSocketPingsOnASlowLine(t *testing.T) {
	t.Parallel()
	const size = 16 << 20 // more than the buffers on the way
	pongs, got := make(chan string, 10), make(chan int, 1)
	addr := handshakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		ws.SetPongHandler(func(text string) error {
			select {
			case pongs <- text:
			default:
			}
			return nil
		})
		for until := time.Now().Add(2500 * time.Millisecond); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			_ = ws.WriteControl(websocket.PingMessage, []byte("alive?"), time.Now().Add(time.Second))
			_ = ws.WriteMessage(websocket.BinaryMessage, []byte("x"))
		}
		n := 0
		for n < size {
			_, b, err := ws.ReadMessage()
			if err != nil {
				break
			}
			n += len(b)
		}
		got <- n
		_, _, _ = ws.ReadMessage()
	})
	sv, err := parseServer(addr)
	if err != nil {
		t.Fatal(err)
	}
	nc, tcp, err := dial(within(t, 60*time.Second), &settings{}, sv)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan int, 1)
	go func() { // ends with the connection
		b, n := make([]byte, 100), 0
		for {
			k, err := nc.Read(b)
			if n += k; err != nil {
				read <- n
				return
			}
		}
	}()
	if n, err := nc.Write(make([]byte, size)); n != size || err != nil {
		t.Errorf("%d bytes written: %v", n, err)
	}
	if n := <-got; n != size {
		t.Errorf("%d bytes arrived", n)
	}
	select {
	case text := <-pongs:
		if text != "alive?" {
			t.Errorf("pong %q", text)
		}
	case <-time.After(60 * time.Second):
		t.Error("no pong")
	}
	_ = tcp.Close()
	if n := <-read; n < 10 {
		t.Errorf("only %d bytes were read meanwhile", n)
	}
}

// FuzzWebSocket: whatever a server sends after the handshake, reading ends with an error.
func FuzzWebSocket(f *testing.F) {
	f.Add([]byte("\x82\x04\x20\x02\x00\x00"))
	f.Add([]byte("\x02\x01a\x00\x01b\x80\x01c\x89\x02hi\x82\x00\x82\x01d"))
	f.Add([]byte("\x88\x02\x03\xe8"))
	f.Add([]byte("\x82\xff\x00\x00\x00\x00\x00\x00\x00\x05abc"))
	f.Add([]byte("\xc2\x01a"))
	f.Fuzz(func(t *testing.T, frames []byte) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer far.Close()
			req, err := http.ReadRequest(bufio.NewReader(far))
			if err != nil {
				return
			}
			sum := sha1.Sum([]byte(req.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			go func() { _, _ = io.Copy(io.Discard, far) }() // ends with far
			_, _ = io.WriteString(far, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\n"+
				"Sec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
			_, _ = far.Write(frames)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		nc, err := openWebSocket(ctx, near, near, server{addr: "h:80", path: "/mqtt"})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, nc)
		if n > int64(len(frames)) || ctx.Err() != nil {
			t.Fatalf("%d bytes out of %d, %v", n, len(frames), err)
		}
		_ = near.Close()
		<-done
	})
}
