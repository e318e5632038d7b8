package buffer

import (
	"encoding/binary"
	"time"
)

// frameBuilder gathers one frame: first its records, by the key they will be sealed with, then the other sections.
type frameBuilder struct {
	kind frameKind
	// buf is the frame, with space for its header. The records of the first group gather right in it.
	buf     []byte
	entries []indexEntry
	queues  []*Queue
	// slots says, for each entry, where its records are.
	slots  []entrySlot
	groups []recordGroup
	// whole is the group of the last record that has its data whole.
	whole int
	count uint32
	// size is how many bytes were gathered, headers included.
	size int
	// sections is filled in when they are closed; seals are those to be encrypted when the frame's place is known.
	sections uint16
	seals    []sealWork
	first    Pos
	// began is when the first record was added.
	began   time.Time
	base    int64
	expires int64
	// charge is what the records are charged to their bounds.
	charge int64
	// waiting is what the frame adds to Log.gathered.
	waiting int64
}

// recordGroup is a section of records in the making.
type recordGroup struct {
	key Key // zero: the records are not encrypted
	// buf begins with space for the section's header, in the first group behind that for the frame's.
	buf     []byte
	start   int
	entries []indexEntry // only filled in where there are several groups
	count   uint32
	// raw is the length of the records before they were compressed by codec.
	raw   int
	codec uint8
}

func (g *recordGroup) records() []byte { return g.buf[g.start+sectionHeaderLen:] }

type entrySlot struct{ group, number int }

// sealWork is a section of a frame: where its header stands in the frame, and the length of its records.
type sealWork struct {
	key Key
	at  int
	n   int
}

func newFrame(kind frameKind, buf []byte, base int64) *frameBuilder {
	if cap(buf) < frameHeaderLen+sectionHeaderLen {
		buf = make([]byte, 0, 4096)
	}
	return &frameBuilder{kind: kind, buf: buf[:frameHeaderLen], size: frameHeaderLen, base: base}
}

// add encodes one record; entry is its number in the index.
func (f *frameBuilder) add(entry int, seq Seq, received, expires int64, data []byte) {
	f.addAlike(entry, seq, received, expires, data, nil)
	f.whole = f.slots[entry].group
}

// leastEnd is what is worth not to be written twice.
const leastEnd = 32

// addAlike encodes a record that ends like the last one that was added whole.
func (f *frameBuilder) addAlike(entry int, seq Seq, received, expires int64, data, end []byte) {
	e, slot := &f.entries[entry], f.slots[entry]
	g := &f.groups[slot.group]
	before := len(g.buf)
	g.buf = appendRecordHead(g.buf, slot.number, uint64(seq-e.last-1), received-f.base, f.relative(expires))
	if len(end) >= leastEnd && slot.group == f.whole {
		g.buf = appendAlike(g.buf, data, len(end))
	} else {
		g.buf = binary.AppendUvarint(g.buf, uint64(len(data)+len(end)))
		g.buf = append(append(g.buf, data...), end...)
	}
	f.size += len(g.buf) - before
	n := len(data) + len(end)
	e.last = seq
	e.count++
	e.bytes += uint64(n)
	g.count++
	f.count++
	f.charge += chargeOf(n)
	e.expires, e.newest = max(e.expires, expires), max(e.newest, received)
	f.expires = max(f.expires, expires)
}

func (f *frameBuilder) relative(expires int64) int64 {
	if expires == never {
		return never
	}
	return expires - f.base
}

// entry opens an index entry for records of q from first on.
func (f *frameBuilder) entry(q *Queue, epoch uint64, first Seq) int {
	key, _ := q.keys.first()
	group, number := f.group(key), 0
	for _, s := range f.slots {
		if s.group == group {
			number++
		}
	}
	f.entries = append(f.entries, indexEntry{queue: q.id, epoch: epoch, first: first, last: first - 1, key: key.id})
	f.queues = append(f.queues, q)
	f.slots = append(f.slots, entrySlot{group, number})
	return len(f.entries) - 1
}

// group finds or makes the group of a key.
func (f *frameBuilder) group(key Key) int {
	for i := range f.groups {
		if f.groups[i].key.id == key.id {
			return i
		}
	}
	g := recordGroup{key: key}
	if len(f.groups) == 0 {
		g.buf, g.start = f.buf[:frameHeaderLen+sectionHeaderLen], frameHeaderLen
	} else {
		g.buf = make([]byte, sectionHeaderLen, 4096)
	}
	f.size += sectionHeaderLen
	f.groups = append(f.groups, g)
	return len(f.groups) - 1
}

// closeRecords ends the sections of records. epoch is that of the segment.
func (f *frameBuilder) closeRecords(epoch uint64) {
	if len(f.groups) > 1 {
		for i, s := range f.slots {
			g := &f.groups[s.group]
			g.entries = append(g.entries, f.entries[i])
		}
	}
	for i := range f.groups {
		g := &f.groups[i]
		if len(f.groups) == 1 {
			g.entries = f.entries
		}
		at := len(f.buf)
		if g.start > 0 {
			at = g.start
		}
		f.closeGroup(g, epoch, at)
		if g.start > 0 {
			f.buf = g.buf
		} else {
			f.buf = append(f.buf, g.buf...)
		}
	}
	f.groups = nil
}

// closeGroup ends one section, which will stand at at in the frame.
func (f *frameBuilder) closeGroup(g *recordGroup, epoch uint64, at int) {
	n := len(g.records())
	if g.codec == codecNone {
		g.raw = n
	}
	h := sectionHeader{kind: sectionRecords, codec: g.codec, count: g.count}
	if g.key.id != 0 {
		h.cipher, h.key = g.key.cipher, g.key.id
		f.seals = append(f.seals, sealWork{g.key, at, n})
		g.buf = append(g.buf, make([]byte, tagBytes)...)
	}
	index := len(g.buf)
	g.buf = appendIndex(g.buf, epoch, g.entries)
	h.index = uint32(len(g.buf) - index)
	h.raw = uint32(g.raw) + h.index
	h.stored = uint32(len(g.records()))
	putSectionHeader(g.buf[g.start:], h)
	f.sections++
}

// addSection appends a section made by fill, which returns how many things it wrote.
func (f *frameBuilder) addSection(kind sectionKind, fill func(b []byte) ([]byte, int)) {
	at := len(f.buf)
	f.buf = append(f.buf, make([]byte, sectionHeaderLen)...)
	var n int
	f.buf, n = fill(f.buf)
	raw := uint32(len(f.buf) - at - sectionHeaderLen)
	putSectionHeader(f.buf[at:], sectionHeader{kind: kind, count: uint32(n), raw: raw, stored: raw})
	f.sections++
}

// addStates appends the states of queues, and behind them what is kept for their owners. named says whose name is written too. Log.mu is held.
func (f *frameBuilder) addStates(kind sectionKind, nextID uint64, qs []*Queue, named func(q *Queue) bool) {
	var losses []queueState
	f.addSection(kind, func(b []byte) ([]byte, int) {
		b = appendUint(b, nextID)
		for _, q := range qs {
			st := q.state()
			b = appendQueueState(b, &st, named(q))
			if st.losses.total > 0 {
				losses = append(losses, st)
			}
		}
		return b, len(qs)
	})
	if len(losses) == 0 {
		return
	}
	f.addSection(sectionLosses, func(b []byte) ([]byte, int) {
		for i := range losses {
			b = appendLosses(b, losses[i].id, &losses[i].losses)
		}
		return b, len(losses)
	})
}

// addSections appends those of another frame, which has no records.
func (f *frameBuilder) addSections(of *frameBuilder) {
	f.buf = append(f.buf, of.buf[frameHeaderLen:]...)
	f.sections += of.sections
}

// finish gives the bytes for off in s: the frame, sealed where it has keys, and an end mark. The frame itself stays as it was, so that it
// can be written to another place.
func (f *frameBuilder) finish(v *vault, s *segment, off int64) ([]byte, error) {
	h := frameHeader{kind: f.kind, sections: f.sections, count: f.count, first: f.first, base: f.base, expires: f.expires}
	if f.expires == never {
		h.expires = 0
	}
	b := f.buf
	if len(f.seals) > 0 {
		var err error
		if b, err = v.seal(f, s, off); err != nil {
			return nil, err
		}
	}
	finishFrame(b, h, s.salt, off)
	n := len(b)
	out := append(b, make([]byte, endMarkLen)...)
	putEndMark(out[n:], s.salt, off+int64(n))
	if len(f.seals) > 0 {
		v.out = out
	} else {
		f.buf = out[:n]
	}
	return out, nil
}

// bound is what the frame takes at most with nothing but its records.
func (f *frameBuilder) bound() int64 {
	const entry = 8 * binary.MaxVarintLen64
	return int64(f.size + len(f.entries)*entry + len(f.groups)*(sectionHeaderLen+tagBytes))
}

// last is the last position the frame takes.
func (f *frameBuilder) last() Pos { return f.first + uint64(f.count) - 1 }

// share is the part of total bytes of the disk that falls to records of size part among those of size whole.
func share(total, part, whole int64) int64 {
	if whole <= 0 {
		return 0
	}
	return max(int64(float64(total)*(float64(part)/float64(whole))), 1)
}

// chargeOf is what a record of n bytes is charged to its bound at least.
func chargeOf(n int) int64 { return int64(n) + recordOverhead }
