package uplink

import (
	"errors"
	"io"
	"syscall"
)

// ClosedByPeer implements Link.
func (l *link) ClosedByPeer() bool { return closedByPeer(l.conn.cause()) }

// closedByPeer reads the reason for which a connection ended.
func closedByPeer(cause error) bool {
	switch endLabel(cause) {
	case endKicked:
		return true
	case endNetwork:
		for _, sign := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
			if errors.Is(cause, sign) {
				return true
			}
		}
	}
	return false
}
