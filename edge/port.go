package edge

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// port is a socket that listens. It can be handed on from one listener to the next without being closed in between, so that
// nobody else gets it and what waits in it to be accepted is accepted by the next one.
type port struct {
	*net.TCPListener
	address string // as configured, HOST:PORT
	// kept: Close only ends Accept, because the socket is somebody else's now.
	kept atomic.Bool
}

// openPort listens on address. 0.0.0.0 is every address of IPv4 and no other, which net.Listen would add; a host that is empty or :: is
// every address of both.
func openPort(address string) (*port, error) {
	network := "tcp"
	if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().Is4() {
		network = "tcp4"
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("listen on %s: not TCP", address)
	}
	return &port{TCPListener: tcp, address: address}, nil
}

// handOn returns the same socket for the next listener. It accepts once the present one has ended and resume was called.
func (p *port) handOn() *port { return &port{TCPListener: p.TCPListener, address: p.address} }

// resume lets the socket accept after an earlier owner closed it.
func (p *port) resume() error { return p.SetDeadline(time.Time{}) }

// Close ends Accept. The socket is closed as well, unless it is kept.
func (p *port) Close() error {
	if p.kept.Load() {
		return p.SetDeadline(time.Unix(1, 0))
	}
	return p.TCPListener.Close()
}
