package buffer

import "time"

// frameBuilder gathers one frame. The space for the headers is kept free in front of the records.
type frameBuilder struct {
	kind    frameKind
	buf     []byte
	entries []indexEntry
	queues  []*Queue
	count   uint32
	// sections is filled in when they are closed.
	sections uint16
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

func newFrame(kind frameKind, buf []byte, base int64) *frameBuilder {
	if cap(buf) < frameHeaderLen+sectionHeaderLen {
		buf = make([]byte, 0, 4096)
	}
	return &frameBuilder{kind: kind, buf: buf[:frameHeaderLen+sectionHeaderLen], base: base}
}

// add encodes one record; entry is its number in the index.
func (f *frameBuilder) add(entry int, seq Seq, received, expires int64, data []byte) {
	e := &f.entries[entry]
	f.buf = appendRecord(f.buf, entry, uint64(seq-e.last-1), received-f.base, f.relative(expires), data)
	e.last = seq
	e.count++
	e.bytes += uint64(len(data))
	f.count++
	f.charge += chargeOf(data)
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
	f.entries = append(f.entries, indexEntry{queue: q.id, epoch: epoch, first: first, last: first - 1})
	f.queues = append(f.queues, q)
	return len(f.entries) - 1
}

// closeRecords ends the section of records. epoch is that of the segment.
func (f *frameBuilder) closeRecords(epoch uint64) {
	if f.count == 0 {
		f.buf = f.buf[:frameHeaderLen]
		return
	}
	records := len(f.buf)
	f.buf = appendIndex(f.buf, epoch, f.entries)
	raw := uint32(len(f.buf) - frameHeaderLen - sectionHeaderLen)
	putSectionHeader(f.buf[frameHeaderLen:], sectionHeader{
		kind: sectionRecords, count: f.count, raw: raw, stored: raw, index: uint32(len(f.buf) - records),
	})
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

// finish gives the bytes for off: the frame and an end mark.
func (f *frameBuilder) finish(salt uint64, off int64) []byte {
	h := frameHeader{kind: f.kind, sections: f.sections, count: f.count, first: f.first, base: f.base, expires: f.expires}
	if f.expires == never {
		h.expires = 0
	}
	finishFrame(f.buf, h, salt, off)
	n := len(f.buf)
	b := append(f.buf, make([]byte, endMarkLen)...)
	putEndMark(b[n:], salt, off+int64(n))
	f.buf = b[:n]
	return b
}

// last is the last position the frame takes.
func (f *frameBuilder) last() Pos { return f.first + uint64(f.count) - 1 }

func chargeOf(data []byte) int64 { return int64(len(data)) + recordOverhead }
