// Package ws carries MQTT over WebSocket (MQTT 5.0, 6) on the server's side: a net.Conn on top of another one, TCP or TLS. The
// stream of control packets travels in binary messages whose borders mean nothing [MQTT-6.0.0-2], so nothing above knows the
// difference.
//
// There is no HTTP server here: one request is read from a connection, bounded in size by this package and in time by the
// deadlines of whoever owns the connection, and answered by the upgrade or by an error. Frames are the business of
// gorilla/websocket. Start at Conn; upgrade.go has the request.
package ws

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// Options say what a client has to ask for.
type Options struct {
	// Path is the one that is served; /mqtt, the conventional one, stands for / as well.
	Path string
	// Origins are the web pages that may connect, as scheme://host[:port]; "*" is every page. None: pages of the host that is
	// asked. A request without an origin is no browser's and is always let through.
	Origins []string
	// MaxMessage bounds one message in bytes. Messages are read as a stream, so a large one costs no memory. 0 is no bound.
	MaxMessage int64
}

// closeWait bounds the sending of a close frame.
const closeWait = time.Second

// errText is the error for a message that MQTT does not know [MQTT-6.0.0-1].
var errText = errors.New("a text message over websocket, which mqtt does not know")

// errNotOpen is returned by Read and Write before Open.
var errNotOpen = errors.New("websocket is not open")

// Conn is MQTT over one WebSocket. One goroutine reads and one writes; deadlines are those of the connection below. Open comes
// first.
type Conn struct {
	inner   net.Conn
	o       *Options
	ws      *websocket.Conn // nil: not open; set before the first Read and Write
	opened  atomic.Bool
	in      *bufio.Reader // what the library reads from
	message io.Reader     // what is left of the message that is being read; nil: none

	// The answer to a ping is written beside the reader, which it must not hold up when the peer takes nothing; one at a time: it
	// answers a later ping as well (RFC 6455, 5.5.3).
	ponging atomic.Bool
	pongs   sync.WaitGroup
}

// New makes a Conn on top of c, which it owns from then on. It does nothing before Open.
func New(c net.Conn, o *Options) *Conn { return &Conn{inner: c, o: o} }

// Open reads the client's request and answers it. An error means that the client was told, as far as it can be, and that the
// connection is of no use.
func (c *Conn) Open() error {
	if t, ok := c.inner.(*tls.Conn); ok {
		if err := t.HandshakeContext(context.Background()); err != nil {
			return fmt.Errorf("tls handshake: %w", err)
		}
	}
	w, in, err := upgrade(c.inner, c.o)
	if err != nil {
		return err
	}
	if c.o.MaxMessage > 0 {
		w.SetReadLimit(c.o.MaxMessage)
	}
	w.SetPingHandler(func(text string) error {
		if c.ponging.CompareAndSwap(false, true) {
			c.pongs.Go(func() { // ends with the write, at the latest when the connection does
				_ = w.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) // a broken connection shows elsewhere
				c.ponging.Store(false)
			})
		}
		return nil
	})
	c.ws, c.in = w, in
	c.opened.Store(true)
	return nil
}

func (c *Conn) Read(b []byte) (int, error) {
	if c.ws == nil {
		return 0, errNotOpen
	}
	for {
		if c.message == nil {
			// A deadline that passes here is not the library's, which could read nothing more after it.
			if _, err := c.in.Peek(1); err != nil {
				return 0, err
			}
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, ending(err)
			}
			if kind != websocket.BinaryMessage {
				c.say(websocket.CloseUnsupportedData, "mqtt travels in binary messages")
				return 0, errText
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
			return n, ending(err)
		case n > 0 || len(b) == 0:
			return n, nil
		}
	}
}

// ending makes a close frame what the end of a stream is elsewhere, and a deadline that passed, of which the library leaves only
// the words, that again.
func ending(err error) error {
	var timed net.Error
	switch {
	case errors.As(err, new(*websocket.CloseError)):
		return io.EOF
	case errors.As(err, &timed) && timed.Timeout():
		return os.ErrDeadlineExceeded
	}
	return err
}

// Write sends p as one message.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.opened.Load() {
		return 0, errNotOpen
	}
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, ending(err)
	}
	return len(p), nil
}

// CloseWrite says goodbye: nothing follows.
func (c *Conn) CloseWrite() error {
	c.say(websocket.CloseNormalClosure, "")
	if t, ok := c.inner.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	return nil
}

// say sends a close frame, once; a second one is not sent by the library.
func (c *Conn) say(code int, text string) {
	if c.opened.Load() {
		_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(closeWait))
	}
}

// Close closes what is below and waits for what was written beside.
func (c *Conn) Close() error {
	err := c.inner.Close()
	c.pongs.Wait()
	return err
}

// NetConn returns the connection below.
func (c *Conn) NetConn() net.Conn { return c.inner }

// LocalAddr returns the local address of the connection below.
func (c *Conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets when Read gives up, and Open. A Read that gave up within a message cannot be repeated.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.inner.SetReadDeadline(t) }

// SetWriteDeadline sets when the next Writes give up.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.opened.Load() {
		return c.ws.SetWriteDeadline(t)
	}
	return c.inner.SetWriteDeadline(t)
}
