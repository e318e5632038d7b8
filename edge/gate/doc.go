// Package gate is the connection under the MQTT broker: a net.Conn that knows MQTT framing and nothing else of the broker.
//
// It holds acknowledgements until the record they stand for is on disk, never blocks a writer, bounds what a connection
// may cost (packet sizes, queued bytes, time before CONNECT, silent peers) and closes in a way that lets the last packet
// arrive. It decodes no packet beyond the fixed header and the protocol level, keeps no session and knows no log: what it
// waits for is a Ticket.
//
// # What overtakes what
//
// After Hold, PUBACK, PUBREC, PUBCOMP and CONNACK wait for the ticket, and among themselves they always keep the order of
// the Write calls [MQTT-4.6.0-2] [MQTT-4.6.0-3]. PUBLISH, PUBREL, SUBACK, UNSUBACK, PINGRESP and AUTH say nothing about
// what this client published, so they leave at once, in their own order, past acknowledgements that still wait for the
// disk: a subscriber goes on receiving while its own publishes are being committed, and PUBRELs keep the order of the
// PUBRECs they answer [MQTT-4.6.0-4]. A DISCONNECT leaves after everything written before it, and nothing follows it
// [MQTT-3.14.4-1]. Bytes that are not whole packets end overtaking on that connection: from then on all bytes keep their
// order and wait for tickets.
//
// # Where to start
//
// conn.go has the Conn, hold.go the way out (Hold, Write, commit), read.go the way in, close.go the end, listener.go what
// stands before all of that.
package gate
