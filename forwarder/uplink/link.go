package uplink

import (
	"context"
	"errors"
	"fmt"

	"tidegate/message"
)

// Identity is what lets the cloud recognise a record it has seen before. It travels as the user properties tg-id, tg-seq,
// tg-src and tg-up; MQTT 3.1.1 has no place for it. Empty fields are left out.
type Identity struct {
	ID  string // unique for each record sent, the same on every retry
	Seq string // EPOCH-LANE-N
	Src string // the device
	Up  string // GATEWAY/UPLINK, whose sequence Seq is
	// Exactly is how many of the messages in a batch want QoS 2; it is not sent.
	Exactly int
}

// Link is one connection to a cloud broker. It ends with that connection: an acknowledgement can never reach a message
// of another Link.
type Link interface {
	// Send hands m to the connection, in order; it is called from one goroutine. It blocks only while the window is
	// full or the network takes no bytes. A nil error means that done is called exactly once, with nil when the cloud
	// acknowledged m, else with one of the errors of this package. An error (of ctx, or ErrDisconnected) means
	// that m was not taken and done is not called.
	//
	// done runs on a goroutine of the connection, or before Send returns on the caller's; it must not block, must not call
	// Send, and must not take a lock that is held while Send is called. What m points to may not change before done was
	// called.
	Send(ctx context.Context, m message.Message, id Identity, done func(error)) error
	// Lost is closed when the connection is gone, after every done of it was called.
	Lost() <-chan struct{}
	// Proven reports whether the broker has answered anything on this connection after it accepted it; the gateway's own
	// status message, the first one of every connection, counts.
	Proven() bool
	// ClosedByPeer reports, once Lost is closed, whether the broker ended the connection on purpose or at least by itself:
	// a DISCONNECT, an end of stream, a reset. It is false for a silent line, a timeout and for Close.
	ClosedByPeer() bool
	// Close drops this connection without an orderly goodbye; the client connects again. It does not wait for Lost.
	Close(reason error)
}

var (
	// ErrDisconnected: the connection ended before the cloud acknowledged the message. It may have arrived; send it again.
	ErrDisconnected = errors.New("the connection to the cloud broker is gone")
	// ErrQuota: the cloud refuses messages for a while (reason code 0x97). Pause and send it again.
	ErrQuota = errors.New("the cloud broker has no quota left (0x97)")
	// ErrNotAuthorized: a rule of the cloud forbids this publication (0x87); more often a mistake in the rules than in the
	// message.
	ErrNotAuthorized = errors.New("the cloud broker does not allow this publication (0x87)")
)

// RefusedError says that the cloud refuses this very message: sending it again will not help.
type RefusedError struct {
	Code   byte   // MQTT 5 reason code: 0x90 topic name invalid, 0x95 packet too large, 0x99 payload format invalid, ...
	Reason string // what the broker, or this package, says about it; may be empty
	Local  bool   // this package refused it, knowing what the cloud takes; it was not sent
}

func (e *RefusedError) Error() string {
	if e.Local {
		return fmt.Sprintf("not sent, the cloud would refuse it (%#x): %s", e.Code, e.Reason)
	}
	if e.Reason == "" {
		return fmt.Sprintf("the cloud broker refuses the message (%#x)", e.Code)
	}
	return fmt.Sprintf("the cloud broker refuses the message (%#x): %s", e.Code, said(e.Reason))
}

// The reason codes of MQTT 5 that mean something to this package (MQTT 5.0, 2.4).
const (
	codeSpecific          = 0x83
	codeNotAuthorized     = 0x87
	codeTakenOver         = 0x8E
	codeTopicInvalid      = 0x90
	codeIdentifierInUse   = 0x91
	codeIdentifierUnknown = 0x92
	codePacketTooLarge    = 0x95
	codeQuota             = 0x97
	codeRetainUnsupported = 0x9A
)

// ackError turns the reason code of a PUBACK, PUBREC or PUBCOMP into what done is told. Codes below 0x80 are success,
// also 0x10: the broker took the message and nobody subscribes to it yet.
func ackError(code byte, reason string) error {
	switch {
	case code < 0x80:
		return nil
	case code == codeQuota:
		return ErrQuota
	case code == codeNotAuthorized:
		return ErrNotAuthorized
	}
	return &RefusedError{Code: code, Reason: reason}
}

// endError says why a connection ended. The label is the value of the metric label "reason".
type endError struct {
	label string
	err   error
}

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

// The reasons for which a connection ends or is not made; they are the values of a metric label and therefore few.
const (
	endNetwork     = "network"      // the connection broke or could not be made
	endProxy       = "proxy"        // the proxy refused or could not be reached
	endClock       = "clock"        // the clock is wrong, so no token can be signed
	endRenewed     = "renewed"      // ended in order, because the token of the login was about to lapse
	endFailback    = "failback"     // ended in order, because an earlier server is back
	endRefused     = "refused"      // the broker refused the CONNECT
	endKicked      = "disconnected" // the broker sent DISCONNECT
	endTakenOver   = "taken_over"   // another client came with the same client identifier
	endAckTimeout  = "ack_timeout"  // the oldest message got no acknowledgement in time
	endKeepAlive   = "keep_alive"   // nothing was heard, not even an answer to PINGREQ
	endProtocol    = "protocol"     // the broker broke the specification
	endClosed      = "closed"       // dropped by the user of the Link
	endStopped     = "stopped"      // orderly end of Run
	endUnspecified = "other"
)

func ended(label, format string, args ...any) error {
	return &endError{label: label, err: fmt.Errorf(format, args...)}
}

// endLabel is the metric label of an error that ended a connection.
func endLabel(err error) string {
	var e *endError
	if errors.As(err, &e) {
		return e.label
	}
	return endUnspecified
}
