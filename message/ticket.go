package message

import "context"

// Waiter knows up to which position a log is on disk. *buffer.Log is one.
type Waiter interface {
	// Durable reports whether everything up to pos is on disk.
	Durable(pos uint64) bool
	// Notify calls f exactly once: with nil as soon as pos is durable (at once if it is already), with an error when the
	// disk failed and pos will never be. f must not block.
	Notify(pos uint64, f func(error))
	// Wait blocks until pos is durable, the disk failed or ctx ended, and says which by its error.
	Wait(ctx context.Context, pos uint64) error
}

// Ticket stands for a message that was taken in and tells when it is on disk. The zero Ticket is durable at once: no
// route sends its message up, so there is nothing to wait for. A Ticket may be copied and used from any goroutine.
type Ticket struct {
	w   Waiter
	pos uint64
}

// NewTicket returns a ticket that is durable when w is durable up to pos.
func NewTicket(w Waiter, pos uint64) Ticket { return Ticket{w, pos} }

// Pos returns the position that the ticket stands for; 0 for the zero Ticket.
func (t Ticket) Pos() uint64 { return t.pos }

// Durable reports, without waiting, whether the message is on disk.
func (t Ticket) Durable() bool { return t.w == nil || t.w.Durable(t.pos) }

// Wait blocks until the message is on disk (nil), the disk failed, or ctx ended (its error).
func (t Ticket) Wait(ctx context.Context) error {
	if t.w == nil {
		return nil
	}
	return t.w.Wait(ctx, t.pos)
}

// Done calls f exactly once: with nil when the message is on disk, possibly before Done returns, or with an error when
// the disk failed. f must not block.
func (t Ticket) Done(f func(error)) {
	if t.w == nil {
		f(nil)
		return
	}
	t.w.Notify(t.pos, f)
}
