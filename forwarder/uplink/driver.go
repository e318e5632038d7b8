package uplink

import (
	"context"
	"time"

	"tidegate/message"
)

// driver makes connections of one kind.
type driver interface {
	// connect opens a connection and returns after the CONNACK. ctx bounds only that.
	connect(ctx context.Context, s *settings, h hello) (conn, error)
}

// hello is what differs from one connection to the next.
type hello struct {
	server server
	will   message.Message
	login  login
	// probe asks only whether the server answers: with an identifier of its own, a clean session and no will.
	probe bool
	// release asks to release the QoS 2 identifiers of earlier connections before anything is sent, if there is a
	// session. Without it they are released before the first QoS 2 message: a broker that knows no QoS 2 may not take a PUBREL.
	release bool
}

// conn is one connection after a successful CONNACK. All methods may be called from several goroutines, send keeping the
// order of each of them.
type conn interface {
	// send is Link.Send.
	send(ctx context.Context, m message.Message, id Identity, done func(error)) error
	// oldest says since when the oldest unanswered message has been the oldest; false when there is none.
	oldest() (time.Time, bool)
	// subscribes says since when the subscription of commands has had no answer; false when none is missing.
	subscribes() (time.Time, bool)
	inFlight() int
	info() connInfo
	// commands delivers what the broker publishes to us, in order. It is never closed; lost ends it.
	commands() <-chan command
	// acknowledge answers a command with QoS 1. Commands are acknowledged in the order in which they came.
	acknowledge(c command, code byte)
	// stop sends DISCONNECT after everything that was sent before, then ends the connection.
	stop()
	// drop ends the connection at once. The first reason counts.
	drop(reason error)
	// lost is closed when the connection is gone, every done was called and no goroutine of it runs any more.
	lost() <-chan struct{}
	// cause is why the connection ended, nil before lost is closed.
	cause() error
}

// connInfo is what was agreed in the handshake, and a little history.
type connInfo struct {
	window  int // messages in flight, at most
	granted int // Receive Maximum of the broker, 0: it does not say
	present bool

	// What happened since.
	exactly  bool   // a message was sent with QoS 2
	answered uint64 // messages acknowledged, the gateway's own status among them
	taken    uint64 // those of them that the broker did not refuse
}

// command is a message from the cloud that is not acknowledged yet.
type command struct {
	m        message.Message
	packetID uint16 // 0: QoS 0, nothing to acknowledge
}

// completion is a done that is due, with what it will be told.
type completion struct {
	done func(error)
	err  error
}
