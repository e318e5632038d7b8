// Package link keeps a session with an OPC UA server and its subscription through everything that can happen to the
// connection. It knows neither topics nor the gateway.
//
// Of the library gopcua it uses the types, the encoding of requests and the algorithms of the security policies; whatever
// faces the server is its own (docs/adr/0005, docs/adr/0006):
//
//	link.go          Link: connections one after the other, the ladder from the old session to a new one
//	subscription.go  items.go: what the server watches for us; publish.go, order.go, ledger.go: notifications and acknowledgements
//	session.go       access.go, types.go: sessions, and what is read, written and browsed in them; state.go: over a restart
//	security.go      choosing an endpoint, logging in; pki.go, trust.go: certificates
//	channel.go       open.go, chunk.go: the secure channel; services.go, value.go, wire.go: what servers answer
//
// Start reading at New.
package link
