package buffer

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// nonceWatch remembers every sealed section that was given to a disk, whether the write worked or not.
type nonceWatch struct {
	mu    sync.Mutex
	seen  map[[3]uint64][32]byte
	twice []string
}

type watchFS struct {
	*memFS
	w *nonceWatch
}

type watchFile struct {
	File
	w    *nonceWatch
	head func() []byte
	path string
}

func (f watchFS) Create(path string) (File, error) {
	x, err := f.memFS.Create(path)
	if err != nil {
		return nil, err
	}
	return &watchFile{x, f.w, headOf(f.memFS, x.(*memFile)), path}, nil
}

func (f watchFS) Open(path string, ro bool) (File, error) {
	x, err := f.memFS.Open(path, ro)
	if err != nil {
		return nil, err
	}
	return &watchFile{x, f.w, headOf(f.memFS, x.(*memFile)), path}, nil
}

func headOf(m *memFS, f *memFile) func() []byte {
	return func() []byte {
		m.mu.Lock()
		defer m.mu.Unlock()
		return append([]byte(nil), f.data[:min(len(f.data), dataStart)]...)
	}
}

func (f *watchFile) WriteAt(b []byte, off int64) (int, error) {
	head := f.head()
	if off == 0 && len(b) >= dataStart {
		head = b[:dataStart]
	}
	if len(head) == dataStart {
		if h, version := readSegmentHeader(head); version != 0 {
			f.look(h, b, off)
		}
	}
	return f.File.WriteAt(b, off)
}

func (f *watchFile) look(h segmentHeader, b []byte, off int64) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for i := 0; i+frameHeaderLen <= len(b); {
		fh, err := readFrameHeader(b[i:], h.salt, off+int64(i))
		if err != nil || i+int(fh.total()) > len(b) {
			i++
			continue
		}
		body := b[i+frameHeaderLen : i+int(fh.total())]
		at := off + int64(i) + frameHeaderLen
		for range fh.sections {
			sec, rest, err := nextSection(body)
			if err != nil {
				break
			}
			if sec.cipher != cipherNone {
				p, sum := [3]uint64{h.salt, h.index, uint64(at)}, sha256.Sum256(append(slices.Clone(sec.head), sec.bytes...))
				if old, ok := f.w.seen[p]; ok && old != sum {
					f.w.twice = append(f.w.twice, fmt.Sprint(f.path, " at ", at))
				}
				f.w.seen[p] = sum
			}
			at += sectionHeaderLen + int64(sec.stored)
			body = rest
		}
		i += int(fh.total())
	}
}

// TestNoncesUnderFaults: over faults, power cuts, reopening, full disks and folders restored from a copy no two different sections are ever
// sealed for one place of one segment.
func TestNoncesUnderFaults(t *testing.T) {
	ops := map[string][]error{
		"write": {syscall.EIO, errShort, syscall.ENOSPC}, "sync": {syscall.EIO}, "create": {syscall.ENOSPC},
		"rename": {syscall.EIO}, "remove": {syscall.EIO}, "syncdir": {syscall.EIO}, "truncate": {syscall.EIO},
	}
	names := slices.Sorted(maps.Keys(ops))
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 3))
		w := &nonceWatch{seen: map[[3]uint64][32]byte{}}
		m := newMemFS()
		k1, k2 := testKey(t, 1), testKey(t, 2)
		id, copies := 0, []*memFS{}
		for range 25 {
			l, err := Open("/log", Options{FS: watchFS{m, w}, SegmentBytes: 8 << 10, Compress: r.IntN(2) == 0, eager: r.IntN(2) == 0, Keys: func(q string) ([]Key, bool) {
				if q == "a" {
					return []Key{k1, k2}, true
				}
				return []Key{k2, k1}, true
			}})
			if err != nil {
				m.setFault(nil)
				m.setRoom(0)
				m = m.kill()
				continue
			}
			b := l.NewBound(20<<10, DropOldest)
			qs := []*Queue{}
			for _, n := range []string{"a", "b"} {
				q, err := l.Queue(n, QueueOptions{Bound: b})
				if err != nil {
					t.Fatal(err)
				}
				qs = append(qs, q)
			}
			for range 6 {
				op := names[r.IntN(len(names))]
				e := ops[op][r.IntN(len(ops[op]))]
				left, skip := r.IntN(3), r.IntN(12)
				m.setFault(func(o, _ string) error {
					if o != op || left == 0 {
						return nil
					}
					if skip > 0 {
						skip--
						return nil
					}
					left--
					return e
				})
				if r.IntN(5) == 0 {
					m.mu.Lock()
					m.room = m.used() + int64(r.IntN(20000))
					m.mu.Unlock()
				}
				for range 10 {
					id++
					p, err := l.Append(Record{Queue: qs[r.IntN(2)], Data: payload(id, r.IntN(300))}, Record{Queue: qs[r.IntN(2)], Data: payload(id, r.IntN(300))})
					if err == nil && r.IntN(2) == 0 {
						_ = l.Wait(t.Context(), p)
					}
					if r.IntN(5) == 0 {
						q := qs[r.IntN(2)]
						f := q.Floor()
						q.Ack(f+1, f+2, f+3, f+5)
					}
				}
				m.setFault(nil)
			}
			m.setRoom(0)
			if r.IntN(4) == 0 {
				copies = append(copies, m.copyFS())
			}
			old := m
			switch r.IntN(4) {
			case 0:
				_ = l.Close()
			case 1:
				m = m.kill()
			case 2:
				m = m.powerCut(cutRandom(r))
			case 3:
				m = m.kill()
				if len(copies) > 0 {
					m = copies[r.IntN(len(copies))].copyFS()
				}
			}
			if old != m {
				_ = l.Close()
			}
		}
		if len(w.twice) > 0 {
			t.Fatalf("seed %d: %v", seed, w.twice)
		}
		if seed == 0 {
			t.Logf("%d sections", len(w.seen))
		}
	}
}

// TestSealedFlips: one flipped bit anywhere costs at most one frame, never a wrong byte, and the log opens.
func TestSealedFlips(t *testing.T) {
	m := newMemFS()
	o := Options{FS: m, SegmentBytes: 16 << 10, Compress: true, eager: true, Keys: func(q string) ([]Key, bool) {
		switch q {
		case "a":
			return []Key{testKey(t, 1)}, true
		case "b":
			return []Key{testKey(t, 2)}, true
		}
		return nil, true
	}}
	l := openLog(t, "/log", o)
	want := map[string]map[Seq]string{}
	frame := map[string]int{}
	var qs []*Queue
	for _, n := range []string{"a", "b", "c"} {
		qs = append(qs, queueOf(t, l, n, QueueOptions{}))
		want[n] = map[Seq]string{}
	}
	for i := range 30 {
		var recs []Record
		for j := range 9 {
			recs = append(recs, Record{Queue: qs[j%3], Data: fmt.Appendf(nil, "%d-%d-%s", i, j, strings.Repeat("ab", j))})
		}
		put(t, l, recs...)
		for j := range recs {
			want[recs[j].Queue.name][recs[j].Seq] = string(recs[j].Data)
			frame[fmt.Sprint(recs[j].Queue.name, recs[j].Seq)] = i
		}
	}
	for _, end := range []string{"killed", "closed"} {
		if end == "closed" {
			_ = l.Close()
		}
		base := m.copyFS()
		var segs []string
		for p := range contents(base) {
			if strings.HasSuffix(p, segmentSuffix) {
				segs = append(segs, p)
			}
		}
		slices.Sort(segs)
		n := 0
		for _, seg := range segs {
			size := len(contents(base)[seg])
			for at := 0; at < size; at += 5 {
				if at > 7000 && at%5 != 0 {
					continue
				}
				d := base.copyFS()
				d.names[seg].data[at] ^= 1 << (at % 8)
				n++
				o.FS = d
				x, err := Open("/log", o)
				if err != nil {
					t.Fatalf("%s: flip in %s at %d: %v", end, seg, at, err)
				}
				lost := map[int]bool{}
				for name, w := range want {
					q := x.Lookup(name)
					if q == nil {
						t.Errorf("%s: flip in %s at %d: no queue %s", end, seg, at, name)
						continue
					}
					got := drain(t, q, 0)
					for seq, s := range got {
						if w[seq] != s {
							t.Errorf("%s: flip in %s at %d: %s %d is %q", end, seg, at, name, seq, s)
						}
					}
					for seq := range w {
						if _, ok := got[seq]; !ok {
							lost[frame[fmt.Sprint(name, seq)]] = true
						}
					}
				}
				if len(lost) > 1 {
					t.Errorf("%s: flip in %s at %d: %d frames lost", end, seg, at, len(lost))
				}
				_ = x.Close()
			}
		}
		t.Logf("%s: %d flips", end, n)
	}
}
