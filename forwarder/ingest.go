package forwarder

import (
	"errors"
	"fmt"
	"time"

	"tidegate/buffer"
	"tidegate/forwarder/pipeline"
	"tidegate/message"
)

// scratch is the memory of one Ingest, used again by the next: the buffer copies what it takes.
type scratch struct {
	copies  []pipeline.Copy
	bytes   []byte
	ends    []int // where each record ends in bytes
	letter  []byte
	records []buffer.Record
	last    likeness
	head    []byte
	rider   buffer.Record
	stored  []stored
}

// likeness says in what the last record differs from the message as it came.
type likeness struct {
	at    int  // where the message begins in scratch.bytes
	plain bool // it differs in nothing but its head
	same  bool // it differs in nothing but its ID
}

// scratchKeep is the largest memory that is kept after a large message.
const scratchKeep = 64 << 10

// Ingest takes m over: a copy for each matching route and uplink is appended to the buffer, all of them or none. It waits
// neither for the disk nor for the network; the ticket tells when all copies are on disk. A message that no route wants has
// the zero ticket.
//
// On an error the message is still the caller's: message.ErrBusy when the buffer is full (one full uplink that refuses
// refuses for all), stopping, out of order or behind, message.ErrTooLarge when it can never fit. Where the disk is only
// behind, the error has a method After() message.Ticket: once that ticket is durable, it is worth another try.
func (f *Forwarder) Ingest(m message.Message) (message.Ticket, error) {
	return f.IngestWith(m, Riders{})
}

// Riders are records of somebody else that are appended with a message.
type Riders struct {
	// Must are taken as the message is. May are left out where the log has no room for them, which their Seq of 0 tells.
	Must, May []buffer.Record
	// Message says that the message itself follows behind the data of the first of May, as Message.AppendBinary writes it, but for its ID,
	// which may be that of a copy (message.ID.Copy). It is on disk once with its copy for an uplink where they are the same.
	Message bool
}

// IngestWith is Ingest with records of somebody else, which are appended in the same step: after a crash either all are there or
// none. With records the ticket is theirs, too, also where no route wants the message. Only the Seq of the records is changed.
func (f *Forwarder) IngestWith(m message.Message, with Riders) (message.Ticket, error) {
	if m.ID.IsZero() {
		m.ID = message.NewID()
	}
	if m.Received.IsZero() {
		m.Received = time.Now()
	}
	s := f.scratch.Get().(*scratch)
	defer f.putScratch(s)

	p := f.plan.Load()
	s.copies = p.chain.Process(s.copies[:0], &m)
	if len(s.copies) == 0 && len(with.Must)+len(with.May) == 0 {
		f.ledger.unrouted.Add(1)
		return message.Ticket{}, nil
	}
	err := p.encode(s, &m)
	if err == nil && with.Message {
		err = s.board(&with.May[0], &m)
	}
	if err != nil {
		p.refuse(s)
		return message.Ticket{}, err
	}
	pos, err := f.append(s, with)
	if err != nil {
		err = f.ingestError(err)
		if _, behind := err.(*behindError); !behind { // who is only asked to wait has not been refused
			p.refuse(s)
		}
		return message.Ticket{}, err
	}
	f.appended(pos)
	if len(s.copies) == 0 {
		f.ledger.unrouted.Add(1)
		return message.NewTicket(f.log, pos), nil
	}
	f.receipts.add(p.taken(s, pos, m.Received))
	return message.NewTicket(f.log, pos), nil
}

// board makes the rider that ends with the message. Where the last copy ends like it, it goes right behind that, without what is the same.
func (s *scratch) board(r *buffer.Record, m *message.Message) (err error) {
	s.rider = *r
	switch same := s.bytes[s.last.at:]; {
	case s.last.same:
		s.rider.SameEnd = len(same)
		return nil
	case s.last.plain:
		s.head = m.AppendHead(append(s.head[:0], r.Data...))
		s.rider.SameEnd = len(message.Rest(same))
	default:
		if s.head, err = m.AppendBinary(append(s.head[:0], r.Data...)); err != nil {
			return fmt.Errorf("ingest: %w", err)
		}
	}
	s.rider.Data = s.head
	return nil
}

// append appends the records of s with others, in one step.
func (f *Forwarder) append(s *scratch, with Riders) (buffer.Pos, error) {
	own := len(s.records)
	if len(with.May) > 0 {
		s.records = append(append(s.records, with.May...), with.Must...)
		if with.Message {
			s.records[own] = s.rider
		}
		pos, err := f.log.Append(s.records...)
		if err == nil {
			copySeqs(with.May, s.records[own:])
			copySeqs(with.Must, s.records[own+len(with.May):])
			return pos, nil
		}
		if errors.Is(err, buffer.ErrBusy) {
			return 0, err
		}
		s.records = s.records[:own]
	}
	s.records = append(s.records, with.Must...)
	pos, err := f.log.Append(s.records...)
	if err == nil {
		copySeqs(with.Must, s.records[own:])
	}
	return pos, err
}

func copySeqs(to, from []buffer.Record) {
	for i := range to {
		to[i].Seq = from[i].Seq
	}
}

// encode makes the buffer's records of the copies that are to be stored: a normal copy in its lane, one with an impossible
// topic as a dead letter.
func (p *plan) encode(s *scratch, m *message.Message) error {
	s.bytes, s.ends, s.records, s.last = s.bytes[:0], s.ends[:0], s.records[:0], likeness{}
	var err error
	for i := range s.copies {
		if c := &s.copies[i]; !c.Merged {
			shaped := *m
			c.Shape(&shaped)
			shaped.ID = m.ID.Copy(uint16(i + 1))
			if c.Err != nil && len(shaped.Topic) > maxTopic {
				shaped.Topic = shaped.Topic[:maxTopic] // what cannot be sent need not be kept whole, but it must be kept
			}
			if s.bytes, s.last.at, err = appendRecord(s.bytes, c.Route.Name, &shaped); err != nil {
				return fmt.Errorf("ingest: %w", err)
			}
			s.last.plain = c.Err == nil && shaped.Topic == m.Topic
			s.last.same = s.last.plain && shaped.QoS == m.QoS && shaped.Retain == m.Retain
		}
		s.ends = append(s.ends, len(s.bytes))
	}
	start := 0
	s.letter = s.letter[:0]
	for i := range s.copies {
		c := &s.copies[i]
		rec := s.bytes[start:s.ends[i]:s.ends[i]]
		start = s.ends[i]
		out := p.outs[c.Uplink]
		switch {
		case c.Merged:
		case c.Err != nil:
			var r buffer.Record
			s.letter, r = out.dead.record(s.letter, c.Err.Error(), rec)
			s.records = append(s.records, r)
		default:
			s.records = append(s.records, buffer.Record{Queue: out.queues[c.Route.Lane], Data: rec, Lifetime: lifetime(m, c.Route.Expire)})
		}
	}
	return nil
}

// lifetime is how long a copy of m is worth sending, from its arrival on: what its sender said, or the route, whichever is shorter;
// 0: without end.
func lifetime(m *message.Message, route time.Duration) time.Duration {
	if m.Expires.IsZero() {
		return route
	}
	own := max(m.Expires.Sub(m.Received), time.Millisecond)
	if route > 0 {
		return min(own, route)
	}
	return own
}

// maxTopic is the longest topic that a message can be encoded with.
const maxTopic = 65535

// taken counts the copies after their append.
func (p *plan) taken(s *scratch, pos buffer.Pos, at time.Time) arrival {
	s.stored = s.stored[:0]
	for i := range s.copies {
		c := &s.copies[i]
		k := p.cells[c.Route.Index][c.Uplink]
		switch {
		case c.Merged:
			k.take(placeMerged)
			s.stored = append(s.stored, stored{k, placeMerged})
		case c.Err != nil:
			k.take(placeDead)
			s.stored = append(s.stored, stored{k, placeDead})
		default:
			k.takeBuffered()
			s.stored = append(s.stored, stored{k, placeCount})
		}
	}
	a := arrival{pos: pos, at: at, first: s.stored[0]}
	if len(s.stored) > 1 {
		a.others = append(a.others, s.stored[1:]...)
	}
	return a
}

// appended remembers the last position.
func (f *Forwarder) appended(pos buffer.Pos) {
	for {
		last := f.lastPos.Load()
		if pos <= last || f.lastPos.CompareAndSwap(last, pos) {
			return
		}
	}
}

// refuse counts the copies of a message that was not taken.
func (p *plan) refuse(s *scratch) {
	for i := range s.copies {
		c := &s.copies[i]
		p.cells[c.Route.Index][c.Uplink].take(placeRefused)
	}
}

// ingestError translates an error of the buffer into the words between packages.
func (f *Forwarder) ingestError(err error) error {
	switch {
	case errors.Is(err, buffer.ErrTooLarge):
		return fmt.Errorf("ingest: %w: %w", message.ErrTooLarge, err)
	case errors.Is(err, buffer.ErrBusy):
		return &behindError{err: err, after: message.NewTicket(f.log, f.lastPos.Load())}
	}
	return fmt.Errorf("ingest: %w: %w", message.ErrBusy, err)
}

// behindError says that the disk is behind: nothing is full, but too much waits to be written. It is a message.ErrBusy for
// those who do not ask further. Who can make its device wait, which is kinder than to refuse, waits for After and tries
// again.
type behindError struct {
	err   error
	after message.Ticket
}

func (e *behindError) Error() string {
	return "ingest: " + message.ErrBusy.Error() + ": " + e.err.Error()
}
func (e *behindError) Unwrap() []error { return []error{message.ErrBusy, e.err} }

// After returns the ticket of what was appended last; when that is durable there is room again.
func (e *behindError) After() message.Ticket { return e.after }

// putScratch keeps the memory for the next message, without what it points to.
func (f *Forwarder) putScratch(s *scratch) {
	clear(s.copies)
	clear(s.records)
	s.rider = buffer.Record{}
	if max(cap(s.bytes), cap(s.letter), cap(s.head)) > scratchKeep {
		s.bytes, s.letter, s.head = nil, nil, nil
	}
	f.scratch.Put(s)
}
