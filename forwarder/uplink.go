package forwarder

import (
	"context"
	"errors"

	"tidegate/message"
)

// Uplink is the connection to one cloud broker, kept up by itself.
type Uplink interface {
	// Run connects, reconnects and receives until ctx ends, and then says goodbye in order. A command of the cloud is
	// acknowledged to it when commands returned nil.
	Run(ctx context.Context, commands message.Handler) error
	// Connected waits until there is a usable connection and returns it; the same one for as long as it lives. It fails
	// only when ctx ended or Run did.
	Connected(ctx context.Context) (Link, error)
	// Status tells what an operator wants to see. It does not wait.
	Status() LinkStatus
}

// LinkStatus is a look at an uplink's connection.
type LinkStatus struct {
	Connected bool
	Server    string
	// Window is how many messages may be in flight; 0: not known. Granted is what the broker announced, 0 if it did not.
	Window, Granted int
	LastError       string
	Note            string // what else an operator may want to know; empty: nothing
}

// Link is one connection to a cloud broker and ends with it, so that an acknowledgement of one connection can never be
// taken for that of another.
type Link interface {
	// Send hands m to the connection; it is called from one goroutine, and the cloud gets the messages in that order. It
	// waits while the peer's window is full. A nil error means that done will be called exactly once: with nil when
	// the cloud acknowledged m, with an error that is or wraps ErrQuota or ErrNotAuthorized or has a reason code
	// (see Refusal) when the cloud refused it, and with any other error when the connection ended first. After an error
	// done is not called.
	//
	// done may run before Send returns, on any goroutine; it returns at once. What m points to stays unchanged until then.
	Send(ctx context.Context, m message.Message, id Identity, done func(error)) error
	// Lost is closed when the connection is gone and every done was called.
	Lost() <-chan struct{}
	// Proven reports whether the peer has answered anything on this connection after it accepted it: then the
	// connection as such works.
	Proven() bool
	// ClosedByPeer reports, once Lost is closed, whether the peer ended the connection on purpose or at least by
	// itself: an end of stream, a reset, a DISCONNECT. It is false for a silent line, a timeout and for Close.
	ClosedByPeer() bool
	// Close drops the connection; the uplink makes a new one in its own time.
	Close(reason error)
}

// Identity is what lets the cloud recognise a record: sent as the user properties tg-id, tg-seq, tg-src and tg-up
// where the protocol has them. Empty ones are left out.
type Identity struct {
	ID     string // unique for each record, the same on every retry
	Seq    string // EPOCH-LANE-N, N without holes from append on
	Source string // the device
	// Uplink is GATEWAY/UPLINK: sequences are counted for each uplink, and several may lead to one broker.
	Uplink string
	// Exactly is how many of the records in a batch want QoS 2, to be counted where the cloud does not take that.
	Exactly int
}

// The refusals that are about the moment or the account and not about the message.
var (
	// ErrQuota: the cloud takes no more for a while (0x97).
	ErrQuota = errors.New("the cloud broker's quota is used up (0x97)")
	// ErrNotAuthorized: the cloud's rules forbid it (0x87), more often by a mistake in the rules than in the message.
	ErrNotAuthorized = errors.New("the cloud broker does not allow this publication (0x87)")
)

// Refusal is an error that carries the MQTT 5 reason code of a PUBACK, PUBREC or PUBCOMP. One with a method Local() bool that
// returns true comes from the link, which knows what the cloud does not take and has not sent it.
type Refusal interface {
	error
	Code() byte
}

// MQTT 5 reason codes with a meaning of their own here.
const (
	codeTopicInvalid    = 0x90
	codeIdentifierInUse = 0x91
	codePacketTooLarge  = 0x95
	codeQuotaExceeded   = 0x97
	codePayloadInvalid  = 0x99
)

// verdict is what an acknowledgement, or its absence, means for the record.
type verdict uint8

const (
	accepted  verdict = iota
	gone              // no answer: send it again on the next connection
	later             // the cloud cannot take it now: pause, then send it again
	forbidden         // the cloud does not want to take it: pause longer, raise an alarm, send it again
	faulty            // the cloud refuses whatever it is sent: likewise, and over another connection
	rejected          // the cloud will never take this very record: to the dead letters
)

// judge reads the error that done got. Only what the cloud says about the record itself is final; a code with no clear
// meaning must not empty the buffer into the dead letters, so it counts as forbidden.
func judge(err error) verdict {
	if err == nil {
		return accepted
	}
	var refusal Refusal
	switch {
	case errors.Is(err, ErrQuota):
		return later
	case errors.Is(err, ErrNotAuthorized):
		return forbidden
	case !errors.As(err, &refusal):
		return gone
	}
	switch refusal.Code() {
	case codeTopicInvalid, codePacketTooLarge, codePayloadInvalid:
		return rejected
	case codeQuotaExceeded, codeIdentifierInUse:
		return later
	default:
		return forbidden
	}
}
