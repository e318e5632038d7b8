// Package link keeps a session with an OPC UA server and its subscriptions through everything that can happen to the
// connection, on the exported API of gopcua's client. It knows neither topics nor the gateway. Start reading at New.
package link
