package session

import (
	"tidegate/buffer"
	"tidegate/message"
)

// Entry is one message on its way to one subscriber.
type Entry struct {
	// Msg is shared between all subscribers and never changed. It is nil where it has to be read from the disk first.
	Msg *message.Message
	// IDs are the subscription identifiers to be sent along; shared, never changed.
	IDs []uint32
	// QoS is the lower of the message's and the subscription's.
	QoS message.QoS
	// Retain is the flag to be sent: set on what a SUBSCRIBE asked for, and as published where the subscription says so.
	Retain bool
	// Stored says that the message is held by the retained store anyway, so that it costs no memory here.
	Stored bool

	// seq names the message in the store; 0: it is not there.
	seq buffer.Seq
	// size is what Size returned when the entry was queued, where the message is not at hand; else 0.
	size int64
	// dup says that the message may have been sent before the gateway was started.
	dup bool
	// shared says that it came through a shared subscription, share which one where that is known without reading.
	shared bool
	share  *share
	// reserved says that a handler of this process keeps room for it.
	reserved bool
	// polite asks a session to refuse the entry rather than drop another for it.
	polite bool
}
