package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// reading is what a sensor sends.
func reading(i int) []byte {
	return fmt.Appendf(nil, `{"device":"press-%d","ts":%d,"temperature":%d.%d,"pressure":%d,"state":"running","batch":"A-2231"}`,
		i%7, 1700000000000+int64(i)*250, 20+i%9, i%10, 1000+i%17)
}

// TestCompressionPays: what repeats takes less of the disk, with and without encryption; what does not is left as it is, and then only tried
// now and then.
func TestCompressionPays(t *testing.T) {
	noise := rand.NewChaCha8([32]byte{1})
	random := func(int) []byte {
		b := make([]byte, 100)
		_, _ = noise.Read(b)
		return b
	}
	used := func(make func(int) []byte, o Options) int64 {
		m := newMemFS()
		o.FS, o.SegmentBytes = m, 64<<10
		l := openLog(t, "/log", o)
		q := queueOf(t, l, "q", QueueOptions{})
		want := map[Seq]string{}
		for round := range 40 {
			var recs []Record
			for i := range 50 {
				b := make(round*50 + i)
				recs = append(recs, Record{Queue: q, Data: b})
				want[Seq(len(want)+1)] = string(b)
			}
			put(t, l, recs...)
		}
		if got := drain(t, q, 0); !maps.Equal(got, want) {
			t.Errorf("%d records, want %d", len(got), len(want))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLog(t, "/log", Options{FS: m, SegmentBytes: 64 << 10, Keys: o.Keys})
		if got := drain(t, l.Lookup("q"), 0); !maps.Equal(got, want) {
			t.Errorf("after a restart: %d records, want %d", len(got), len(want))
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		bytes := int64(0) // without spares, which may have been made or not
		for _, s := range l.segments {
			bytes += s.size
		}
		return bytes
	}
	plain, small := used(reading, Options{}), used(reading, Options{Compress: true})
	sealed := used(reading, Options{Compress: true, Keys: keysFor(testKey(t, 1))})
	if small > plain/2 || sealed > plain/2 {
		t.Errorf("%d bytes, compressed %d, and encrypted %d", plain, small, sealed)
	}
	if a, b := used(random, Options{}), used(random, Options{Compress: true}); b > a+a/20 {
		t.Errorf("what cannot be compressed takes %d bytes instead of %d", b, a)
	}
}

// TestCompressionRests: after tries that were no use it tries less and less often.
func TestCompressionRests(t *testing.T) {
	c := compressor{on: true, records: compressRecords, bytes: compressBytes}
	noise := rand.NewChaCha8([32]byte{2})
	group := func(text bool) *recordGroup {
		g := &recordGroup{buf: make([]byte, sectionHeaderLen+4096), count: 40}
		if !text {
			_, _ = noise.Read(g.buf[sectionHeaderLen:])
		}
		return g
	}
	tries := 0
	for range 1000 {
		r := c.rests[0]
		before := r == nil || r.left == 0
		c.group(group(false))
		if before {
			tries++
		}
	}
	if tries < 15 || tries > 25 {
		t.Errorf("%d tries of 1000", tries)
	}
	for range restTries + 1 {
		c.group(group(true))
	}
	g := group(true)
	if c.group(g); g.codec != codecZstd || c.rests[0].last != 0 {
		t.Error("what can be compressed is not, after what could not")
	}
}

// TestBadCompression: sections that say they hold what they do not are damage, and cost no memory.
func TestBadCompression(t *testing.T) {
	c := compressor{on: true, records: 1}
	g := &recordGroup{buf: append(make([]byte, sectionHeaderLen), bytes.Repeat([]byte("abcd"), 1000)...), count: 1}
	c.group(g)
	if g.codec != codecZstd || g.raw != 4000 {
		t.Fatalf("codec %d, %d bytes", g.codec, g.raw)
	}
	z := g.records()
	for name, x := range map[string]struct {
		b     []byte
		codec uint8
		raw   int
	}{
		"shorter": {z, codecZstd, 3999}, "longer": {z, codecZstd, 4001}, "cut": {z[:len(z)-1], codecZstd, 4000},
		"noise": {[]byte("no zstd"), codecZstd, 4000}, "codec": {z, 9, 4000}, "nothing": {nil, codecZstd, 4000},
	} {
		if _, err := new(inflater).decompress(make([]byte, 0, x.raw), x.b, x.codec, x.raw); !errors.Is(err, errBadContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := new(inflater).decompress(make([]byte, 0, 4000), z, codecZstd, 4000); err != nil || len(b) != 4000 {
		t.Error(len(b), err)
	}
	s := section{sectionHeader: sectionHeader{codec: codecZstd, raw: maxRaw + 10, stored: 5, index: 5}}
	if s.sound() {
		t.Error("a section of more than can be is sound")
	}
}
