// Package wire is the message layer of CoAP over UDP (RFC 7252, section 4): peers, duplicates, acknowledgements and separate
// responses, on the codec of go-coap. It knows neither topics nor the gateway. Start reading at New.
package wire
