// Package external attaches the gateway to a broker of the user's own, in place of the embedded one.
//
// The gateway is one member of a group: the broker hands each message that a shared subscription ($share/GROUP/FILTER)
// selects to one of them. A message is acknowledged to the broker when its record is on disk, never before; one that cannot be
// taken now is not acknowledged at all, so the broker keeps it. What other bridges publish, the gateway's status and the
// commands of the cloud go out to that broker, where the local subscribers are.
//
// bridge.go keeps a connection, link.go is one connection, handshake.go its beginning. take.go is the way in, with the
// acknowledgements in receipts.go; outbox.go and send.go are the way out; subscriptions.go knows what the session at the
// broker subscribes to, wire.go the bytes. Start reading at Bridge.Run.
//
// Limits: MQTT 5 over TCP and TLS. At least once, also with QoS 2 after a restart of the gateway: a message whose
// acknowledgement was lost comes again and is taken again, under another identity. Who sent a message is known only where the
// user property tg-src says so. What waits for the broker to come back is in memory, bounded, the oldest is dropped. Within one
// member messages keep the order in which the broker sent them; between members there is none.
package external
