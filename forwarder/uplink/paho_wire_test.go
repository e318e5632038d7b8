package uplink

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pahoWire is the connection paho is given.
type pahoWire struct {
	net.Conn
	tcp          net.Conn
	box          *outbox
	flushOnClose atomic.Bool
	gone         chan struct{}
	written      chan struct{} // closed when the writer has ended

	mu  sync.Mutex
	why error // the first reason for which it was dropped
}

func newPahoWire(nc, tcp net.Conn) *pahoWire {
	w := &pahoWire{Conn: nc, tcp: tcp, box: newOutbox(nc), gone: make(chan struct{}), written: make(chan struct{})}
	go func() { // ends with gone, a failed write, or finish
		defer close(w.written)
		if err := w.box.run(w.gone); err != nil {
			w.drop(ended(endNetwork, "write: %w", err))
		}
	}()
	return w
}

// errDropped stands for net.ErrClosed, by whose text paho takes a loss for its own doing and keeps silent.
var errDropped = errors.New("the connection was dropped")

func (w *pahoWire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	switch {
	case err == nil:
	case errors.Is(err, net.ErrClosed):
		err = errDropped
	default:
		// Noted here, before paho's tokens fail over it with errors that do not say why.
		w.mu.Lock()
		if w.why == nil {
			w.why = &endError{label: endNetwork, err: fmt.Errorf("connection lost: %w", err)}
		}
		w.mu.Unlock()
	}
	return n, err
}

func (w *pahoWire) Write(b []byte) (int, error) { return w.box.Write(b) }

// SetWriteDeadline does nothing, as Write never blocks; ack_timeout finds a connection that takes no bytes.
func (w *pahoWire) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline sets the deadline of reads, for the same reason.
func (w *pahoWire) SetDeadline(t time.Time) error { return w.SetReadDeadline(t) }

func (w *pahoWire) Close() error {
	if w.flushOnClose.Load() {
		w.box.finish()
		select {
		case <-w.written:
		case <-w.gone:
		case <-time.After(pahoGoodbye):
		}
	}
	w.drop(nil)
	return nil
}

// drop closes the connection at once. The first reason that is not nil is kept.
func (w *pahoWire) drop(reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil {
		w.why = reason
	}
	select {
	case <-w.gone:
	default:
		close(w.gone)
		_ = w.tcp.Close()
	}
}

// reason is why the connection was dropped, else what paho says.
func (w *pahoWire) reason(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why != nil {
		return w.why
	}
	return &endError{label: endNetwork, err: fmt.Errorf("connection lost: %w", err)}
}

// wait returns when the writer has ended, which it does after drop.
func (w *pahoWire) wait() { <-w.written }
