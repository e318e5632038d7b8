package uplink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// MQTT over WebSocket (MQTT 5.0, 6): the stream of control packets travels in binary messages, whose borders mean nothing. So
// a connection is made into a net.Conn, and nothing above it knows the difference.

// webSocketMessage is the largest message that is written: one frame each, small enough for servers that bound messages (64
// KiB is a frequent default) and large enough for hundreds of packets.
const webSocketMessage = 32 << 10

// webSocketConn is a WebSocket as a net.Conn. One goroutine reads and one writes; deadlines are those of the TCP connection.
type webSocketConn struct {
	ws      *websocket.Conn
	tcp     net.Conn
	message io.Reader // what is left of the message that is being read; nil: none

	// The answer to a ping must not hold up the reader, which has acknowledgements to read, nor have a deadline, which would
	// break the connection on a line that is only slow. So it is written beside both; one at a time, a later ping in the
	// meantime is answered by it too (RFC 6455, 5.5.3).
	ponging atomic.Bool
	pongs   sync.WaitGroup

	end    sync.Once
	over   chan struct{} // closed when nothing can be read any more
	reason error         // why; it is there when over is closed
}

func newWebSocketConn(ws *websocket.Conn, tcp net.Conn) *webSocketConn {
	c := &webSocketConn{ws: ws, tcp: tcp, over: make(chan struct{})}
	ws.SetPingHandler(func(text string) error {
		if c.ponging.CompareAndSwap(false, true) {
			c.pongs.Go(func() { // ends with the write, at the latest when the connection does
				_ = ws.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) // a broken connection shows elsewhere
				c.ponging.Store(false)
			})
		}
		return nil
	})
	return c
}

// broken ends the connection, which nothing can be read of any more, and waits for what was written beside.
func (c *webSocketConn) broken(err error) error {
	c.end.Do(func() {
		c.reason = webSocketEnd(err)
		close(c.over)
	})
	_ = c.tcp.Close()
	c.pongs.Wait()
	return c.reason
}

// openWebSocket asks the server to speak WebSocket on nc. ctx bounds it.
func openWebSocket(ctx context.Context, nc, tcp net.Conn, sv server) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer stop()
	head := newHeadConn(nc)
	given := func(context.Context, string, string) (net.Conn, error) { return head, nil }
	dialer := websocket.Dialer{
		NetDialContext: given, NetDialTLSContext: given, Subprotocols: []string{"mqtt"},
		ReadBufferSize: 4 << 10, WriteBufferSize: webSocketMessage,
	}
	u, err := webSocketURL(sv)
	if err != nil {
		return nil, ended(endNetwork, "websocket with %s: the path cannot be read", sv.addr) // the error repeats the query
	}
	ws, resp, err := dialer.DialContext(ctx, u.String(), nil)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ended(endNetwork, "websocket with %s: %w", sv.addr, context.Cause(ctx))
	case errors.Is(err, websocket.ErrBadHandshake) && resp != nil:
		return nil, httpEnd(&httpRefusal{server: sv.addr, path: u.Path, code: resp.StatusCode, status: resp.Status})
	case err != nil:
		return nil, ended(endNetwork, "websocket with %s: %w", sv.addr, told{err})
	case ws.Subprotocol() != "mqtt": // [MQTT-6.0.0-4]
		return nil, ended(endProtocol, "websocket with %s: the server does not speak the subprotocol mqtt at %s; check the path in servers",
			sv.addr, u.Path)
	case resp.Header.Get("Sec-WebSocket-Extensions") != "": // RFC 6455, 4.1: none was asked for
		return nil, ended(endProtocol, "websocket with %s: the server uses an extension that was not asked for (%s)",
			sv.addr, said(resp.Header.Get("Sec-WebSocket-Extensions")))
	}
	head.opened()
	return newWebSocketConn(ws, tcp), nil
}

// webSocketURL returns what is asked for, without the port where it is the usual one: so browsers write it, and some servers
// compare.
func webSocketURL(sv server) (*url.URL, error) {
	u, err := url.ParseRequestURI(sv.path) // which may begin with two slashes
	if err != nil {
		return nil, err
	}
	usual := "80"
	if u.Scheme = "ws"; sv.secure {
		u.Scheme, usual = "wss", "443"
	}
	host, port, err := net.SplitHostPort(sv.addr)
	if err != nil {
		return nil, err
	}
	u.Host = net.JoinHostPort(cmp.Or(sv.host, host), port)
	if port == usual {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	return u, nil
}

// httpRefusal is an answer to the request for WebSocket that is none.
type httpRefusal struct {
	server, path string
	code         int
	status       string // as the server wrote it
}

func (r *httpRefusal) Error() string {
	advice := "check the path in servers"
	switch {
	case r.code == http.StatusUnauthorized || r.code == http.StatusForbidden:
		advice = "it does not let this gateway in: check what it knows it by, such as the query of the address, or cert and key"
	case r.code == http.StatusTooManyRequests:
		advice = "it wants fewer connections"
	case r.code >= 500:
		advice = "the broker behind it is not there"
	}
	return fmt.Sprintf("websocket with %s: the server answers %s to a request for %s; %s", r.server, said(r.status), r.path, advice)
}

// lasting reports whether the same request is likely to be refused again.
func (r *httpRefusal) lasting() bool {
	return r.code == http.StatusUnauthorized || r.code == http.StatusForbidden || r.code == http.StatusTooManyRequests
}

// httpEnd is the end of a connection that was refused in HTTP.
func httpEnd(r *httpRefusal) error {
	if r.code == http.StatusUnauthorized || r.code == http.StatusForbidden {
		return &endError{label: endRefused, err: r}
	}
	return &endError{label: endNetwork, err: r}
}

func (c *webSocketConn) Read(b []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, c.broken(err)
			}
			if kind != websocket.BinaryMessage { // [MQTT-6.0.0-1]
				return 0, c.broken(ended(endProtocol, "a text message over websocket, which MQTT does not know"))
			}
			c.message = r
		}
		n, err := c.message.Read(b)
		switch {
		case errors.Is(err, io.EOF): // of the message
			c.message = nil
			if n > 0 {
				return n, nil
			}
		case err != nil:
			return n, c.broken(err)
		case n > 0 || len(b) == 0:
			return n, nil
		}
	}
}

// webSocketEnd makes a close frame what the end of a stream is elsewhere.
func webSocketEnd(err error) error {
	var c *websocket.CloseError
	switch {
	case !errors.As(err, &c):
		return err
	case c.Code == websocket.CloseAbnormalClosure: // the library's word for an end of the stream without a close frame
		return io.EOF
	}
	text := ""
	if c.Text != "" {
		text = " " + said(c.Text)
	}
	return fmt.Errorf("the server closed the websocket (%d%s): %w", c.Code, text, io.EOF)
}

func (c *webSocketConn) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		n := min(len(b), webSocketMessage)
		err := c.ws.WriteMessage(websocket.BinaryMessage, b[:n])
		if err != nil {
			return written, c.whyNot(err)
		}
		written += n
		b = b[n:]
	}
	return written, nil
}

// whyNot is why a write failed with err: over what the reader met, if it ended the connection.
func (c *webSocketConn) whyNot(err error) error {
	if errors.Is(err, websocket.ErrCloseSent) { // by the reader, in answer to what it read
		<-c.over
	}
	select {
	case <-c.over:
		return c.reason
	default:
		return err
	}
}

func (c *webSocketConn) Close() error { return c.ws.Close() }

func (c *webSocketConn) LocalAddr() net.Addr { return c.ws.LocalAddr() }

func (c *webSocketConn) RemoteAddr() net.Addr { return c.ws.RemoteAddr() }

func (c *webSocketConn) SetDeadline(t time.Time) error { return c.ws.NetConn().SetDeadline(t) }

func (c *webSocketConn) SetReadDeadline(t time.Time) error { return c.ws.NetConn().SetReadDeadline(t) }

func (c *webSocketConn) SetWriteDeadline(t time.Time) error {
	return c.ws.NetConn().SetWriteDeadline(t)
}
