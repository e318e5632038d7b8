package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func testKey(t testing.TB, n byte) Key {
	t.Helper()
	k, err := NewKey(bytes.Repeat([]byte{n}, KeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keysFor gives the same keys to every queue.
func keysFor(keys ...Key) func(string) ([]Key, bool) {
	return func(string) ([]Key, bool) { return keys, true }
}

func TestKeyLength(t *testing.T) {
	if _, err := NewKey(make([]byte, 31)); err == nil || !strings.Contains(err.Error(), "31 bytes: want 32") {
		t.Error(err)
	}
	if a, b := testKey(t, 1), testKey(t, 2); a.ID() == b.ID() || len(a.ID()) != 8 || a.ID() != testKey(t, 1).ID() {
		t.Errorf("%s and %s", a.ID(), b.ID())
	}
}

// files gives all bytes of the log on the disk of a test.
func files(m *memFS) []byte {
	var all []byte
	have := contents(m)
	for _, name := range slices.Sorted(maps.Keys(have)) {
		all = append(all, have[name]...)
	}
	return all
}

// contents gives a copy of every file.
func contents(m *memFS) map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string][]byte{}
	for name, f := range m.names {
		all[name] = bytes.Clone(f.data)
	}
	return all
}

// TestNothingReadableIsStored: neither the records nor parts of them are on disk, after commits, relocation and close, for both ciphers.
func TestNothingReadableIsStored(t *testing.T) {
	for _, c := range []uint16{cipherAES, cipherChaCha} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			m := newMemFS()
			k := testKey(t, 1)
			k.cipher = c
			o := Options{FS: m, SegmentBytes: 16 << 10, Keys: keysFor(k)}
			l := openLog(t, "/log", o)
			q := queueOf(t, l, "q", QueueOptions{})
			want := map[Seq]string{}
			for i := range 400 {
				s := fmt.Sprintf("SECRET-%d-%s", i, strings.Repeat("x", i%90))
				put(t, l, Record{Queue: q, Data: []byte(s)})
				want[Seq(i+1)] = s
			}
			if got := drain(t, q, 0); !maps.Equal(got, want) {
				t.Fatalf("%d records, want %d", len(got), len(want))
			}
			if st := q.Stats(); st.Keys[k.ID()] != 400 || len(st.Keys) != 1 {
				t.Errorf("keys: %v", st.Keys)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if b := files(m); bytes.Contains(b, []byte("SECRET")) || bytes.Contains(b, []byte("xxxxxxxx")) {
				t.Error("records stand on disk as they came")
			}
			// Another processor reads it, too.
			l = openLog(t, "/log", Options{FS: m, SegmentBytes: 16 << 10, Keys: keysFor(testKey(t, 1))})
			if got := drain(t, l.Lookup("q"), 0); !maps.Equal(got, want) {
				t.Fatalf("after a restart: %d records, want %d", len(got), len(want))
			}
		})
	}
}

// TestWrongKey: Open says which key is missing, and changes no byte; with the key everything is there.
func TestWrongKey(t *testing.T) {
	for _, end := range []string{"closed", "killed"} {
		t.Run(end, func(t *testing.T) {
			m := newMemFS()
			right, wrong := testKey(t, 1), testKey(t, 2)
			l, err := Open("/log", Options{FS: m, Keys: keysFor(right)})
			if err != nil {
				t.Fatal(err)
			}
			q := queueOf(t, l, "q", QueueOptions{})
			for i := range 10 {
				put(t, l, Record{Queue: q, Data: []byte{byte(i)}})
			}
			if end == "killed" {
				m = m.powerCut(func() bool { return true })
			}
			if err := l.Close(); err != nil && end == "closed" {
				t.Fatal(err)
			}
			before := files(m)
			for name, keys := range map[string]func(string) ([]Key, bool){"another key": keysFor(wrong), "no key": keysFor()} {
				var missing *KeyError
				_, err := Open("/log", Options{FS: m, Keys: keys})
				if !errors.As(err, &missing) || missing.Missing != right.ID() || missing.Queue != "q" || missing.Records != 10 {
					t.Fatalf("%s: %v", name, err)
				}
			}
			if !bytes.Equal(before, files(m)) {
				t.Error("a wrong key changed what is on disk")
			}
			// Who does not use the queue is not asked for its key; the records can be given up, not read.
			l = openLog(t, "/log", Options{FS: m})
			var missing *KeyError
			if err := l.Lookup("q").Scan(0, func(Rec) bool { return true }); !errors.As(err, &missing) {
				t.Errorf("read without key: %v", err)
			}
			if r, err := l.Verify(); err != nil || len(r.Damage) > 0 || r.Locked != 10 {
				t.Errorf("verify without key: %+v, %v", r, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openLog(t, "/log", Options{FS: m, Keys: keysFor(right)})
			if got := drain(t, l.Lookup("q"), 0); len(got) != 10 {
				t.Errorf("%d records with the right key", len(got))
			}
			if r, err := l.Verify(); err != nil || len(r.Damage) > 0 || r.Locked != 0 {
				t.Errorf("verify with the key: %+v, %v", r, err)
			}
		})
	}
}

// TestPurgeWithoutKey: records whose key is lost can be given up, each counted once and not as damage.
func TestPurgeWithoutKey(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, Keys: keysFor(testKey(t, 1))})
	q := queueOf(t, l, "q", QueueOptions{})
	for range 10 {
		put(t, l, Record{Queue: q, Data: []byte("x")})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, "/log", Options{FS: m})
	var told []string
	q = queueOf(t, l, "q", QueueOptions{OnDrop: func(_ *Queue, why Reason, recs []Rec) {
		for _, r := range recs {
			told = append(told, fmt.Sprint(why, " ", r.Seq))
		}
	}})
	if n := q.Purge(); n != 10 || len(told) != 10 || told[0] != "purged 1" || told[9] != "purged 10" {
		t.Errorf("%d purged, told %q", n, told)
	}
	if st := l.Stats(); st.Damaged != 0 {
		t.Errorf("%d damaged", st.Damaged)
	}
}

// TestKeyRotation: the first key seals, all of them open; records from before encryption stay readable, and after it.
func TestKeyRotation(t *testing.T) {
	m := newMemFS()
	k1, k2 := testKey(t, 1), testKey(t, 2)
	want := map[Seq]string{}
	for i, keys := range [][]Key{nil, {k1}, {k2, k1}, {k1, k2}, {k2, k1}, {{}, k2, k1}} {
		l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, Keys: keysFor(keys...)})
		q := queueOf(t, l, "q", QueueOptions{})
		for n := range 20 {
			s := fmt.Sprintf("%d-%d", i, n)
			put(t, l, Record{Queue: q, Data: []byte(s)})
			want[Seq(len(want)+1)] = s
		}
		if got := drain(t, q, 0); !maps.Equal(got, want) {
			t.Fatalf("start %d: %d records, want %d", i, len(got), len(want))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, Keys: keysFor(k2, k1)})
	q := l.Lookup("q")
	// What is moved is sealed anew, so older keys may have less than was appended under them, and newer ones more.
	if st := q.Stats(); len(st.Keys) > 2 || st.Keys[k1.ID()] > 60 || st.Keys[k1.ID()]+st.Keys[k2.ID()] > 100 {
		t.Errorf("keys: %v", st.Keys)
	}
	// When the last record under a key is gone, the key is, too.
	for seq := range want {
		if seq <= 80 {
			q.Ack(seq)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, "/log", Options{FS: m, SegmentBytes: 8 << 10, Keys: keysFor(k2)})
	if got := drain(t, l.Lookup("q"), 0); len(got) != 40 || got[81] != "4-0" || got[120] != "5-19" {
		t.Errorf("%d records", len(got))
	}
}

// TestKeysOfQueues: each queue has its own keys, one without any stays plain, and one append to all of them is one frame.
func TestKeysOfQueues(t *testing.T) {
	m := newMemFS()
	keys := map[string][]Key{"a": {testKey(t, 1)}, "b": {testKey(t, 2)}, "c": nil}
	o := Options{FS: m, Keys: func(q string) ([]Key, bool) { k, ok := keys[q]; return k, ok }}
	l := openLog(t, "/log", o)
	var recs []Record
	for i := range 30 {
		recs = append(recs, Record{Queue: queueOf(t, l, string("abc"[i%3]), QueueOptions{}), Data: fmt.Appendf(nil, "record-%02d", i)})
	}
	frames := l.Stats().Frames
	put(t, l, recs...)
	if n := l.Stats().Frames - frames; n != 1 {
		t.Errorf("%d frames", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if b := files(m); bytes.Contains(b, []byte("record-00")) || bytes.Contains(b, []byte("record-01")) || !bytes.Contains(b, []byte("record-02")) {
		t.Error("not exactly the records without key are readable")
	}
	// The uplink of b is gone from the configuration.
	delete(keys, "b")
	l = openLog(t, "/log", o)
	for q, n := range map[string]int{"a": 0, "c": 2} {
		got := drain(t, l.Lookup(q), 0)
		if len(got) != 10 || got[1] != fmt.Sprintf("record-%02d", n) {
			t.Errorf("%s: %v", q, got)
		}
	}
}

// TestMovedSectionDoesNotOpen: a sealed section with good checksums at another place, or with a changed index, is damage.
func TestMovedSectionDoesNotOpen(t *testing.T) {
	k := testKey(t, 1)
	q := &Queue{id: 1, keys: keyring{k}}
	f := newFrame(frameCommit, nil, 1000)
	f.first = 1
	f.add(f.entry(q, 7, 1), 1, 1000, never, []byte("payload"))
	f.closeRecords(7)
	home := &segment{salt: 5, index: 9, epoch: 7, first: 1}
	b, err := f.finish(&vault{}, home, dataStart)
	if err != nil {
		t.Fatal(err)
	}
	open := func(s *segment, off int64, change func(b []byte)) error {
		body := bytes.Clone(b[frameHeaderLen : len(b)-endMarkLen])
		change(body)
		sec, _, err := nextSection(body)
		if err != nil {
			return err
		}
		var u unsealer
		_, err = u.records(new(inflater), sec, s, off, keyring{k}, "q")
		return err
	}
	same := func([]byte) {}
	if err := open(home, dataStart+frameHeaderLen, same); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"offset":     open(home, dataStart+frameHeaderLen+1, same),
		"salt":       open(&segment{salt: 6, index: 9}, dataStart+frameHeaderLen, same),
		"index":      open(&segment{salt: 5, index: 10}, dataStart+frameHeaderLen, same),
		"entry":      open(home, dataStart+frameHeaderLen, func(b []byte) { b[len(b)-3]++ }),
		"header":     open(home, dataStart+frameHeaderLen, func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 2) }),
		"ciphertext": open(home, dataStart+frameHeaderLen, func(b []byte) { b[sectionHeaderLen] ^= 1 }),
	} {
		if !errors.Is(err, errBadSeal) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// TestNonces: no pair of derived key and nonce is used twice, whatever cuts the power and in whatever way. What seals is watched through
// the files: of one segment, salt and index, no two different sealed sections may ever have stood at one offset.
func TestNonces(t *testing.T) {
	type place struct {
		salt, index uint64
		off         int64
	}
	seen := map[place]string{}
	look := func(m *memFS) {
		for name, data := range contents(m) {
			if !strings.HasSuffix(name, segmentSuffix) || len(data) < dataStart {
				continue
			}
			h, version := readSegmentHeader(data)
			if version == 0 {
				continue
			}
			var w window
			w.reset(&memFile{fs: newMemFS(), data: data}, h.salt)
			s := &segment{salt: h.salt, index: h.index, epoch: h.epoch, first: h.first}
			scan(&w, s, int64(len(data)), func(fh frameHeader, off int64, body []byte) error {
				at := off + frameHeaderLen
				for range fh.sections {
					sec, rest, err := nextSection(body)
					if err != nil {
						return err
					}
					if sec.cipher != cipherNone {
						p, text := place{h.salt, h.index, at}, string(sec.bytes)
						if before, ok := seen[p]; ok && before != text {
							t.Fatalf("%s: two sections sealed for offset %d", name, at)
						}
						seen[p] = text
					}
					at += sectionHeaderLen + int64(sec.stored)
					body = rest
				}
				return nil
			})
		}
	}
	m := newMemFS()
	for round := range 60 {
		l, err := Open("/log", Options{FS: m, SegmentBytes: 8 << 10, Keys: keysFor(testKey(t, 1))})
		if err != nil {
			t.Fatal(err)
		}
		q := queueOf(t, l, "q", QueueOptions{})
		for i := range 1 + round%7 {
			put(t, l, Record{Queue: q, Data: fmt.Appendf(nil, "%d-%d", round, i)})
		}
		look(m)
		m = m.powerCut(func() bool { return round%3 != 0 })
		_ = l.Close()
	}
	if len(seen) < 100 {
		t.Errorf("only %d sealed sections were seen", len(seen))
	}
}
