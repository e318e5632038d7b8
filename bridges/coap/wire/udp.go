package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferBytes is asked for as the size of a socket's buffers. The usual 208 KiB hold some 190 small datagrams: less than what
// comes in while one flush of a slow disk keeps the machine busy.
const bufferBytes = 4 << 20

// udp is a socket of one address family.
type udp struct {
	*net.UDPConn
	raw syscall.RawConn
	// wildcard: it is bound to every address, so each datagram says which one it came to.
	wildcard bool
	v6       bool
	// zone and zoneIndex are those of the address that it is bound to, if that has one.
	zone      string
	zoneIndex uint32
	reading   atomic.Bool // false once StopReading was called
	writes    sync.Pool   // of *write
}

// Listen binds the sockets of a host and port. An empty host, "::", and "localhost" have an IPv4 and an IPv6 address and get
// one socket for each: on a socket for both, answers would leave from the wrong one. A family that the machine does not have
// is left out. Port 0 picks a free port, the same for both families if one is free in both. A host name gets a socket for
// each of its addresses.
func Listen(hostport string) ([]Conn, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", hostport, err)
	}
	number, err := net.LookupPort("udp", port)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", hostport, err)
	}
	addrs, both, err := addresses(host)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", hostport, err)
	}
	var conns []Conn
	var missing error
	for _, a := range addrs {
		want := number
		if number == 0 && len(conns) > 0 {
			want = portOf(conns[0])
		}
		c, err := listen(netip.AddrPortFrom(a, uint16(want)))
		if err != nil && want != number {
			c, err = listen(netip.AddrPortFrom(a, 0)) // the other family's port is taken in this one
		}
		switch {
		case err == nil:
			conns = append(conns, c)
		case both && noSuchFamily(err):
			missing = errors.Join(missing, err)
		default:
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, fmt.Errorf("listen on %q: %w", hostport, err)
		}
	}
	if len(conns) == 0 {
		return nil, fmt.Errorf("listen on %q: %w", hostport, missing)
	}
	return conns, nil
}

// addresses returns what to bind for a host. both says that it stands for either address family, as far as there is one.
func addresses(host string) (addrs []netip.Addr, both bool, err error) {
	switch host {
	case "", "::":
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, true, nil
	case "localhost":
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, false, nil
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return nil, false, err
	}
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, false, nil
}

func portOf(c Conn) int {
	if a, ok := c.Addr().(*net.UDPAddr); ok {
		return a.Port
	}
	return 0
}

// noSuchFamily reports whether an address could not be bound because the machine has no IPv4, or no IPv6.
func noSuchFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

func listen(a netip.AddrPort) (*udp, error) {
	network := "udp4"
	if a.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return nil, err
	}
	c := &udp{UDPConn: conn, v6: a.Addr().Is6(), wildcard: a.Addr().IsUnspecified()}
	if c.zone = a.Addr().Zone(); c.zone != "" {
		c.zoneIndex = zoneIndex(c.zone)
	}
	c.reading.Store(true)
	if c.raw, err = conn.SyscallConn(); err == nil && c.wildcard {
		err = c.askForLocal()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c.enlarge()
	return c, nil
}

// enlarge asks for large buffers; less is no reason not to start.
func (c *udp) enlarge() {
	_ = c.SetReadBuffer(bufferBytes)
	_ = c.SetWriteBuffer(bufferBytes)
	c.force()
}

func (c *udp) Addr() net.Addr { return c.LocalAddr() }

// Read reads a datagram, whose sender may be anybody.
func (c *udp) Read(b []byte) (n int, from Path, err error) {
	if !c.reading.Load() {
		return 0, Path{}, os.ErrDeadlineExceeded
	}
	if !c.wildcard {
		n, from.Remote, err = c.ReadFromUDPAddrPort(b)
		from.Remote = unmap(from.Remote)
		return n, from, err
	}
	var control [controlLen]byte
	for {
		var size int
		if n, size, _, from.Remote, err = c.ReadMsgUDPAddrPort(b, control[:]); err != nil {
			return 0, Path{}, err
		}
		from.Remote = unmap(from.Remote)
		var single bool
		if from.Local, from.Interface, single = localOf(control[:size]); single {
			return n, from, nil
		}
		// Sent to a group or to everybody: nobody here has joined one, and an answer would help to flood the sender.
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// StopReading ends Read, for good.
func (c *udp) StopReading() error {
	c.reading.Store(false)
	return c.SetReadDeadline(time.Now())
}

// Buffer returns the size of the receive buffer that the system gave, 0 if it does not say.
func (c *udp) Buffer() int { return c.receiveBuffer() }

// scope is the number of the interface that the peer is reached by, where its address alone does not say so.
func (c *udp) scope(to Path) uint32 {
	zone := to.Remote.Addr().Zone()
	switch {
	case zone == "":
		return 0
	case to.Interface != 0:
		return uint32(to.Interface)
	case zone == c.zone:
		return c.zoneIndex
	}
	return zoneIndex(zone)
}

// zoneIndex returns the number of an interface.
func zoneIndex(zone string) uint32 {
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32) // a zone without a name is its number
	return uint32(n)
}
