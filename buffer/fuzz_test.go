package buffer

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

// FuzzRecords decodes any bytes as a section of records: no panic, no more than is there; and what is encoded comes back.
func FuzzRecords(f *testing.F) {
	b := golden()
	f.Add(b[dataStart:], uint32(3), uint32(12))
	f.Add([]byte{0, 0, 0, 0, 1, 'x', 1, 1, 0, 1, 0, 1, 1}, uint32(1), uint32(7))
	f.Fuzz(func(t *testing.T, raw []byte, count, index uint32) {
		if uint64(index) > uint64(len(raw)) {
			return
		}
		s := section{sectionHeader{kind: sectionRecords, count: count, raw: uint32(len(raw)), stored: uint32(len(raw)), index: index}, nil, raw}
		entries, err := decodeIndex(nil, s, 9)
		if err != nil {
			return
		}
		for _, e := range entries {
			recs, err := decodeRecords(nil, raw[:len(raw)-int(index)], count, entries, 1000, e.queue, 1, math.MaxUint64)
			if err != nil {
				continue
			}
			for _, r := range recs {
				if len(r.Data) > 2*len(raw) { // a record and an end
					t.Fatal("more data than there are bytes")
				}
			}
		}
		if _, states, err := decodeQueueStates(s); err == nil {
			for i := range states {
				b := appendQueueState(nil, &states[i], states[i].name != "")
				back := section{sectionHeader{count: 1, raw: uint32(len(b) + 1), stored: uint32(len(b) + 1)}, nil, append([]byte{0}, b...)}
				_, again, err := decodeQueueStates(back)
				if err != nil || fmt.Sprint(again[0]) != fmt.Sprint(states[i]) {
					t.Fatalf("%+v comes back as %+v: %v", states[i], again, err)
				}
			}
		}
		_, _ = decodeExtents(s)
	})
}

// FuzzRecordCodec encodes records and decodes them.
func FuzzRecordCodec(f *testing.F) {
	f.Add([]byte("data"), uint64(1), uint64(3), int64(5), int64(9))
	f.Fuzz(func(t *testing.T, data []byte, first, skip uint64, received, expires int64) {
		if first == 0 || first > math.MaxUint64/2 || skip > 1<<40 || expires != expires<<2>>2 {
			return
		}
		q := &Queue{id: 5}
		b := newFrame(frameRelocated, nil, 1000)
		e := b.entry(q, 3, Seq(first))
		b.add(e, Seq(first), received, expires, data)
		b.add(e, Seq(first+1+skip), received, never, data)
		whole := append(bytes.Repeat([]byte("w"), leastEnd), data...)
		b.addAlike(b.entry(q, 3, Seq(first+10+skip)), Seq(first+10+skip), received, never, []byte("head"), data) // whole, or of the one before
		b.add(e, Seq(first+20+skip), received, never, whole)
		b.addAlike(e, Seq(first+21+skip), received, never, []byte("head"), whole)
		b.closeRecords(4)
		s, rest, err := nextSection(b.buf[frameHeaderLen:])
		if err != nil || len(rest) != 0 {
			t.Fatal(err)
		}
		entries, err := decodeIndex(nil, s, 4)
		if err != nil {
			t.Fatal(err)
		}
		recs, err := decodeRecords(nil, s.bytes[:s.raw-s.index], s.count, entries, 1000, 5, 1, math.MaxUint64)
		if err != nil || len(recs) != 5 {
			t.Fatalf("%d records: %v", len(recs), err)
		}
		if string(recs[2].Data) != "head"+string(data) || !bytes.Equal(recs[3].Data, whole) || string(recs[4].Data) != "head"+string(whole) {
			t.Fatalf("%+v", recs[2:])
		}
		r := recs[0]
		if r.Seq != Seq(first) || recs[1].Seq != Seq(first+1+skip) || r.Epoch != 3 || !bytes.Equal(r.Data, data) || r.received != received ||
			r.expires != expires || recs[1].expires != never {
			t.Fatalf("%+v", recs)
		}
	})
}

// FuzzSegment opens a log whose only segment was changed anywhere: it opens, and every record that is read was written.
func FuzzSegment(f *testing.F) {
	f.Add(uint16(2100), []byte{1, 2, 3})
	f.Add(uint16(0), []byte("TGS1"))
	f.Add(uint16(1024), bytes.Repeat([]byte{0xff}, 24))
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		m, want := fuzzBase(t)
		for _, file := range m.names {
			if len(file.data) > dataStart {
				copy(file.data[int(at)%len(file.data):], patch)
			}
		}
		l, err := Open("/log", Options{FS: m, SegmentBytes: 8 << 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range l.Queues() {
			if err := l.Lookup(st.Name).Scan(0, func(r Rec) bool {
				if want[st.Name][r.Seq] != string(r.Data) {
					t.Fatalf("%s: record %d is wrong", st.Name, r.Seq)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func fuzzBase(t *testing.T) (*memFS, map[string]map[Seq]string) {
	t.Helper()
	return sample(t, 4, true)
}

// FuzzFrames looks for frames in any bytes.
func FuzzFrames(f *testing.F) {
	f.Add(golden())
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMemFS()
		file := &memFile{fs: m, data: b}
		var w window
		w.reset(file, 0x1122334455667788)
		s := &segment{salt: 0x1122334455667788, epoch: 7, first: 1}
		out := scan(&w, s, int64(len(b)), nil)
		for _, r := range out.bad {
			if r.off < dataStart || r.end > int64(len(b)) || r.end <= r.off {
				t.Fatalf("bad region %+v of %d bytes", r, len(b))
			}
		}
		if at, ok := readSealSlot(append(b, make([]byte, dataStart)...)[slotAt:], s.salt); ok {
			_, _ = readSeal(&w, s, at, int64(len(b)))
		}
	})
}
