package external

import (
	"io"
	"net"
	"testing"
	"time"

	"tidegate/config"
)

// TestHeldIsOfOneServer: an identifier that one server has not released says nothing about a message of another server.
func TestHeldIsOfOneServer(t *testing.T) {
	server := func(payload byte) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() { // ends with ln
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			defer func() { _ = nc.Close() }()
			_ = ln.Close()
			_ = nc.SetDeadline(time.Now().Add(time.Minute))
			head := make([]byte, 2)
			if _, err := io.ReadFull(nc, head); err != nil {
				return
			}
			// CONNACK with a session, and a message of QoS 2 under the identifier 1.
			_, _ = nc.Write([]byte{0x20, 3, 1, 0, 0, 0x34, 13, 0, 7, 'p', 'l', 'a', 'n', 't', '/', 'a', 0, 1, 0, payload})
			for last := byte(0); ; { // until the PUBREC of identifier 1
				if _, err := io.ReadFull(nc, head[:1]); err != nil {
					return
				}
				if last == 0x50 && head[0] == 2 {
					return // gone before the PUBREL
				}
				last = head[0]
			}
		}()
		return "mqtt://" + ln.Addr().String()
	}
	p := start(t, listen(t), func(c *config.External, _ *Options) { c.Servers, c.QoS = []string{server('a'), server('b')}, 2 })
	p.disk.sync(100)
	wait(t, "the messages of both servers", func() bool { n, _ := p.disk.count(); return n == 2 })
}
