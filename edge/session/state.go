package session

import (
	"encoding/binary"
	"slices"
	"time"

	"tidegate/buffer"
	"tidegate/message"
)

// Bytes of the records of session/state. The first record of a session is a snapshot; changes follow, and when they have
// become more than that, another snapshot: then the records before it are needed no more. An end stands behind the last one.
//
//	snapshot: version 1 | 1 | session | client text | user text | expiry | away | will | progress |
//	          subscriptions count, { subscription } | receives count, { id }
//	changes:  version 1 | 2 | session | { change 1 byte | its parts } ...
//	end:      version 1 | 3 | session
//
//	subscription: filter text | options 1 byte (QoS 2 bits, 4 no local, 8 retain as published, retain handling << 4) | id
//	will:         0, or 1 | flags 1 byte (1 pending, 2 delayed by us) | due | delay | expiry | user text | length, message
//	progress:     head | next id | count, { id | sequence less the one before (zigzag varint) | flags 1 byte }
//	              flags: QoS (2 bits), 4 retain, 8 released, 16 shared
//
// "away" is 0 while the client is connected, else 1 + how long it has been away when the record was written; "due" likewise
// is what was left of the will's delay then. What has passed since is told by the age of the record. "head" is the first
// message in session/messages that was not sent yet: the session waits for every message from there on that names it, and for
// those below that are listed as in flight.
const (
	kindSnapshot = 1
	kindChanges  = 2
	kindEnd      = 3
)

const (
	changeSubscribe   = 1 // subscription
	changeUnsubscribe = 2 // filter text
	changeAttach      = 3 // expiry | will
	changeDetach      = 4 // expiry
	changeWill        = 5 // will
	changeReceive     = 6 // id
	changeRelease     = 7 // id
	changeProgress    = 8 // progress
	changePubrec      = 9 // id
)

// Will is the will message of a client that is kept with its session.
type Will struct {
	// Msg is without ID, Received and Expires, which it gets when it is published.
	Msg message.Message
	// Delay and Expiry are the will delay interval and the message expiry interval; 0: none.
	Delay, Expiry time.Duration
	// User is whose rights it has.
	User string
	// Pending says that its connection has ended, and Due how much is left of the delay; Forced that the delay is the
	// gateway's.
	Pending, Forced bool
	Due             time.Duration
}

// flown is a message in flight.
type flown struct {
	id             uint16
	seq            buffer.Seq
	qos            message.QoS
	retain, shared bool
	released       bool
}

// progress says how far a session has come with its messages.
type progress struct {
	head   buffer.Seq
	next   uint16
	flight []flown
}

// state is what the disk says of a session.
type state struct {
	number       uint64
	client, user string
	expiry       time.Duration
	attached     bool
	away         time.Duration // how long it has been away, as of now
	will         *Will
	progress     progress
	subs         []*Subscription
	receives     []uint16
}

func appendDuration(b []byte, d time.Duration) []byte {
	return binary.AppendUvarint(b, uint64(max(d.Milliseconds(), 0)))
}

func appendSubscription(b []byte, s *Subscription) []byte {
	options := byte(s.QoS) | s.RetainHandling<<4
	if s.NoLocal {
		options |= 4
	}
	if s.RetainAsPublished {
		options |= 8
	}
	b = append(appendString(b, s.Filter), options)
	return binary.AppendUvarint(b, uint64(s.ID))
}

func (d *decoder) subscription() *Subscription {
	s := &Subscription{Filter: d.text()}
	o := d.byte()
	s.QoS, s.NoLocal, s.RetainAsPublished, s.RetainHandling = message.QoS(o&3), o&4 != 0, o&8 != 0, o>>4
	s.ID = uint32(d.uvarint())
	if s.QoS > 2 || s.RetainHandling > 2 || message.ValidFilter(s.Filter) != nil {
		d.fail()
	}
	if s.ID > 0 {
		s.ids = []uint32{s.ID}
	}
	return s
}

func appendWill(b []byte, w *Will) []byte {
	if w == nil {
		return append(b, 0)
	}
	flags := byte(0)
	if w.Pending {
		flags |= 1
	}
	if w.Forced {
		flags |= 2
	}
	msg, err := w.Msg.AppendBinary(nil)
	if err != nil {
		return append(b, 0) // its topic was checked; a will that cannot be encoded is none
	}
	b = append(b, 1, flags)
	b = appendDuration(appendDuration(appendDuration(b, w.Due), w.Delay), w.Expiry)
	return appendBytes(appendString(b, w.User), msg)
}

// will reads a will that was written age ago.
func (d *decoder) will(age time.Duration) *Will {
	if d.byte() == 0 || d.err != nil {
		return nil
	}
	flags := d.byte()
	w := &Will{Pending: flags&1 != 0, Forced: flags&2 != 0}
	w.Due, w.Delay, w.Expiry = d.duration(), d.duration(), d.duration()
	w.User = d.text()
	raw := d.take(d.uvarint())
	if d.err != nil {
		return nil
	}
	m, err := message.Decode(raw)
	if err != nil {
		d.fail()
		return nil
	}
	w.Msg = *own(&m)
	if w.Pending {
		w.Due = max(w.Due-age, 0)
	}
	return w
}

// maxMillis is the longest duration that is read, far above all that are written.
const maxMillis = 1 << 43

func (d *decoder) duration() time.Duration {
	return time.Duration(min(d.uvarint(), maxMillis)) * time.Millisecond
}

func appendProgress(b []byte, p *progress) []byte {
	b = binary.AppendUvarint(b, uint64(p.head))
	b = binary.AppendUvarint(b, uint64(p.next))
	b = binary.AppendUvarint(b, uint64(len(p.flight)))
	before := p.head
	for i := range p.flight {
		f := &p.flight[i]
		flags := byte(f.qos)
		for _, x := range []struct {
			set bool
			bit byte
		}{{f.retain, 4}, {f.released, 8}, {f.shared, 16}} {
			if x.set {
				flags |= x.bit
			}
		}
		b = binary.AppendUvarint(b, uint64(f.id))
		b = binary.AppendVarint(b, int64(f.seq-before))
		b = append(b, flags)
		before = f.seq
	}
	return b
}

func (d *decoder) progress() (p progress) {
	p.head, p.next = buffer.Seq(d.uvarint()), d.id()
	n := d.count()
	before := p.head
	for range n {
		f := flown{id: d.id()}
		delta, width := binary.Varint(d.b)
		if width <= 0 {
			d.fail()
			return p
		}
		d.b = d.b[width:]
		f.seq = before + buffer.Seq(delta)
		before = f.seq
		flags := d.byte()
		f.qos, f.retain, f.released, f.shared = message.QoS(flags&3), flags&4 != 0, flags&8 != 0, flags&16 != 0
		if f.id == 0 || f.qos == 0 || f.qos > 2 || flags > 31 {
			d.fail()
			return p
		}
		p.flight = append(p.flight, f)
	}
	return p
}

func appendHead(b []byte, kind byte, number uint64) []byte {
	return binary.AppendUvarint(append(b, recordVersion, kind), number)
}

// appendSnapshot appends all of st.
func appendSnapshot(b []byte, st *state) []byte {
	b = appendHead(b, kindSnapshot, st.number)
	b = appendString(appendString(b, st.client), st.user)
	b = appendDuration(b, st.expiry)
	if st.attached {
		b = append(b, 0)
	} else {
		b = binary.AppendUvarint(b, 1+uint64(max(st.away.Milliseconds(), 0)))
	}
	b = appendProgress(appendWill(b, st.will), &st.progress)
	b = binary.AppendUvarint(b, uint64(len(st.subs)))
	for _, s := range st.subs {
		b = appendSubscription(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(st.receives)))
	for _, id := range st.receives {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}

// stateHead reads the kind and the session of a record.
func (d *decoder) stateHead() (kind byte, number uint64) {
	d.version()
	return d.byte(), d.uvarint()
}

// snapshot reads the rest of a snapshot that was written age ago.
func (d *decoder) snapshot(number uint64, age time.Duration) *state {
	st := &state{number: number, client: d.text(), user: d.text(), expiry: d.duration()}
	if away := d.uvarint(); away == 0 {
		st.attached = true
	} else {
		st.away = time.Duration(min(away-1, maxMillis))*time.Millisecond + age
	}
	st.will = d.will(age)
	st.progress = d.progress()
	for range d.count() {
		if s := d.subscription(); d.err == nil {
			st.subs = append(st.subs, s)
		}
	}
	for range d.count() {
		st.receives = append(st.receives, d.id())
	}
	if len(d.b) > 0 {
		d.fail()
	}
	return st
}

// changes applies the rest of a record of changes that was written age ago.
func (d *decoder) changes(st *state, age time.Duration) {
	for len(d.b) > 0 && d.err == nil {
		switch d.byte() {
		case changeSubscribe:
			if s := d.subscription(); d.err == nil {
				st.subscribe(s)
			}
		case changeUnsubscribe:
			st.unsubscribe(d.text())
		case changeAttach:
			st.attached, st.expiry = true, d.duration()
			st.will = d.will(age)
		case changeDetach:
			st.attached, st.expiry, st.away = false, d.duration(), age
		case changeWill:
			st.will = d.will(age)
		case changeReceive:
			id := d.id()
			st.release(id)
			st.receives = append(st.receives, id)
		case changeRelease:
			st.release(d.id())
		case changeProgress:
			st.progress = d.progress()
		case changePubrec:
			st.pubrec(d.id())
		default:
			d.fail()
		}
	}
}

func (st *state) subscribe(s *Subscription) {
	st.unsubscribe(s.Filter)
	st.subs = append(st.subs, s)
}

func (st *state) unsubscribe(filter string) {
	st.subs = slices.DeleteFunc(st.subs, func(s *Subscription) bool { return s.Filter == filter })
}

func (st *state) release(id uint16) {
	st.receives = slices.DeleteFunc(st.receives, func(x uint16) bool { return x == id })
}

func (st *state) pubrec(id uint16) {
	for i := range st.progress.flight {
		if f := &st.progress.flight[i]; f.id == id {
			f.released, f.seq = true, 0
		}
	}
}
