package buffer

import (
	"bytes"
	"encoding/hex"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

// golden builds a segment with everything the format has, with fixed numbers.
func golden() []byte {
	const salt, epoch = 0x1122334455667788, 7
	b := make([]byte, dataStart)
	putSegmentHeader(b, segmentHeader{flags: flagDelayedSync, salt: salt, index: 3, first: 41, epoch: epoch, origin: 1700000000000, size: 262144})
	add := func(f *frameBuilder) {
		framed, err := f.finish(&vault{}, &segment{salt: salt, index: 3}, int64(len(b)))
		if err != nil {
			panic(err)
		}
		b = append(b, framed[:len(framed)-endMarkLen]...)
	}
	a := &Queue{id: 1, name: "uplink/cloud/normal", next: 10, stored: 9, evicted: 4, damaged: 2}
	a.done.add(1, 5)
	a.done.add(7, 8)
	a.losses = lossList{list: []Loss{{Evicted, epoch, 3, 4}, {OwnReason, epoch, 1, 1}}, total: 5, noted: 2}
	u := &Queue{id: 300, name: "uplink/cloud/urgent", next: 2, stored: 1}
	states := func(kind frameKind, section sectionKind, named bool) *frameBuilder {
		f := newFrame(kind, nil, 1700000000001)
		f.first = 41
		f.addStates(section, 301, []*Queue{a, u}, func(*Queue) bool { return named })
		return f
	}
	add(states(frameCheckpoint, sectionQueues, true))

	f := newFrame(frameCommit, nil, 1700000000002)
	f.first = 41
	e1, e2 := f.entry(a, epoch, 10), f.entry(u, epoch, 2)
	f.add(e1, 10, 1700000000002, never, []byte("first"))
	f.add(e2, 2, 1700000000003, 1700000060000, nil)
	f.add(e1, 11, 1700000000000, 1600000000000, bytes.Repeat([]byte{0xee}, 200))
	f.addAlike(e2, 3, 1700000000000, never, []byte("same end "), bytes.Repeat([]byte{0xee}, 40))
	f.closeRecords(epoch)
	add(f)

	f = newFrame(frameRelocated, nil, 1700000000100)
	f.first = 44
	e := f.entry(a, 2, 6)
	f.add(e, 6, 1690000000000, never, []byte("moved"))
	f.add(e, 9, 1690000000009, never, []byte("moved too"))
	f.closeRecords(epoch)
	add(f)
	add(states(frameCommit, sectionCursors, false))

	f = newFrame(frameSeal, nil, 1700000000200)
	f.first = 44
	f.addSection(sectionExtents, func(b []byte) ([]byte, int) {
		b = appendExtent(b, extentState{1, 10, 11, 2200, 2600, 2, 237, never})
		return appendExtent(b, extentState{300, 2, 2, 2200, 2600, 1, 16, 1700000060000}), 2
	})
	sealAt := int64(len(b))
	add(f)
	putSealSlot(b[slotAt:], salt, sealAt)
	var mark [endMarkLen]byte
	putEndMark(mark[:], salt, int64(len(b)))
	b = append(b, mark[:]...)
	b = append(b, make([]byte, (tailLen-len(b)%tailLen)%tailLen+tailLen)...)
	copy(b[len(b)-tailLen:], b[:segmentHeaderLen])
	return b
}

// TestGoldenBytes holds the format still: files written by any version must stay readable.
func TestGoldenBytes(t *testing.T) {
	got := hex.Dump(golden())
	path := filepath.Join("testdata", "segment.hex")
	if *updateGolden {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Fatalf("the format changed:\n got %s\nwant %s", g[i], w[i])
			}
		}
		t.Fatalf("the format changed: %d lines, want %d", len(g), len(w))
	}
}

// TestReadGolden reads the golden segment back, and that of version 1.
func TestReadGolden(t *testing.T) {
	readGolden(t, golden(), 2)
	text, err := os.ReadFile(filepath.Join("testdata", "segment-1.hex"))
	if err != nil {
		t.Fatal(err)
	}
	readGolden(t, undump(t, string(text)), 1)
}

// undump is the inverse of hex.Dump.
func undump(t *testing.T, text string) (b []byte) {
	t.Helper()
	for line := range strings.Lines(text) {
		if len(line) < 60 {
			continue // the length
		}
		part, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, part...)
	}
	return b
}

func readGolden(t *testing.T, b []byte, want uint16) {
	t.Helper()
	h, version := readSegmentHeader(b)
	if version != want || h != (segmentHeader{flags: flagDelayedSync, salt: 0x1122334455667788, index: 3, first: 41, epoch: 7, origin: 1700000000000, size: 262144}) {
		t.Fatalf("header %+v, version %d", h, version)
	}
	if tail, version := readHeaderCopy(b[len(b)-tailLen:]); version != want || tail != h {
		t.Fatalf("header at the end %+v, version %d", tail, version)
	}
	m := newMemFS()
	f := &memFile{fs: m, data: b}
	var w window
	w.reset(f, h.salt)
	s := &segment{index: 3, salt: h.salt, epoch: h.epoch, first: h.first}
	out := scan(&w, s, int64(len(b)), nil)
	added := int(want - 1) // version 2 has one record more
	if out.torn || !out.sealed || len(out.bad) > 0 || int(out.next) != 44+added || len(out.pieces) != 3 || len(out.updates) != 2 {
		t.Fatalf("%+v", out)
	}
	st := out.updates[0].states
	if st[0].name != "uplink/cloud/normal" || st[0].next != 10 || st[0].done.floor != 5 || st[0].done.spans[0] != (span{7, 8}) ||
		st[0].evicted != 4 || st[0].damaged != 2 || st[1].id != 300 || out.updates[0].nextID != 301 || !out.updates[0].whole {
		t.Fatalf("%+v", out.updates[0])
	}
	if want > 1 && !reflect.DeepEqual(st[0].losses, lossList{list: []Loss{{Evicted, 7, 3, 4}, {OwnReason, 7, 1, 1}}, total: 5, noted: 2}) {
		t.Fatalf("losses %+v", st[0].losses)
	}
	at, ok := readSealSlot(b[slotAt:], h.salt)
	sealed, ok2 := readSeal(&w, s, at, int64(len(b)))
	if !ok || !ok2 || len(sealed.pieces) != 2 || sealed.pieces[0].extentState != (extentState{1, 10, 11, 2200, 2600, 2, 237, never}) {
		t.Fatalf("%v %v %+v", ok, ok2, sealed)
	}
	var got Batch
	p := pass{log: new(Log), queue: 1, seg: s, lo: 1, hi: math.MaxUint64}
	w.reset(f, h.salt)
	for off := int64(dataStart); ; {
		h, body, err := w.frame(off, int64(len(b)), true)
		if err != nil {
			break
		}
		if err := p.decode(&got, h, body, off); err != nil {
			t.Fatal(err)
		}
		off += h.total()
	}
	recs := got.Recs
	got.Recs = nil
	p.queue = 300
	if h, body, err := w.frame(out.pieces[0].start, int64(len(b)), true); err != nil || p.decode(&got, h, body, out.pieces[0].start) != nil {
		t.Fatal(err)
	}
	if len(got.Recs) != 1+added || want > 1 && string(got.Recs[1].Data) != "same end "+strings.Repeat("\xee", 40) {
		t.Fatalf("%+v", got.Recs)
	}
	if len(recs) != 4 || string(recs[0].Data) != "first" || recs[0].Epoch != 7 || recs[0].Lifetime() != 0 ||
		recs[1].Seq != 11 || recs[1].expires != 1600000000000 || recs[1].received != 1700000000000 ||
		recs[2].Seq != 6 || recs[2].Epoch != 2 || recs[3].Seq != 9 || string(recs[3].Data) != "moved too" {
		t.Fatalf("%+v", recs)
	}
}

// sealedGolden builds one frame with three sections of records: compressed, and sealed by either cipher.
func sealedGolden(t *testing.T) []byte {
	t.Helper()
	keyed := func(id uint64, k Key) *Queue { return &Queue{id: id, keys: keyring{k}} }
	aes, chacha := testKey(t, 1), testKey(t, 2)
	aes.cipher, chacha.cipher = cipherAES, cipherChaCha
	f := newFrame(frameCommit, nil, 1700000000000)
	f.first = 41
	for _, q := range []*Queue{{id: 1}, keyed(2, aes), keyed(3, chacha)} {
		e := f.entry(q, 7, 1)
		for i := range 3 {
			f.add(e, Seq(i+1), 1700000000000, never, bytes.Repeat([]byte{byte('a' + i)}, 40))
		}
	}
	c := compressor{on: true, records: 1}
	c.group(&f.groups[0])
	f.closeRecords(7)
	b, err := f.finish(&vault{}, &segment{salt: 0x1122334455667788, index: 3}, dataStart)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSealedGolden: frames that were compressed or sealed by any version stay readable. Another version of the compressor may make other
// bytes of the same records, so only reading is held still.
func TestSealedGolden(t *testing.T) {
	path := filepath.Join("testdata", "sealed.hex")
	if *updateGolden {
		if err := os.WriteFile(path, []byte(hex.Dump(sealedGolden(t))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for line := range strings.Lines(string(text)) {
		row, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, row...)
	}
	s := &segment{index: 3, salt: 0x1122334455667788, epoch: 7, first: 41}
	h, err := readFrameHeader(b, s.salt, dataStart)
	if err != nil {
		t.Fatal(err)
	}
	for id := range uint64(3) {
		var got Batch
		p := pass{log: new(Log), queue: id + 1, seg: s, keys: keyring{testKey(t, 1), testKey(t, 2)}, lo: 1, hi: math.MaxUint64}
		if err := p.decode(&got, h, b[frameHeaderLen:h.total()], dataStart); err != nil || len(got.Recs) != 3 {
			t.Fatalf("queue %d: %d records, %v", id+1, len(got.Recs), err)
		}
		for i, r := range got.Recs {
			if r.Seq != Seq(i+1) || string(r.Data) != strings.Repeat(string(rune('a'+i)), 40) {
				t.Errorf("queue %d: %+v", id+1, r)
			}
		}
	}
}
