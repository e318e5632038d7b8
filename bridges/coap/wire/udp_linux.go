package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"unsafe"
)

// controlLen has room for one IPV6_PKTINFO, which is larger than an IP_PKTINFO.
const controlLen = 64

// Options of the socket layer that package syscall does not name.
const (
	soRcvBufForce = 33
	soSndBufForce = 32
	// ipv6RecvPktInfo and ipv6PktInfo are of RFC 3542.
	ipv6RecvPktInfo = 49
	ipv6PktInfo     = 50
)

// askForLocal makes the kernel say which address a datagram came to.
func (c *udp) askForLocal() error {
	level, option := syscall.IPPROTO_IP, syscall.IP_PKTINFO
	if c.v6 {
		level, option = syscall.IPPROTO_IPV6, ipv6RecvPktInfo
	}
	return c.setInt(level, option, 1)
}

func (c *udp) setInt(level, option, value int) error {
	var failed error
	if err := c.raw.Control(func(fd uintptr) { failed = syscall.SetsockoptInt(int(fd), level, option, value) }); err != nil {
		return err
	}
	return failed
}

// force asks for the buffers that root may have beyond the limit of others.
func (c *udp) force() {
	_ = c.setInt(syscall.SOL_SOCKET, soRcvBufForce, bufferBytes)
	_ = c.setInt(syscall.SOL_SOCKET, soSndBufForce, bufferBytes)
}

func (c *udp) receiveBuffer() int {
	size := 0
	_ = c.raw.Control(func(fd uintptr) { size, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF) })
	return size / 2 // the kernel doubles what it is asked for, for its own use
}

// A control message is a header (length, level, type; the length as wide as a pointer) and, aligned like it, its data:
//
//	IP_PKTINFO    interface 4 bytes | address of ours 4 | address in the packet 4
//	IPV6_PKTINFO  address in the packet 16 bytes | interface 4
const (
	controlHead = syscall.SizeofCmsghdr
	info4Len    = 12
	info6Len    = 20
)

// localOf reads the address that a datagram came to. It is not single when it was sent to a group or to everybody.
func localOf(control []byte) (local netip.Addr, iface int32, single bool) {
	if len(control) < controlHead {
		return local, 0, true // the kernel said nothing: it may choose
	}
	level := int32(binary.NativeEndian.Uint32(control[controlHead-8:]))
	typ := int32(binary.NativeEndian.Uint32(control[controlHead-4:]))
	data := control[controlHead:]
	switch {
	case level == syscall.IPPROTO_IP && typ == syscall.IP_PKTINFO && len(data) >= info4Len:
		local = netip.AddrFrom4([4]byte(data[4:8]))
		return local, 0, local == netip.AddrFrom4([4]byte(data[8:12]))
	case level == syscall.IPPROTO_IPV6 && typ == ipv6PktInfo && len(data) >= info6Len:
		local = netip.AddrFrom16([16]byte(data[:16]))
		if local.IsLinkLocalUnicast() { // names an interface's neighbourhood: the same address may exist on several
			iface = int32(binary.NativeEndian.Uint32(data[16:20]))
		}
		return local, iface, !local.IsMulticast()
	}
	return local, 0, true
}

// appendLocal appends the control message that makes a datagram leave from an address. The interface is left open, but for
// addresses that mean nothing without: the way back need not be the way by which the request came.
func appendLocal(b []byte, local netip.Addr, iface int32) []byte {
	if !local.IsValid() {
		return b
	}
	if local.Is4() {
		a := local.As4()
		b = appendControlHead(b, info4Len, syscall.IPPROTO_IP, syscall.IP_PKTINFO)
		b = append(b, 0, 0, 0, 0)
		b = append(b, a[:]...)
		b = append(b, 0, 0, 0, 0)
	} else {
		a := local.As16()
		b = appendControlHead(b, info6Len, syscall.IPPROTO_IPV6, ipv6PktInfo)
		b = append(b, a[:]...)
		b = binary.NativeEndian.AppendUint32(b, uint32(iface))
	}
	for len(b)%int(unsafe.Sizeof(uintptr(0))) != 0 {
		b = append(b, 0)
	}
	return b
}

func appendControlHead(b []byte, dataLen int, level, typ uint32) []byte {
	if unsafe.Sizeof(uintptr(0)) == 8 {
		b = binary.NativeEndian.AppendUint64(b, uint64(controlHead+dataLen))
	} else {
		b = binary.NativeEndian.AppendUint32(b, uint32(controlHead+dataLen))
	}
	b = binary.NativeEndian.AppendUint32(b, level)
	return binary.NativeEndian.AppendUint32(b, typ)
}

// Write sends a datagram if the kernel takes it at once. It does not wait for room: datagrams to a neighbour that does not
// answer to ARP stay in the buffer for seconds, and nobody else is to be delayed by them.
func (c *udp) Write(b []byte, to Path) error {
	w, _ := c.writes.Get().(*write)
	if w == nil {
		w = &write{}
		w.call = w.send
	}
	w.b, w.err = b, nil
	w.control = appendLocal(w.room[:0], to.Local, to.Interface)
	if c.v6 {
		w.v6 = syscall.SockaddrInet6{Port: int(to.Remote.Port()), Addr: to.Remote.Addr().As16(), ZoneId: c.scope(to)}
		w.to = &w.v6
	} else {
		w.v4 = syscall.SockaddrInet4{Port: int(to.Remote.Port()), Addr: to.Remote.Addr().As4()}
		w.to = &w.v4
	}
	err := c.raw.Write(w.call)
	if err == nil {
		err = w.err
	}
	w.b = nil
	c.writes.Put(w)
	return err
}

// write is what a system call needs, kept for the next one: made anew, it would be garbage half as large as all else that a
// request leaves behind.
type write struct {
	b       []byte
	control []byte
	to      syscall.Sockaddr
	v4      syscall.SockaddrInet4
	v6      syscall.SockaddrInet6
	room    [controlLen]byte
	err     error
	call    func(fd uintptr) bool
}

func (w *write) send(fd uintptr) bool {
	const flags = syscall.MSG_DONTWAIT | syscall.MSG_NOSIGNAL
	for {
		if len(w.control) == 0 {
			w.err = syscall.Sendto(int(fd), w.b, flags, w.to)
		} else {
			_, w.err = syscall.SendmsgN(int(fd), w.b, w.control, w.to, flags)
		}
		if !errors.Is(w.err, syscall.EINTR) {
			return true
		}
	}
}
