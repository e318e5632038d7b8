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

// Close waits for the broker's end of the stream, for a second at most.
func (c *lingering) Close() error {
	c.once.Do(func() {
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			// A reader that is at work meanwhile may take a part of what comes, and sees the end, too.
			_ = c.SetReadDeadline(time.Now().Add(lingerTimeout))
			_, _ = io.Copy(io.Discard, c.Conn)
		}
		c.err = c.Conn.Close()
	})
	return c.err
}
