package simple

import (
	"io"
	"net"
	"sync"
	"time"
)

// lingerTimeout bounds the wait for a broker that does not close after a DISCONNECT.
const lingerTimeout = time.Second

// lingering closes a connection in order: it ends the sending side and waits until the broker, which closes on DISCONNECT
// [MQTT-3.14.4-1], has done so. To close at once could reset the connection, and a broker then loses what it has not read yet: the last
// messages with QoS 0, which nobody acknowledges.
type lingering struct {
	net.Conn
	once sync.Once
	err  error
}

// Close waits for the broker's end of the stream, for a second at most. Over TLS the end of the sending side is written, and waits for a
// writer that is at work: where the broker reads nothing, neither gets anywhere, and both are given up after another second.
func (c *lingering) Close() error {
	c.once.Do(func() {
		if t, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
			_ = c.SetWriteDeadline(time.Now().Add(lingerTimeout))
			guard := time.AfterFunc(2*lingerTimeout, func() { _ = t.NetConn().Close() })
			defer guard.Stop()
		}
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			// A reader that is at work meanwhile may take a part of what comes, and sees the end, too.
			_ = c.SetReadDeadline(time.Now().Add(lingerTimeout))
			_, _ = io.Copy(io.Discard, c.Conn)
		}
		c.err = c.Conn.Close()
	})
	return c.err
}
