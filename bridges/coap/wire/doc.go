// Package wire is the message layer of CoAP over UDP (RFC 7252, section 4): peers, duplicates, acknowledgements and separate
// responses, on the codec of go-coap. It knows neither topics nor the gateway.
//
// A Server reads datagrams from its sockets, one goroutine each, and gives every request once to a Handler, on that
// goroutine and in the order of arrival. The handler answers at once (Request.Reply) or keeps the request (Request.Park)
// and answers it later, from any goroutine (Exchange.Reply). How the answer travels is decided here: piggybacked on the
// acknowledgement, or, when that had to leave before, as a separate response that is sent again until the peer has it.
//
// What a peer costs is a few hundred bytes and no goroutine: its duplicates (ring.go) and, while it has some, its separate
// responses (separate.go). Peers are forgotten when nothing they sent can be a duplicate any more, or when there are too many
// (table.go). One goroutine serves all deadlines (wheel.go), one sends the answers that come from elsewhere (answers.go).
//
// Limits: no blockwise transfer and no observation, which belong above this layer; no multicast; no congestion control
// beyond one separate response in flight for each peer (NSTART). A duplicate is recognized for as long as RFC 7252 asks
// for, unless the peer sends so much that its ring, which grows to 4,096 requests, has no room for all of it.
//
// Start reading at Server, then take (receive.go).
package wire
