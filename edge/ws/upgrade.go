package ws

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	// maxRequest bounds the request of a client in bytes, headers included.
	maxRequest = 8 << 10
	// Buffers of one connection. The library takes over the first, since it is told no size of its own; writes borrow the second.
	readBuffer  = 2 << 10
	writeBuffer = 16 << 10
	// subprotocol is what the client has to ask for [MQTT-6.0.0-3].
	subprotocol = "mqtt"
)

// writeBuffers are lent for one message at a time.
var writeBuffers sync.Pool

// errRequestTooLong is why reading a request ended.
var errRequestTooLong = fmt.Errorf("a request of more than %d bytes", maxRequest)

// upgrade reads one request from c and answers it. The reader that it returns is the one that the library reads from.
func upgrade(c net.Conn, o *Options) (*websocket.Conn, *bufio.Reader, error) {
	head := &bounded{Reader: c, left: maxRequest}
	in := bufio.NewReaderSize(head, readBuffer)
	r, err := http.ReadRequest(in)
	switch {
	case err != nil && errors.Is(head.err, errRequestTooLong):
		return nil, nil, refuse(c, http.StatusRequestHeaderFieldsTooLarge, head.err)
	case err != nil && head.err != nil: // what came before the end is no request, which err would be about
		return nil, nil, fmt.Errorf("read the request: %w", head.err)
	case err != nil:
		return nil, nil, refuse(c, http.StatusBadRequest, err)
	}
	if status, err := o.look(r); err != nil {
		return nil, nil, refuse(c, status, err)
	}
	status, failed := 0, error(nil)
	u := websocket.Upgrader{
		WriteBufferSize: writeBuffer, WriteBufferPool: &writeBuffers,
		Subprotocols: []string{subprotocol}, CheckOrigin: func(*http.Request) bool { return true }, // look has done it
		Error: func(_ http.ResponseWriter, _ *http.Request, code int, reason error) { status, failed = code, reason },
	}
	w, err := u.Upgrade(&hijack{undated{c}, in}, r, nil)
	if failed != nil {
		return nil, nil, refuse(c, status, failed)
	}
	return w, in, err
}

// look reports why the request is not answered by an upgrade, with the status to say so.
func (o *Options) look(r *http.Request) (int, error) {
	switch {
	case r.URL.Path != o.Path && (o.Path != "/mqtt" || r.URL.Path != "/"):
		return http.StatusNotFound, fmt.Errorf("nothing is served at %q; mqtt is at %s", r.URL.Path, o.Path)
	case r.Method != http.MethodGet:
		return http.StatusMethodNotAllowed, fmt.Errorf("the request is %s, websocket begins with GET", r.Method)
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		return http.StatusBadRequest, errors.New("a request with a body")
	case !websocket.IsWebSocketUpgrade(r):
		return http.StatusUpgradeRequired, errors.New("this address speaks mqtt over websocket only")
	case !slices.Contains(websocket.Subprotocols(r), subprotocol):
		return http.StatusBadRequest, errors.New("the client does not ask for the subprotocol mqtt")
	case !o.admits(r.Header.Get("Origin"), r.Host):
		return http.StatusForbidden, fmt.Errorf("pages of %q may not connect here; list it in origins", r.Header.Get("Origin"))
	}
	return 0, nil
}

// admits reports whether a page of origin may connect to host.
func (o *Options) admits(origin, host string) bool {
	if origin == "" {
		return true
	}
	if len(o.Origins) == 0 {
		u, err := url.Parse(origin)
		return err == nil && u.Host != "" && strings.EqualFold(u.Host, host)
	}
	return slices.ContainsFunc(o.Origins, func(allowed string) bool {
		return allowed == "*" || strings.EqualFold(strings.TrimSuffix(allowed, "/"), origin)
	})
}

// refuse answers with an error, and returns it.
func refuse(c net.Conn, status int, why error) error {
	text := why.Error() + "\n"
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, http.StatusText(status), len(text), text)
	return fmt.Errorf("websocket: %w", why)
}

// bounded reads at most left bytes, and remembers why it ended.
type bounded struct {
	io.Reader
	left int
	err  error
}

func (b *bounded) Read(p []byte) (n int, err error) {
	if b.left == 0 {
		err = errRequestTooLong
	} else {
		n, err = b.Reader.Read(p[:min(len(p), b.left)])
	}
	b.left -= n
	b.err = err
	return n, err
}

// undated is a connection whose deadlines the library leaves alone, but for those of its own writes: the owner's time for
// CONNECT goes on running.
type undated struct{ net.Conn }

func (undated) SetDeadline(time.Time) error     { return nil }
func (undated) SetReadDeadline(time.Time) error { return nil }

// hijack hands a connection to the library, which takes it out of an HTTP server elsewhere.
type hijack struct {
	c  net.Conn
	in *bufio.Reader
}

func (h *hijack) Header() http.Header         { return http.Header{} }
func (h *hijack) Write(p []byte) (int, error) { return len(p), nil }
func (h *hijack) WriteHeader(int)             {}

func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.c, bufio.NewReadWriter(h.in, bufio.NewWriterSize(h.c, 16)), nil
}
