package edge

import (
	"net/netip"

	"tidegate/access"
)

// ACL decides who may connect and what an identity may do; *access.Checker is one. It is called from many goroutines.
type ACL interface {
	// Authenticate returns who the client is. An error wraps message.ErrBusy when the client may try again, and
	// access.ErrLocked when that is so after too many failures. It may take its time.
	Authenticate(l access.Login) (access.Identity, error)
	// Exchange begins a login by SCRAM-SHA-256 of a client at that address; nil where that is not possible.
	Exchange(from netip.Addr) *access.Exchange
	// Credential tells one password of a user from another; 0: there is no such user.
	Credential(user string) uint64
	// Allow must be quick: it is asked for every message, every filter and every delivery.
	Allow(id access.Identity, action access.Action, topic string) bool
}
