// Package message holds the one value that travels through Tidegate: what a device sent, with what is known about it.
//
// A Message is passed by value. Its payload, correlation data and properties never change after it was made, so packages
// share them without copying. The package also owns topic syntax and matching (topic.go), the identity of a message
// (id.go), its bytes on disk (codec.go) and the Ticket by which a caller learns that a message is on disk (ticket.go).
// It knows no protocol, no configuration and no file. Start reading here.
package message

import (
	"context"
	"errors"
	"time"
)

// QoS is an MQTT quality of service: 0 at most once, 1 at least once, 2 exactly once.
type QoS byte

// Protocol names the way by which a message came in. It is also the value of the metric label "protocol".
type Protocol string

// The protocols a message can come from.
const (
	MQTT   Protocol = "mqtt"
	CoAP   Protocol = "coap"
	OPCUA  Protocol = "opcua"
	HTTP   Protocol = "http"
	Uplink Protocol = "uplink" // a command from the cloud
	Self   Protocol = "self"   // the gateway's own status and reports
)

// Source says who sent a message.
type Source struct {
	Protocol Protocol
	Client   string // client identifier, endpoint or bridge name
	User     string // authenticated name; empty for anonymous
}

// Name is what the device is called towards the cloud (tg-src): its client identifier, else its user.
func (s Source) Name() string {
	if s.Client != "" {
		return s.Client
	}
	return s.User
}

// Property is an MQTT 5 user property. Order and repetition are kept [MQTT-3.3.2-17].
type Property struct{ Key, Value string }

// Message is one application message and what is known about it.
type Message struct {
	ID      ID
	Topic   string // a valid topic name, see ValidName
	Payload []byte
	QoS     QoS
	Retain  bool
	// Dup says that the peer it came from may have sent it before (the DUP flag of MQTT). It is neither stored nor sent on.
	Dup bool

	ContentType     string
	ResponseTopic   string
	CorrelationData []byte // nil: absent; empty and not nil: present and empty
	PayloadUTF8     bool   // MQTT 5 payload format indicator 1
	Properties      []Property

	Source Source
	// Received is when the gateway got it, taken once on arrival.
	Received time.Time
	// SourceTime is the source's own time (OPC UA); zero when it gave none.
	SourceTime time.Time
	// Expires is when the message stops being worth delivering; zero: never. It is Received plus the MQTT 5
	// message expiry interval [MQTT-3.3.2-5].
	Expires time.Time
}

// Ingest takes m over without waiting for the disk. An error means: still the caller's, do not acknowledge it.
// A nil error means: the caller's no more once the ticket is durable; acknowledge the device then, not before.
type Ingest func(m Message) (Ticket, error)

// Handler is for hand-overs where nil alone means "I am responsible now" (commands down, local delivery).
type Handler func(ctx context.Context, m Message) error

// The whole error vocabulary between packages. Each protocol edge translates them into its own codes in one function.
var (
	// ErrBusy: cannot be taken now (buffer full with "refuse", stopping, disk failed); the sender should try again later.
	ErrBusy = errors.New("cannot take the message now")
	// ErrTooLarge: larger than a bound the user set.
	ErrTooLarge = errors.New("message too large")
	// ErrNotAllowed: a rule forbids it.
	ErrNotAllowed = errors.New("not allowed")
	// ErrInvalid: the topic name or a property breaks the specification.
	ErrInvalid = errors.New("invalid message")
	// ErrNoMatch: nobody subscribes to the topic. Only a hand-over by Handler returns it.
	ErrNoMatch = errors.New("nobody subscribes to the topic")
)
