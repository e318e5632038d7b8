package envelope

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// DefaultMaxBytes is how much an envelope may unpack to where nobody says otherwise. It takes every message that a gateway can have in
// its buffer, of 16 MiB at most: its payload grows to the double at most (see AppendOpen), and what stands beside it has a MiB.
const DefaultMaxBytes = 33 << 20

// recordCost is what a message counts at least against the limit: lines can be shorter than what is made of them.
const recordCost = 512

// blank is what may stand around a line.
const blank = " \t\r\n"

// Decoder takes envelopes apart, one after the other. It is not for use from several goroutines. Close frees what it holds.
type Decoder struct {
	max    int64
	zstd   *zstd.Decoder
	gzip   *gzip.Reader
	in     *bufio.Reader
	packed []byte
}

// NewDecoder makes a decoder of envelopes that unpack to maxBytes at most; 0 means DefaultMaxBytes.
func NewDecoder(maxBytes int64) *Decoder {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	return &Decoder{max: maxBytes, in: bufio.NewReader(nil)}
}

// Open takes one envelope apart. It is NewDecoder and Decode for who has few.
func Open(payload []byte) (*Batch, error) {
	d := NewDecoder(0)
	defer d.Close()
	return d.Decode(payload)
}

// Close frees the decoder's memory. It may be used again after that.
func (d *Decoder) Close() {
	if d.zstd != nil {
		d.zstd.Close()
		d.zstd = nil
	}
	d.packed = nil
}

// Detect tells by its first bytes how an envelope is packed, and whether it is one at all. A plain one begins with the `{`
// of its header.
func Detect(payload []byte) (Compression, bool) {
	switch {
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878, 3.1.1
		return Zstd, true
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}): // RFC 1952, 2.3.1
		return Gzip, true
	case bytes.HasPrefix(payload, []byte(`{"v":`)):
		return None, true
	}
	return None, false
}

// Decode takes one envelope apart. What it returns is the caller's. The error is or wraps ErrFormat, ErrVersion or
// ErrTooLarge.
func (d *Decoder) Decode(payload []byte) (*Batch, error) {
	b, rest, err := d.Next(payload)
	if err == nil && len(bytes.Trim(rest, blank)) > 0 {
		return nil, fmt.Errorf("envelope: %d bytes behind the batch: %w", len(rest), ErrFormat)
	}
	return b, err
}

// Next takes the first one apart of envelopes that stand one behind the other, packed in any way, as a file has them that
// payloads were appended to; there may be line feeds between them. It returns what is behind it.
func (d *Decoder) Next(data []byte) (*Batch, []byte, error) {
	data = bytes.TrimLeft(data, "\r\n")
	src := bytes.NewReader(data)
	d.in.Reset(src)
	b, err := d.next(d.in)
	rest := data[len(data)-d.in.Buffered()-src.Len():]
	d.in.Reset(nil)
	if err != nil {
		return nil, data, fmt.Errorf("envelope: %w", err)
	}
	return b, bytes.TrimLeft(rest, "\r\n"), nil
}

// next takes one envelope off a reader, and not a byte more.
func (d *Decoder) next(r *bufio.Reader) (*Batch, error) {
	begin, _ := r.Peek(5) // what is wrong with the reader shows when more is read
	c, ok := Detect(begin)
	if !ok {
		return nil, fmt.Errorf("it begins like no batch: %w", ErrFormat)
	}
	if c == None {
		read := 0
		b, err := d.records(func() ([]byte, error) {
			l, n, err := plainLine(r, d.max-int64(read))
			read += n
			return l, err
		})
		return b, err
	}
	text, err := d.unpack(c, r)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", c, err)
	}
	b, err := d.records(func() (l []byte, err error) {
		l, text = nextLine(text)
		return l, nil
	})
	if err == nil && len(bytes.Trim(text, blank)) > 0 {
		return nil, fmt.Errorf("%d bytes behind the last message: %w", len(text), ErrFormat)
	}
	if err == nil {
		b.Compression = c
	}
	return b, err
}

func (d *Decoder) unpack(c Compression, r *bufio.Reader) ([]byte, error) {
	if c == Zstd {
		return d.unpackZstd(r)
	}
	return d.unpackGzip(r)
}

// unpackGzip unpacks one member.
func (d *Decoder) unpackGzip(r *bufio.Reader) ([]byte, error) {
	if head, _ := r.Peek(4); len(head) == 4 && head[3]&0xe0 != 0 {
		return nil, fmt.Errorf("%w: reserved flags", ErrFormat) // RFC 1952, 2.3.1.2
	}
	if d.gzip == nil {
		d.gzip = new(gzip.Reader)
	}
	if err := d.gzip.Reset(r); err != nil { // a bufio.Reader gives single bytes, so the end of the member is exact
		return nil, malformed(err)
	}
	d.gzip.Multistream(false)
	text, err := io.ReadAll(io.LimitReader(d.gzip, d.max+1))
	switch {
	case int64(len(text)) > d.max:
		return nil, ErrTooLarge
	case err != nil:
		return nil, malformed(err)
	}
	return text, nil
}

// unpackZstd unpacks one frame.
func (d *Decoder) unpackZstd(r *bufio.Reader) (text []byte, err error) {
	if d.packed, err = readZstdFrame(r, d.packed[:0], d.max); err != nil {
		return nil, err
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(d.max)), zstd.WithDecoderMaxWindow(uint64(max(d.max, 1<<20))))
		if err != nil {
			return nil, fmt.Errorf("make a zstd decoder: %w", err)
		}
	}
	text, err = d.zstd.DecodeAll(d.packed, nil)
	if cap(d.packed) > 1<<20 {
		d.packed = nil
	}
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded), int64(len(text)) > d.max:
		return nil, ErrTooLarge
	case err != nil:
		return nil, malformed(err)
	}
	return text, nil
}

func malformed(err error) error { return fmt.Errorf("%w: %w", ErrFormat, err) }

// records reads the lines of one batch; next returns nil where there are no more.
func (d *Decoder) records(next func() ([]byte, error)) (*Batch, error) {
	l, err := next()
	if err != nil {
		return nil, err
	}
	h, err := readHeader(l)
	if err != nil {
		return nil, err
	}
	if int64(h.N) > d.max/recordCost {
		return nil, fmt.Errorf("%d messages: %w", h.N, ErrTooLarge)
	}
	b := &Batch{Header: h}
	for len(b.Records) < h.N {
		l, err := next()
		switch {
		case err != nil:
			return nil, err
		case l == nil:
			return nil, fmt.Errorf("%d of %d messages: %w", len(b.Records), h.N, ErrFormat)
		}
		var r Record
		if err := r.UnmarshalJSON(l); err != nil {
			return nil, fmt.Errorf("message %d of %d: %w", len(b.Records)+1, h.N, malformed(err))
		}
		b.Records = append(b.Records, r)
	}
	return b, nil
}

// nextLine cuts the first line with anything in it off text; nil: there is none.
func nextLine(text []byte) (l, rest []byte) {
	for len(text) > 0 {
		l, text, _ = bytes.Cut(text, []byte{'\n'})
		if l = bytes.Trim(l, blank); len(l) > 0 {
			return l, text
		}
	}
	return nil, nil
}

// plainLine reads the first line with anything in it, in n bytes of at most limit; nil: there is none.
func plainLine(r *bufio.Reader, limit int64) (l []byte, n int, err error) {
	for {
		part, err := r.ReadSlice('\n')
		n += len(part)
		l = append(l, part...)
		switch {
		case int64(n) > limit:
			return nil, n, ErrTooLarge
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, n, err
		}
		l = bytes.Trim(l, blank)
		switch {
		case len(l) > 0:
			return l, n, nil
		case err != nil:
			return nil, n, nil
		}
	}
}
