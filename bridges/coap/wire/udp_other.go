//go:build !linux

package wire

import (
	"net/netip"
)

const controlLen = 0

// Elsewhere than on Linux the system chooses the address that answers to a wildcard socket leave from.

func (c *udp) askForLocal() error { return nil }
func (c *udp) force()             {}
func (c *udp) receiveBuffer() int { return 0 }

func localOf([]byte) (local netip.Addr, iface int32, single bool) { return local, 0, true }

// Write sends a datagram.
func (c *udp) Write(b []byte, to Path) error {
	_, err := c.WriteToUDPAddrPort(b, to.Remote)
	return err
}
