package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sample makes a log of two queues with frames of known contents and gives its files: closed in order, or as a killed process leaves them.
func sample(t *testing.T, frames int, closed bool) (*memFS, map[string]map[Seq]string) {
	t.Helper()
	m := newMemFS()
	l, err := Open("/log", Options{FS: m, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	roomy := l.NewBound(1<<20, Refuse) // nothing is relocated: a frame holds three records
	a, b := queueOf(t, l, "a", QueueOptions{Bound: roomy}), queueOf(t, l, "b", QueueOptions{Bound: roomy})
	want := map[string]map[Seq]string{"a": {}, "b": {}}
	for i := range frames {
		recs := []Record{
			{Queue: a, Data: payload(i, 10+i)}, {Queue: b, Data: payload(1000+i, 20)}, {Queue: a, Data: payload(2000+i, 5)},
		}
		put(t, l, recs...)
		for _, r := range recs {
			want[r.Queue.Name()][r.Seq] = string(r.Data)
		}
	}
	if !closed {
		out := m.copyFS()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return out, want
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return m.copyFS(), want
}

// readAll opens the log, reads all queues and returns what was found; nothing may be wrong, whatever is missing.
func readAll(t *testing.T, m *memFS, want map[string]map[Seq]string) (found map[string]map[Seq]string, damaged uint64) {
	t.Helper()
	l, err := Open("/log", Options{FS: m, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}()
	found = map[string]map[Seq]string{}
	for _, st := range l.Queues() {
		if want[st.Name] == nil {
			t.Fatalf("there is a queue %q", st.Name)
		}
		found[st.Name] = map[Seq]string{}
		last := Seq(0)
		err := l.Lookup(st.Name).Scan(0, func(r Rec) bool {
			if r.Seq <= last {
				t.Fatalf("%s: record %d behind %d", st.Name, r.Seq, last)
			}
			last = r.Seq
			if string(r.Data) != want[st.Name][r.Seq] {
				t.Fatalf("%s: record %d is %.20q, want %.20q", st.Name, r.Seq, r.Data, want[st.Name][r.Seq])
			}
			found[st.Name][r.Seq] = string(r.Data)
			return true
		})
		if err != nil {
			t.Fatalf("%s: %v", st.Name, err)
		}
	}
	damaged = l.Stats().Damaged
	requireReported(t, l, found, damaged)
	return found, damaged
}

// requireReported wants every record that was found damaged before there was an owner to be reported to the one who comes, once.
func requireReported(t *testing.T, l *Log, found map[string]map[Seq]string, damaged uint64) {
	t.Helper()
	c := newCollector()
	var unheard, reported uint64
	for _, st := range l.Queues() {
		unheard += st.Unheard
		queueOf(t, l, st.Name, QueueOptions{OnDrop: c.onDrop})
		queueOf(t, l, st.Name, QueueOptions{OnDrop: c.onDrop}) // has nothing more to hear
		for _, seq := range c.got[Damaged][st.Name] {
			if _, there := found[st.Name][seq]; there {
				t.Fatalf("%s: record %d is there and was reported as damaged", st.Name, seq)
			}
			reported++
		}
	}
	var before uint64
	for _, st := range l.Queues() {
		before += st.Damaged
	}
	if reported != unheard || damaged > reported {
		t.Fatalf("%d records found damaged, %d unheard, %d reported (%d in all)", damaged, unheard, reported, before)
	}
}

// lostOf counts the records that were not found.
func lostOf(want, found map[string]map[Seq]string) uint64 {
	var n uint64
	for name, recs := range want {
		n += uint64(len(recs) - len(found[name]))
	}
	return n
}

// segmentFiles gives the segment files of a file system, and the length of what is used of them.
func segmentFiles(m *memFS) map[string]int {
	out := map[string]int{}
	for path, f := range m.names {
		if strings.HasSuffix(path, segmentSuffix) {
			used := len(bytes.TrimRight(f.data, "\x00"))
			out[path] = min(used+16, len(f.data))
		}
	}
	return out
}

// TestFlippedBit flips one bit at every byte of a small log, both closed and killed: it opens, loses at most the records of the frame
// that was hit, and never gives a wrong byte.
func TestFlippedBit(t *testing.T) {
	for _, closed := range []bool{true, false} {
		name := map[bool]string{true: "closed", false: "killed"}[closed]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, want := sample(t, 8, closed)
			if found, damaged := readAll(t, m.copyFS(), want); lostOf(want, found) != 0 || damaged != 0 {
				t.Fatal("the untouched log is not whole")
			}
			for path, size := range segmentFiles(m) {
				for at := range size {
					c := m.copyFS()
					c.names[path].data[at] ^= 1 << (at % 8)
					found, damaged := readAll(t, c, want)
					lost := lostOf(want, found)
					if lost > 3 {
						t.Fatalf("bit %d of byte %d of %s: %d records lost, a frame has 3", at%8, at, path, lost)
					}
					// A killed log does not know what its last frame held.
					if closed && damaged != lost || damaged > lost {
						t.Fatalf("byte %d of %s: %d records lost, %d counted", at, path, lost, damaged)
					}
					if again, _ := readAll(t, c, want); lostOf(want, again) != lost {
						t.Fatalf("byte %d of %s: the second start finds other records than the first", at, path)
					}
				}
			}
		})
	}
}

// TestCutAtEveryByte cuts the log at every byte, filling the rest with zeros or with other bytes: what stands before the cut is found, and
// what is appended then too.
func TestCutAtEveryByte(t *testing.T) {
	m, want := sample(t, 6, false)
	for path, size := range segmentFiles(m) {
		for _, fill := range []byte{0, 0xa5} {
			for at := dataStart; at < size; at++ {
				c := m.copyFS()
				data := c.names[path].data
				for i := at; i < len(data); i++ {
					data[i] = fill
				}
				frames := goodFrames(t, m.names[path], at)
				if whole := goodFrames(t, c.names[path], len(data)); whole == frames+1 {
					frames = whole // the frame that is cut ended in such bytes
				}
				checkCut(t, c, want, frames, fmt.Sprintf("%s cut at %d, then %#x", path, at, fill))
			}
		}
	}
}

// goodFrames counts the commits that end at or before a byte.
func goodFrames(t *testing.T, f *memFile, limit int) int {
	t.Helper()
	h, version := readSegmentHeader(f.data)
	if version == 0 {
		t.Fatal("no header")
	}
	var w window
	w.reset(f, h.salt)
	n := 0
	for off := int64(dataStart); ; {
		h, _, err := w.frame(off, int64(len(f.data)), true)
		if err != nil || off+h.total() > int64(limit) {
			return n
		}
		if off += h.total(); h.kind == frameCommit && h.count > 0 {
			n++
		}
	}
}

func checkCut(t *testing.T, c *memFS, want map[string]map[Seq]string, frames int, what string) {
	t.Helper()
	l, err := Open("/log", Options{FS: c, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() { _ = l.Close() }()
	got := 0
	for _, name := range []string{"a", "b"} {
		if frames == 0 {
			break // the names may be gone with the checkpoints
		}
		q := queueOf(t, l, name, QueueOptions{})
		if err := q.Scan(0, func(r Rec) bool {
			if string(r.Data) != want[name][r.Seq] {
				t.Fatalf("%s: record %d of %s is wrong", what, r.Seq, name)
			}
			got++
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got != 3*frames {
		t.Fatalf("%s: %d records, want %d", what, got, 3*frames)
	}
	q := queueOf(t, l, "a", QueueOptions{})
	rec := []Record{{Queue: q, Data: []byte("new")}}
	put(t, l, rec...)
	seen := false
	if err := q.Scan(rec[0].Seq-1, func(r Rec) bool {
		seen = string(r.Data) == "new"
		return true
	}); err != nil || !seen {
		t.Fatalf("%s: the new record is not there: %v", what, err)
	}
}

// TestFlippedBitInSegments flips bits here and there in a log of several segments with acknowledged records in it, that was closed.
func TestFlippedBitInSegments(t *testing.T) {
	m, want := sample(t, 150, true)
	files := segmentFiles(m)
	if len(files) < 3 {
		t.Fatalf("only %d segments", len(files))
	}
	i := 0
	for path, size := range files {
		for at := 0; at < size; at += 37 {
			i++
			c := m.copyFS()
			c.names[path].data[at] ^= 1 << (i % 8)
			found, damaged := readAll(t, c, want)
			if lost := lostOf(want, found); lost > 3 || damaged != lost {
				t.Fatalf("bit %d of byte %d of %s: %d records lost, %d counted, a frame has 3", i%8, at, path, lost, damaged)
			}
		}
	}
}

// TestFlippedBitAfterFreeing flips bits in a killed log whose first segments were acknowledged and freed: a lost cursor makes
// records come back, it does not make the freed ones look lost.
func TestFlippedBitAfterFreeing(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
	q := queueOf(t, l, "a", QueueOptions{Bound: l.NewBound(1<<20, Refuse)}) // roomy: nothing is relocated
	want := map[string]map[Seq]string{"a": {}}
	for i := range 120 {
		recs := []Record{{Queue: q, Data: payload(i, 300)}}
		put(t, l, recs...)
		want["a"][recs[0].Seq] = string(recs[0].Data)
		if i == 110 {
			for seq := range Seq(100) {
				q.Ack(seq + 1)
			}
			for l.Stats().Segments > 4 {
				put(t, l, Record{Queue: queueOf(t, l, "b", QueueOptions{})})
			}
		}
	}
	want["b"] = map[Seq]string{}
	m = m.copyFS()
	for path, size := range segmentFiles(m) {
		for at := 0; at < size; at += 3 {
			c := m.copyFS()
			c.names[path].data[at] ^= 1 << (at % 8)
			found, damaged := readAll(t, c, want)
			lost := 0
			for seq := Seq(101); seq <= 120; seq++ {
				if found["a"][seq] == "" {
					lost++
				}
			}
			if lost > 1 || damaged > 1 {
				t.Fatalf("byte %d of %s: %d records lost, %d counted, a frame has 1", at, path, lost, damaged)
			}
		}
	}
}

// firstSegment gives the path of the oldest segment file.
func firstSegment(m *memFS) string {
	return slices.Min(slices.Collect(maps.Keys(segmentFiles(m))))
}

// TestLostHeader damages all copies of a segment's header: the file is put aside though the quarantine is full, the rest opens, the loss
// is counted.
func TestLostHeader(t *testing.T) {
	m, want := sample(t, 150, true)
	first := firstSegment(m)
	data := m.names[first].data
	data[9]++
	data[headerCopyAt+9]++
	if found, damaged := readAll(t, m.copyFS(), want); lostOf(want, found) != 0 || damaged != 0 {
		t.Fatalf("%d records lost though the copy at the end is intact", lostOf(want, found))
	}
	data[len(data)-tailLen+9]++
	before := m.copyFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, QuarantineBytes: 1})
	if r, err := l.Verify(); err != nil || len(r.Damage) < 1 {
		t.Fatalf("verify: %v, %+v", err, r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	found, damaged := readAll(t, before, want)
	if lost := lostOf(want, found); lost == 0 || lost != damaged || lost > 150 {
		t.Fatalf("%d records lost, %d counted", lost, damaged)
	}
	for _, c := range []*memFS{m, before} {
		kept := 0
		for path := range c.names {
			if strings.Contains(path, quarantineDir) {
				kept++
			}
		}
		if kept != 1 {
			t.Fatalf("%d files put aside", kept)
		}
	}
}

// TestLostFirstPage overwrites the start of a segment, of several and of the only one, closed and killed: what stands behind it is found,
// under the right names, what is lost is counted where that can be known, and Verify sees it before and after the repair.
func TestLostFirstPage(t *testing.T) {
	for _, frames := range []int{40, 150} {
		for _, closed := range []bool{true, false} {
			for _, bytes := range []int{1024, 4096} {
				for _, fill := range []byte{0, 0xaa} {
					t.Run(fmt.Sprintf("%d frames, closed %v, %d of %#x", frames, closed, bytes, fill), func(t *testing.T) {
						m, want := bigSample(t, frames, closed)
						data := m.names[firstSegment(m)].data
						for i := range bytes {
							data[i] = fill
						}
						checkLostPage(t, m, want, bytes)
					})
				}
			}
		}
	}
}

// bigSample makes a log of one queue with frames of some half a KiB, in segments of 64 KiB.
func bigSample(t *testing.T, frames int, closed bool) (*memFS, map[string]map[Seq]string) {
	t.Helper()
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 64 << 10})
	q := queueOf(t, l, "a", QueueOptions{})
	want := map[string]map[Seq]string{"a": {}}
	for i := range frames {
		recs := []Record{{Queue: q, Data: payload(i, 500)}}
		put(t, l, recs...)
		want["a"][recs[0].Seq] = string(recs[0].Data)
	}
	out := m.copyFS()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if closed {
		out = m.copyFS()
	}
	return out, want
}

func checkLostPage(t *testing.T, m *memFS, want map[string]map[Seq]string, bytes int) {
	t.Helper()
	most := uint64(max(bytes-dataStart, 0)/500 + 1)
	verify := func(open func(string, Options) (*Log, error)) {
		t.Helper()
		l, err := open("/log", Options{FS: m, SegmentBytes: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := l.Verify(); err != nil || len(r.Damage) == 0 || r.Damage[0].Err == nil {
			t.Fatalf("verify: %v, %+v", err, r)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	verify(OpenReadOnly)
	verify(Open)
	found, damaged := readAll(t, m, want)
	lost := lostOf(want, found)
	if lost > most || damaged != 0 {
		t.Fatalf("%d records lost, want at most %d; %d counted at the second start", lost, most, damaged)
	}
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 64 << 10})
	if st := l.Lookup("a").Stats(); st.Damaged != lost || st.Next != Seq(len(want["a"])+1) {
		t.Fatalf("%d records lost, %+v", lost, st)
	}
}

// TestEmptySegmentFile: a file that never held anything is no damage, one with a lost header and anything behind it is.
func TestEmptySegmentFile(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty": nil, "zeros": make([]byte, 70000), "short": {1, 2, 3}, "behind": append(make([]byte, 60000), 1),
	} {
		m, want := sample(t, 8, true)
		path := "/log/" + segmentName(0xff)
		m.names[path] = newMemFile(m, path, content)
		damaged := name == "short" || name == "behind"
		for _, open := range []func(string, Options) (*Log, error){OpenReadOnly, Open} {
			l, err := open("/log", Options{FS: m, SegmentBytes: 8 << 10})
			if err != nil {
				t.Fatal(err)
			}
			if r, err := l.Verify(); err != nil || (len(r.Damage) > 0) != damaged {
				t.Fatalf("%s: verify: %v, %+v", name, err, r)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		kept := m.names[filepath.Join("/log", quarantineDir, segmentName(0xff))]
		if (kept != nil) != damaged || damaged && !bytes.Equal(kept.data, content) {
			t.Fatalf("%s: kept %v", name, kept != nil)
		}
		if found, _ := readAll(t, m, want); lostOf(want, found) != 0 {
			t.Fatalf("%s: %d records lost", name, lostOf(want, found))
		}
	}
}

// TestNewerFormat: a log of a later version is not touched.
func TestNewerFormat(t *testing.T) {
	m, _ := sample(t, 2, true)
	for path, f := range m.names {
		if strings.HasSuffix(path, segmentSuffix) {
			for _, at := range []int{0, headerCopyAt} {
				b := f.data[at:]
				b[4] = formatVersion + 1
				binary.LittleEndian.PutUint32(b[60:], checksum(0, b[:60]))
			}
		}
	}
	before := fmt.Sprint(segmentFiles(m))
	if _, err := Open("/log", Options{FS: m}); err == nil || !strings.Contains(err.Error(), fmt.Sprint("format ", formatVersion+1)) {
		t.Fatalf("open: %v", err)
	}
	if after := fmt.Sprint(segmentFiles(m)); after != before {
		t.Fatal("files were changed")
	}
}

// TestQuarantineIsBounded keeps copies of damaged bytes up to the bound, and damage is told with or without a copy.
func TestQuarantineIsBounded(t *testing.T) {
	m, _ := sample(t, 150, true)
	n := 0
	for path := range segmentFiles(m) {
		data := m.names[path].data
		for at := 0; ; {
			i := bytes.Index(data[at:], []byte("<10"))
			if i < 0 {
				break
			}
			if at += i + 1; data[at+4] == '>' { // one record of a frame
				data[at] ^= 0x40
				n++
			}
		}
	}
	told, kept := map[string]bool{}, 0
	l := openLog(t, "/log", Options{FS: m, QuarantineBytes: 1500, OnDamage: func(d Damage) {
		told[fmt.Sprint(d.Segment, d.Offset)] = true
		if d.Kept != "" {
			kept++
		}
	}})
	for _, st := range l.Queues() {
		if err := l.Lookup(st.Name).Scan(0, func(Rec) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var size int64
	for path, f := range m.names {
		if strings.Contains(path, quarantineDir) {
			size += int64(len(f.data))
		}
	}
	if len(told) != n || kept == 0 || size == 0 || size > 1500 {
		t.Fatalf("%d regions, %d told, %d kept with %d bytes", n, len(told), kept, size)
	}
}

// TestCutInRecycledSegment cuts the last frames of a log at every byte where they overwrite what the file held in an earlier life: whole
// frames of the same log, which must never be taken for new ones.
func TestCutInRecycledSegment(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10})
	q := queueOf(t, l, "a", QueueOptions{Bound: l.NewBound(1<<20, Refuse)})
	want := map[string]map[Seq]string{"a": {}}
	add := func(i int) Seq {
		recs := []Record{{Queue: q, Data: payload(i, 200)}}
		put(t, l, recs...)
		want["a"][recs[0].Seq] = string(recs[0].Data)
		return recs[0].Seq
	}
	n := 0
	recycled := func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.active == nil {
			return ""
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		data := m.names["/log/"+l.active.name].data
		if end := int(l.active.end); end < 5000 && end > 3000 && len(bytes.TrimRight(data[end:], "\x00")) > 2000 {
			return "/log/" + l.active.name
		}
		return ""
	}
	for ; recycled() == ""; n++ {
		if n > 2000 {
			t.Fatal("no segment was used again")
		}
		if seq := add(n); seq > 20 {
			q.Ack(seq - 20)
		}
	}
	path, before := recycled(), m.copyFS()
	sure := Seq(len(want["a"]))
	var ends []int // of the frames that follow
	for range 4 {
		add(n)
		n++
		l.mu.Lock()
		ends = append(ends, int(l.active.end))
		l.mu.Unlock()
	}
	after := m.copyFS()
	old, now := before.names[path].data, after.names[path].data
	first := 0
	for first < len(now) && first < len(old) && old[first] == now[first] {
		first++
	}
	for at := first; at <= ends[3]+endMarkLen; at++ {
		c := before.copyFS()
		copy(c.names[path].data[:at], now[:at])
		whole := 0
		for whole < len(ends) && ends[whole] <= at {
			whole++
		}
		found, damaged := readAll(t, c, want)
		for seq := sure - 19; seq <= sure+Seq(whole); seq++ {
			if found["a"][seq] == "" {
				t.Fatalf("cut at %d: record %d is lost (%d are sure, %d frames are whole)", at, seq, sure, whole)
			}
		}
		if damaged > 0 {
			t.Fatalf("cut at %d: %d records counted as damaged", at, damaged)
		}
	}
}

// TestEveryBit flips every single bit of the last frame of a small log that was killed, and of what stands around it.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	m, want := sample(t, 4, false)
	for path, size := range segmentFiles(m) {
		for at := max(dataStart, size-300); at < size; at++ {
			for bit := range 8 {
				c := m.copyFS()
				c.names[path].data[at] ^= 1 << bit
				found, _ := readAll(t, c, want)
				if lost := lostOf(want, found); lost > 3 {
					t.Fatalf("bit %d of byte %d of %s: %d records lost, a frame has 3", bit, at, path, lost)
				}
			}
		}
	}
}
