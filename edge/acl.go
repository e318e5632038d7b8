package edge

import "tidegate/access"

// ACL decides who may connect and what an identity may do; *access.Checker is one. It is called from many goroutines.
type ACL interface {
	// Authenticate returns who the client is. anonymous says whether the listener admits clients without a user name. An
	// error wraps message.ErrBusy when the client may try again. It may take its time.
	Authenticate(user string, password []byte, client string, anonymous bool) (access.Identity, error)
	// Allow must be quick: it is asked for every message, every filter and every delivery.
	Allow(id access.Identity, action access.Action, topic string) bool
}
