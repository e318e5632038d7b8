// Package coap is the CoAP bridge: a server (RFC 7252) on UDP sockets, by which devices publish, read and clear topics.
//
// Its message layer is wire, below this folder; it knows no topics. This package maps requests to the bus and back, and
// answers a request that publishes only when its record is on disk: the request is parked in the message layer and answered
// from the ticket's callback, so that neither the socket nor the committer ever waits for the other.
//
// A request comes in at serve (serve.go), which reads its options (ask.go) and hands it to publish.go, read.go or
// discovery.go; format.go maps content formats, reply.go errors to codes. It knows neither the broker nor the buffer.
//
// Limits: clients of coap:// have no user name. Bodies that come in blocks are refused, as is observing (a GET is answered
// once). Conditional requests (If-Match, If-None-Match) are refused: MQTT publishers would run between condition and effect.
// Start reading at New.
package coap
