// Package coap is the CoAP bridge: a server (RFC 7252) on UDP sockets, by which devices publish, read and clear topics.
//
// Its message layer is wire, below this folder; it knows no topics. This package maps requests to the bus and back and
// answers a publishing request only when its record is on disk. Start reading at New.
package coap
