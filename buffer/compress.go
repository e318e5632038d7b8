package buffer

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Records of a frame are compressed together, once, before they are written; the index beside them is not. A bound is charged the records
// as they came all the same, so that it holds as many whatever they look like: compressing spares the disk, not the bound.
const (
	codecNone = 0
	codecZstd = 1 // RFC 8878

	// compressRecords and compressBytes are from where on compressing is tried: less holds too little that repeats.
	compressRecords = 8
	compressBytes   = 1 << 10
	// After a try that saved less than an eighth, one, then two, four ... up to restTries groups are left as they are.
	restTries = 64
	// zstdWindow bounds the memory of the encoder; frames are no larger than about that.
	zstdWindow = 512 << 10
	// maxRaw bounds what a section may say it holds.
	maxRaw = 2 * maxFrameBytes
)

// compressor shrinks the records of frames where that pays. It belongs to the committer; the zero value does nothing.
type compressor struct {
	on bool
	// records and bytes are from where on it is tried.
	records uint32
	bytes   int
	enc     *zstd.Encoder
	out     []byte
	// rests belong to a key each: what one uplink sends says nothing of the others.
	rests map[uint32]*rest
}

// rest is how many groups are left as they are before the next try, and how many that were the last time.
type rest struct{ left, last int }

// shrink compresses the groups of f.
func (c *compressor) shrink(f *frameBuilder) {
	if !c.on {
		return
	}
	for i := range f.groups {
		c.group(&f.groups[i])
	}
}

func (c *compressor) group(g *recordGroup) {
	records := g.records()
	if g.count < c.records || len(records) < c.bytes || g.codec != codecNone {
		return
	}
	r := c.rests[g.key.id]
	if r == nil {
		if c.rests == nil {
			c.rests = map[uint32]*rest{}
		}
		r = &rest{}
		c.rests[g.key.id] = r
	}
	if r.left > 0 {
		r.left--
		return
	}
	if c.enc == nil {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
		if err != nil {
			c.on = false // the options are constant: a test finds that
			return
		}
		c.enc = enc
	}
	out := c.enc.EncodeAll(records, c.out[:0])
	if c.out = out; cap(out) > 2*frameBytes {
		c.out = nil // one large record does not keep its memory for ever
	}
	if len(out) > len(records)-len(records)/8 {
		r.last = min(2*r.last+1, restTries)
		r.left = r.last
		return
	}
	r.last = 0
	g.raw, g.codec = len(records), codecZstd
	g.buf = append(g.buf[:g.start+sectionHeaderLen], out...)
}

// inflater is the decoder of all readers of a log. It is made when it is needed first; the zero value is ready.
type inflater struct {
	once sync.Once
	dec  *zstd.Decoder
	err  error
}

// decompress appends the raw bytes of b to dst, which has room for exactly them.
func (d *inflater) decompress(dst, b []byte, codec uint8, raw int) ([]byte, error) {
	if codec != codecZstd {
		return nil, fmt.Errorf("codec %d: %w", codec, errBadContent)
	}
	d.once.Do(func() {
		d.dec, d.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxRaw),
			zstd.WithDecodeAllCapLimit(true))
	})
	if d.err != nil {
		return nil, d.err
	}
	before := len(dst)
	dst, err := d.dec.DecodeAll(b, dst)
	if err != nil || len(dst)-before != raw {
		return nil, fmt.Errorf("compressed records: %w", errBadContent)
	}
	return dst, nil
}
