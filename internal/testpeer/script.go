package testpeer

import (
	"time"

	"tidegate/message"
)

// Script decides how the cloud answers. The functions run on the connection's goroutine and may be called from several
// connections at once. A nil function, and a zero answer, mean a well-behaved broker.
type Script struct {
	Connect func(Connect) Greeting
	Publish func(Received) Answer
	// Release answers the PUBREL of a QoS 2 message; only Drop, Delay, Code and Then of the answer count.
	Release func(id uint16) Answer
}

// Connect is what a client said in its CONNECT.
type Connect struct {
	Conn           int // number of the connection, from 1
	Client         string
	Version        byte // 4 or 5
	Clean          bool
	KeepAlive      uint16
	Username       string
	Password       string
	SessionExpiry  uint32
	ReceiveMaximum uint16
	WillTopic      string
	WillPayload    []byte
	WillRetain     bool
	WillQoS        byte
	ServerName     string // of the TLS handshake
}

// Greeting answers a CONNECT.
type Greeting struct {
	Code   byte   // 0 lets the client in; else the return code (3.1.1) or reason code (5) of the refusal
	Reason string // reason string, only on 5
	Silent bool   // no CONNACK at all, the connection stays open
	Cut    bool   // close instead of answering
	Forget bool   // drop the stored session first, so that Session Present is 0

	// The limits the cloud grants, only on 5. Zero: not sent.
	ReceiveMaximum    uint16
	MaximumPacketSize uint32
	ServerKeepAlive   uint16
	MaximumQoS        *byte
	RetainRefused     bool
}

// Answer says what happens to one PUBLISH (or PUBREL).
type Answer struct {
	Code   byte          // reason code of the PUBACK or PUBREC, only on 5
	Reason string        // reason string, only on 5
	Drop   bool          // never acknowledged
	Delay  time.Duration // acknowledged that much later; acknowledgements keep their order
	Then   Fault         // what befalls the connection right after
}

// Fault is what befalls a connection.
type Fault struct {
	Kind FaultKind
	Code byte // reason code of the DISCONNECT, for Kick
}

// FaultKind names a Fault.
type FaultKind int

const (
	// None leaves the connection alone.
	None FaultKind = iota
	// Cut closes it without a word; an acknowledgement that is due is still written.
	Cut
	// Tear writes the first half of the acknowledgement, then closes.
	Tear
	// Stall stops reading and writing and keeps the connection open: a black hole.
	Stall
	// Kick sends DISCONNECT with Code (5 only) and closes.
	Kick
)

// Received is one PUBLISH as it arrived.
type Received struct {
	N      int // order of arrival over all connections, from 0
	Conn   int // number of the connection, from 1
	Client string

	ID      uint16
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Dup     bool
	// Resent: a QoS 2 PUBLISH with an identifier that is not released yet. The specification makes a receiver take it
	// for a retransmission and drop it ([MQTT-4.3.3-10]), whatever it carries.
	Resent bool

	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	PayloadUTF8     bool
	Expiry          uint32 // seconds, 0: none
	Properties      []message.Property
}

// Property returns the first user property with that key, "" if there is none.
func (r Received) Property(key string) string {
	for _, p := range r.Properties {
		if p.Key == key {
			return p.Value
		}
	}
	return ""
}

// Command is a PUBLISH from the cloud to its subscribers.
type Command struct {
	Topic           string
	Payload         []byte
	QoS             byte // 0 or 1
	Retain          bool
	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	Expiry          uint32
	Properties      []message.Property
}

// CommandAck is a client's PUBACK of a command.
type CommandAck struct {
	Conn    int
	Client  string
	ID      uint16
	Code    byte
	Command Command
}

// Will is a will message that the cloud would have published.
type Will struct {
	Conn    int
	Topic   string
	Payload []byte
	Retain  bool
}
