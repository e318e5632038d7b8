// Package bridges holds what a bridge sees of the gateway: the bus that it publishes to and subscribes on, and what the
// gateway asks of a bridge in turn.
//
// A bridge translates another protocol into topics and back. It lives in a folder of its own below this one (coap, opcua),
// imports this package and message, and knows neither the broker nor the buffer behind the bus. cmd/tidegate/bridges.go
// has the table of all bridges; start reading there, then in the bridge's doc.go.
package bridges

import (
	"context"
	"net"

	"tidegate/message"
)

// Publisher is all that a bridge may do with what it reads.
type Publisher interface {
	// Publish takes m over without waiting for the disk. On an error m is still the bridge's; the errors are those of package
	// message. Without one, the bridge acknowledges its device when the ticket is durable, not before.
	Publish(m message.Message) (message.Ticket, error)
}

// Subscriber is how a bridge hears what is published on local topics.
type Subscriber interface {
	// Subscribe gives every message that filter selects to h, one after the other, until cancel is called. What h returns
	// as an error is logged: the message was the bridge's. A full queue in front of h drops messages and counts them.
	Subscribe(filter string, h message.Handler) (cancel func(), err error)
	// Retained returns the retained messages that filter selects, in no order.
	Retained(filter string) []message.Message
}

// Bus is both.
type Bus interface {
	Publisher
	Subscriber
}

// Bridge is one connection to another protocol. Its constructor checks, binds and starts nothing.
type Bridge interface {
	// Name tells bridges apart in topics, metrics and status.
	Name() string
	// Run works until ctx ends and returns when every goroutine it started has ended. A peer that is away is no reason to
	// return: the bridge tries again for ever and says so by its status.
	Run(ctx context.Context) error
	// Status is how the bridge is now.
	Status() Status
	// Addrs are the addresses the bridge has bound, in the order of the configuration; empty for one that only dials.
	Addrs() []net.Addr
	// Close frees what the constructor bound, of a bridge that is not run.
	Close() error
}

// Status is the state of a bridge at one moment.
type Status struct {
	// Up: the bridge can do its work; for one that dials, its peer answers.
	Up bool
	// LastError says why it is not up, or what went wrong last; empty: nothing did.
	LastError string
}
