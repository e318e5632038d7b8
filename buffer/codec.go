package buffer

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Contents of the sections.
//
// records: the records one after the other, then the index (its length stands in the section header), which tells what the section
// holds without decoding the records.
//
//	record:  entry uvarint | skip uvarint | received varint (less base time) | expires uvarint | length uvarint | data
//	         entry uvarint | skip uvarint | received varint (less base time) | expires uvarint | 2^40+length uvarint | end uvarint | data
//	index:   entries uvarint | { queue uvarint | epochs back uvarint | first uvarint | last-first uvarint | count uvarint | bytes uvarint } ...
//
// "entry" is the record's number in the index. "skip" counts the sequences left out since the entry's record before it: 0 as appended,
// more where records were moved. "epochs back" is the segment's epoch less the record's. "expires" is 0 for never, else 1 + zigzag
// (expires less base time). "bytes" sums the data. A record of the second kind, since version 2, has behind its own data so many of the last
// bytes of the last record of the first kind before it.
//
// queues, cursors: the state of queues.
//
//	next queue uvarint | { queue uvarint | flags 1 | [name: length uvarint, bytes] | floor uvarint | next-floor uvarint | evicted uvarint |
//	damaged uvarint | spans uvarint | { gap uvarint | length uvarint } ... } ...
//
// Everything up to "floor" and in the spans is done with: acknowledged, evicted, purged, lost. A span begins "gap" behind the end of
// the one before (or the floor).
//
// extents: where the records of this segment lie.
//
//	{ queue uvarint | first uvarint | last-first uvarint | start uvarint | end-start uvarint | count uvarint | bytes uvarint | expires varint } ...
//
// "bytes" is here what the records are charged to their bound.
//
// ages, beside the extents in a seal: when the last record of each came in.
//
//	{ base time-newest uvarint } ...
//
// keys, beside them if any is sealed: the name of the key of each, 0 if it is plain.
//
//	{ key uvarint } ...
//
// losses, behind queues or cursors in the same frame, of those queues that ever had any: what is kept for their owners.
//
//	{ queue uvarint | noted uvarint | runs uvarint | { reason 1 | epoch varint | first varint | last-first uvarint } ... } ...
//
// "epoch" and "first" are less those of the run before, "first" less its last; the first run goes on from 0.
const (
	stateNamed   = 1
	stateDropped = 2

	// never stands for "does not expire" in memory; it is larger than every time.
	never = math.MaxInt64
)

// appendAge appends the age of an extent at base.
func appendAge(b []byte, base, newest int64) []byte {
	return binary.AppendUvarint(b, uint64(max(base-newest, 0)))
}

// decodeAges gives the log times of n extents.
func decodeAges(s section, base int64, n int) ([]int64, error) {
	d := decoder{b: s.bytes}
	if !s.plain() || int64(s.count) != int64(n) {
		return nil, fmt.Errorf("ages: %w", errBadContent)
	}
	at := make([]int64, 0, n)
	for range n {
		at = append(at, base-int64(min(d.uvarint(), math.MaxInt64/2)))
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("ages: %w", errBadContent)
	}
	return at, nil
}

// decodeKeys gives the names of the keys of n extents.
func decodeKeys(s section, n int) ([]uint32, error) {
	d := decoder{b: s.bytes}
	if !s.plain() || int64(s.count) != int64(n) {
		return nil, fmt.Errorf("keys: %w", errBadContent)
	}
	keys := make([]uint32, 0, n)
	for range n {
		keys = append(keys, uint32(d.uvarint()))
	}
	if d.bad || len(d.b) != 0 {
		return nil, fmt.Errorf("keys: %w", errBadContent)
	}
	return keys, nil
}

// indexEntry is what one section holds of one queue.
type indexEntry struct {
	queue       uint64
	epoch       uint64
	first, last Seq
	count       uint64
	bytes       uint64
	// expires and newest are the largest of the records. They are not on disk: there the header of the frame has what holds for all its
	// queues.
	expires, newest int64
	// charge is what the records are charged to their bound: their share of the frame, and not less than what they are.
	charge int64
	// key names the key that seals the records, 0 if none does. It is that of the section.
	key uint32
}

// decoder reads numbers and remembers the first failure.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		v := uint64(d.b[0])
		d.b = d.b[1:]
		return v
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// alike in a length says that the length of an end follows; no record is as long.
const alike = 1 << 40

// appendRecordHead appends what comes before a record's length.
func appendRecordHead(b []byte, entry int, skip uint64, received, expires int64) []byte {
	b = binary.AppendUvarint(b, uint64(entry))
	b = binary.AppendUvarint(b, skip)
	b = binary.AppendVarint(b, received)
	if expires == never {
		b = append(b, 0)
	} else {
		b = binary.AppendUvarint(b, 1+(uint64(expires<<1)^uint64(expires>>63)))
	}
	return b
}

// appendAlike appends the rest of a record whose last bytes, end of them, stand elsewhere.
func appendAlike(b, data []byte, end int) []byte {
	b = binary.AppendUvarint(b, alike+uint64(len(data)))
	b = binary.AppendUvarint(b, uint64(end))
	return append(b, data...)
}

func appendIndex(b []byte, epoch uint64, entries []indexEntry) []byte {
	b = binary.AppendUvarint(b, uint64(len(entries)))
	for i := range entries {
		e := &entries[i]
		b = binary.AppendUvarint(b, e.queue)
		b = binary.AppendUvarint(b, epoch-e.epoch)
		b = binary.AppendUvarint(b, uint64(e.first))
		b = binary.AppendUvarint(b, uint64(e.last-e.first))
		b = binary.AppendUvarint(b, e.count)
		b = binary.AppendUvarint(b, e.bytes)
	}
	return b
}

// decodeIndex reads the index of a records section into dst.
func decodeIndex(dst []indexEntry, s section, epoch uint64) ([]indexEntry, error) {
	if !s.sound() {
		return dst, fmt.Errorf("records with codec %d, cipher %d: %w", s.codec, s.cipher, errBadContent)
	}
	d := decoder{b: s.bytes[s.stored-s.index:]}
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		return dst, fmt.Errorf("index: %w", errBadContent)
	}
	for range n {
		e := indexEntry{queue: d.uvarint(), epoch: epoch - d.uvarint(), first: Seq(d.uvarint()), key: s.key}
		e.last = e.first + Seq(d.uvarint())
		e.count, e.bytes = d.uvarint(), d.uvarint()
		if d.bad || e.last < e.first || e.first == 0 || e.count == 0 || e.count-1 > uint64(e.last-e.first) {
			return dst, fmt.Errorf("index: %w", errBadContent)
		}
		dst = append(dst, e)
	}
	if len(d.b) != 0 {
		return dst, fmt.Errorf("index: %w", errBadContent)
	}
	return dst, nil
}

// wanted tells whether there are records of queue with lo <= sequence <= hi.
func wanted(entries []indexEntry, queue uint64, lo, hi Seq) bool {
	for i := range entries {
		if e := &entries[i]; e.queue == queue && e.first <= hi && e.last >= lo {
			return true
		}
	}
	return false
}

// decodeRecords appends the records of queue with lo <= sequence <= hi to dst, out of the count plain records in b. Their data alias b, but
// those that end like another.
func decodeRecords(dst []Rec, b []byte, count uint32, entries []indexEntry, base int64, queue uint64, lo, hi Seq) ([]Rec, error) {
	last := make([]Seq, 0, 8)
	for i := range entries {
		last = append(last, entries[i].first-1)
	}
	d := decoder{b: b}
	var whole []byte
	for range count {
		entry, skip, received, expires := d.uvarint(), d.uvarint(), d.varint(), d.uvarint()
		n, end := d.uvarint(), uint64(0)
		if n >= alike {
			n -= alike
			end = d.uvarint()
		}
		data := d.bytes(n)
		if d.bad || entry >= uint64(len(entries)) || end > uint64(len(whole)) {
			return dst, fmt.Errorf("record: %w", errBadContent)
		}
		if end == 0 {
			whole = data
		}
		seq := last[entry] + 1 + Seq(skip)
		last[entry] = seq
		e := &entries[entry]
		if e.queue != queue || seq < lo || seq > hi {
			continue
		}
		if end > 0 {
			data = slices.Concat(data, whole[uint64(len(whole))-end:])
		}
		r := Rec{Seq: seq, Epoch: e.epoch, Data: data, received: base + received, expires: never}
		if expires != 0 {
			expires--
			r.expires = base + (int64(expires>>1) ^ -int64(expires&1))
		}
		dst = append(dst, r)
	}
	if len(d.b) != 0 {
		return dst, fmt.Errorf("records: %w", errBadContent)
	}
	return dst, nil
}

// queueState is what the log remembers of a queue apart from its records.
type queueState struct {
	id      uint64
	name    string // empty in a cursor that leaves it out
	dropped bool
	done    seqSet
	next    Seq
	evicted uint64
	damaged uint64
	// losses stands in a section of its own.
	losses lossList
}

func appendQueueState(b []byte, q *queueState, named bool) []byte {
	b = binary.AppendUvarint(b, q.id)
	var flags byte
	if named {
		flags |= stateNamed
	}
	if q.dropped {
		flags |= stateDropped
	}
	b = append(b, flags)
	if named {
		b = binary.AppendUvarint(b, uint64(len(q.name)))
		b = append(b, q.name...)
	}
	b = binary.AppendUvarint(b, uint64(q.done.floor))
	b = binary.AppendUvarint(b, uint64(q.next-q.done.floor))
	b = binary.AppendUvarint(b, q.evicted)
	b = binary.AppendUvarint(b, q.damaged)
	b = binary.AppendUvarint(b, uint64(len(q.done.spans)))
	at := q.done.floor
	for _, s := range q.done.spans {
		b = binary.AppendUvarint(b, uint64(s.lo-at))
		b = binary.AppendUvarint(b, uint64(s.hi-s.lo))
		at = s.hi
	}
	return b
}

// decodeQueueStates reads a section of queues or cursors.
func decodeQueueStates(s section) (nextID uint64, states []queueState, err error) {
	if !s.plain() {
		return 0, nil, fmt.Errorf("queues: %w", errBadContent)
	}
	d := decoder{b: s.bytes}
	nextID = d.uvarint()
	for range s.count {
		q := queueState{id: d.uvarint()}
		flags := d.bytes(1)
		if d.bad {
			break
		}
		q.dropped = flags[0]&stateDropped != 0
		if flags[0]&stateNamed != 0 {
			q.name = string(d.bytes(d.uvarint()))
		}
		q.done.floor = Seq(d.uvarint())
		q.next = q.done.floor + Seq(d.uvarint())
		q.evicted, q.damaged = d.uvarint(), d.uvarint()
		n := d.uvarint()
		if d.bad || n > uint64(len(d.b)) {
			d.bad = true
			break
		}
		at := q.done.floor
		for range n {
			lo := at + Seq(d.uvarint())
			hi := lo + Seq(d.uvarint())
			if d.bad || lo <= at || hi < lo {
				return 0, nil, fmt.Errorf("queues: %w", errBadContent)
			}
			q.done.spans = append(q.done.spans, span{lo, hi})
			at = hi
		}
		states = append(states, q)
	}
	if d.bad || len(d.b) != 0 {
		return 0, nil, fmt.Errorf("queues: %w", errBadContent)
	}
	return nextID, states, nil
}

// extentState is an extent as the seal frame keeps it.
type extentState struct {
	queue       uint64
	first, last Seq
	start, end  int64
	count       uint64
	bytes       uint64
	expires     int64
}

func appendExtent(b []byte, e extentState) []byte {
	b = binary.AppendUvarint(b, e.queue)
	b = binary.AppendUvarint(b, uint64(e.first))
	b = binary.AppendUvarint(b, uint64(e.last-e.first))
	b = binary.AppendUvarint(b, uint64(e.start))
	b = binary.AppendUvarint(b, uint64(e.end-e.start))
	b = binary.AppendUvarint(b, e.count)
	b = binary.AppendUvarint(b, e.bytes)
	return binary.AppendVarint(b, e.expires)
}

func decodeExtents(s section) ([]extentState, error) {
	if !s.plain() {
		return nil, fmt.Errorf("extents: %w", errBadContent)
	}
	d := decoder{b: s.bytes}
	var es []extentState
	for range s.count {
		e := extentState{queue: d.uvarint(), first: Seq(d.uvarint())}
		e.last = e.first + Seq(d.uvarint())
		start, length := d.uvarint(), d.uvarint()
		e.start, e.end = int64(start), int64(start+length)
		e.count, e.bytes = d.uvarint(), d.uvarint()
		e.expires = d.varint()
		if d.bad || e.first == 0 || e.last < e.first || e.start < dataStart || e.end <= e.start || e.count == 0 {
			return nil, fmt.Errorf("extents: %w", errBadContent)
		}
		es = append(es, e)
	}
	if len(d.b) != 0 {
		return nil, fmt.Errorf("extents: %w", errBadContent)
	}
	return es, nil
}
