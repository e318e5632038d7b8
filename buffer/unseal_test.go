package buffer

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestUnsealerMemory: one reader of a mixed stream of encrypted small and larger records keeps a bounded memory.
func TestUnsealerMemory(t *testing.T) {
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 16 << 20, Keys: keysFor(testKey(t, 1)), Compress: true})
	q := queueOf(t, l, "q", QueueOptions{})
	r := rand.New(rand.NewPCG(1, 2))
	small, large := make([]byte, 120), make([]byte, 300<<10)
	var b Batch
	after := Seq(0)
	kept := func() (n int) {
		return cap(b.unsealer.arena) + cap(b.unsealer.sealed) + cap(b.win.buf)
	}
	for range 100 {
		n := 1 + r.IntN(400)
		for range n {
			put(t, l, Record{Queue: q, Data: small})
		}
		put(t, l, Record{Queue: q, Data: large})
		found := true
		for found {
			var err error
			if found, err = q.read(after, &b); err != nil {
				t.Fatal(err)
			}
			if found {
				for i := range b.Recs {
					q.Ack(b.Recs[i].Seq)
				}
				after = b.Recs[len(b.Recs)-1].Seq
			}
		}
	}
	if kept() > 16<<20 {
		t.Errorf("one batch keeps %d MiB", kept()>>20)
	}
}

// TestBomb: a section that says it holds 10 bytes and inflates to 100 MiB costs little.
func TestBomb(t *testing.T) {
	enc, _ := zstd.NewWriter(nil)
	bomb := enc.EncodeAll(make([]byte, 100<<20), nil)
	if _, err := new(inflater).decompress(make([]byte, 0, 10), bomb[:], codecZstd, 10); err == nil {
		t.Error("no error")
	}
	res := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			_, _ = new(inflater).decompress(make([]byte, 0, 10), bomb, codecZstd, 10)
		}
	})
	if n := res.AllocedBytesPerOp(); n > 8<<20 {
		t.Errorf("a section of %d bytes that says it holds 10 takes %d MiB", len(bomb), n>>20)
	}
}

// TestCompressionOfTwoKeys: records of one uplink that cannot be compressed do not keep those of another from being compressed.
func TestCompressionOfTwoKeys(t *testing.T) {
	c := compressor{on: true, records: compressRecords, bytes: compressBytes}
	noise := rand.NewChaCha8([32]byte{2})
	text, tries := 0, 0
	for range 2000 {
		f := &frameBuilder{}
		for i := range 2 {
			g := recordGroup{key: Key{id: uint32(i)}, buf: make([]byte, sectionHeaderLen+4096), count: 40}
			if i == 1 {
				_, _ = noise.Read(g.buf[sectionHeaderLen:])
			}
			f.groups = append(f.groups, g)
		}
		c.shrink(f)
		tries++
		if f.groups[0].codec == codecZstd {
			text++
		}
	}
	if text < tries/2 {
		t.Errorf("of %d sections that compress to almost nothing %d were compressed", tries, text)
	}
}

// TestLargeFramesKeepNoMemory: one large frame, compressed or encrypted, does not keep its memory for ever.
func TestLargeFramesKeepNoMemory(t *testing.T) {
	c := compressor{on: true, records: compressRecords, bytes: compressBytes}
	g := &recordGroup{buf: make([]byte, sectionHeaderLen+32<<20), count: 8}
	_, _ = rand.NewChaCha8([32]byte{2}).Read(g.buf[sectionHeaderLen:])
	c.group(g)
	if cap(c.out) > 2*frameBytes {
		t.Errorf("%d MiB are kept", cap(c.out)>>20)
	}
	m := newMemFS()
	l := openLog(t, "/log", Options{FS: m, SegmentBytes: 32 << 20, Keys: keysFor(testKey(t, 1))})
	q := queueOf(t, l, "q", QueueOptions{})
	put(t, l, Record{Queue: q, Data: make([]byte, MaxRecordBytes)})
	if n := cap(l.vault.out); n > 2*frameBytes {
		t.Errorf("the vault keeps %d MiB until the next sealed frame", n>>20)
	}
}

// countFS counts the bytes that are read.
type countFS struct {
	*memFS
	n *atomic.Int64
}

type countFile struct {
	File
	n *atomic.Int64
}

func (c countFS) Open(p string, ro bool) (File, error) {
	f, err := c.memFS.Open(p, ro)
	return countFile{f, c.n}, err
}

func (c countFS) Create(p string) (File, error) {
	f, err := c.memFS.Create(p)
	return countFile{f, c.n}, err
}

func (f countFile) ReadAt(b []byte, off int64) (int, error) {
	f.n.Add(int64(len(b)))
	return f.File.ReadAt(b, off)
}

// TestReadsOnce: draining a compressed backlog reads about what is on disk, as draining a plain one does.
func TestReadsOnce(t *testing.T) {
	for _, compress := range []bool{false, true} {
		m := newMemFS()
		var n atomic.Int64
		l := openLog(t, "/log", Options{FS: countFS{m, &n}, SegmentBytes: 16 << 20, Compress: compress})
		q := queueOf(t, l, "q", QueueOptions{})
		id := 0
		for range 600 {
			var recs []Record
			for range 500 {
				recs = append(recs, Record{Queue: q, Data: reading(id)})
				id++
			}
			put(t, l, recs...)
		}
		n.Store(0)
		var b Batch
		after, stored, passes := Seq(0), int64(0), 0
		l.mu.Lock()
		for _, e := range q.extents {
			stored += e.end - e.start
		}
		l.mu.Unlock()
		for {
			found, err := q.read(after, &b)
			if err != nil {
				t.Fatal(err)
			}
			if !found {
				break
			}
			passes++
			after = b.Recs[len(b.Recs)-1].Seq
		}
		t.Logf("compress %v: %d KiB on disk, %d KiB read in %d passes", compress, stored>>10, n.Load()>>10, passes)
		if n.Load() > 3*stored {
			t.Errorf("compress %v: %d KiB of files were read to drain %d KiB", compress, n.Load()>>10, stored>>10)
		}
	}
}
