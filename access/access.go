// Package access decides who may connect and who may publish or subscribe to what: one engine for every protocol.
//
// A Checker (checker.go) holds the users of the users file (users.go) and the rules of the configuration (rules.go), which
// are swapped together and atomically, so that no message is judged by half of each. It hashes passwords with a bound on how
// much of the machine that may take (login.go). It opens no connection, watches no file and starts no goroutine: whoever
// runs it calls Reload. Start reading at Checker.
package access

// Identity is who a connected client is.
type Identity struct {
	User   string // authenticated name; empty for an anonymous client
	Client string // client identifier, chosen by the client itself
}

// Action is what a client wants to do with a topic.
type Action string

// The actions.
const (
	// Publish to a topic name, by a PUBLISH or a will message.
	Publish Action = "publish"
	// Subscribe to a topic filter.
	Subscribe Action = "subscribe"
	// Deliver a message with a topic name to a client that subscribed.
	Deliver Action = "deliver"
)

// Decision is what the rules say and why.
type Decision struct {
	Allowed bool
	// Rule is the number of the deciding rule, from 1 in the order in which rules are read; 0 when none decides.
	Rule int
	// Text says why in one sentence.
	Text string
}
