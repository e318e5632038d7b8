package uplink

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
)

func TestClosedByPeer(t *testing.T) {
	for name, c := range map[string]struct {
		cause error
		want  bool
	}{
		"disconnect":    {ended(endKicked, "the broker sent disconnect"), true},
		"end of stream": {ended(endNetwork, "read: %w", io.EOF), true},
		"torn packet":   {ended(endNetwork, "read: %w", io.ErrUnexpectedEOF), true},
		"reset":         {ended(endNetwork, "write: %w", os.NewSyscallError("write", syscall.ECONNRESET)), true},
		"broken pipe":   {ended(endNetwork, "write: %w", os.NewSyscallError("write", syscall.EPIPE)), true},
		"timeout":       {ended(endNetwork, "read: %w", os.ErrDeadlineExceeded), false},
		"silence":       {ended(endKeepAlive, "no answer"), false},
		"slow ack":      {ended(endAckTimeout, "no acknowledgement"), false},
		"taken over":    {ended(endTakenOver, "another client"), false},
		"closed here":   {ended(endClosed, "closed here: %w", io.EOF), false},
		"other":         {errors.New("x"), false},
		"none":          {nil, false},
	} {
		if got := closedByPeer(c.cause); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
