package envelope

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// DefaultMaxBytes is how much an envelope may unpack to where nobody says otherwise: far more than the 128 KiB of lines that
// a gateway puts into one, which only a single large message can exceed.
const DefaultMaxBytes = 16 << 20

// Decoder takes envelopes apart, one after the other. It is not for use from several goroutines. Close frees what it holds.
type Decoder struct {
	max  int64
	zstd *zstd.Decoder
	gzip *gzip.Reader
}

// NewDecoder makes a decoder of envelopes that unpack to maxBytes at most; 0 means DefaultMaxBytes.
func NewDecoder(maxBytes int64) *Decoder {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	return &Decoder{max: maxBytes}
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
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("envelope: %d bytes behind the batch: %w", len(rest), ErrFormat)
	}
	return b, err
}

// Next takes the first one apart of envelopes that stand one behind the other, packed in any way, as a file has them that
// payloads were appended to. It returns what is behind it.
func (d *Decoder) Next(data []byte) (*Batch, []byte, error) {
	c, ok := Detect(data)
	if !ok {
		return nil, data, fmt.Errorf("envelope: %d bytes that begin like no batch: %w", len(data), ErrFormat)
	}
	text, rest, err := data, []byte(nil), error(nil)
	switch c {
	case Zstd:
		text, rest, err = d.nextZstd(data)
	case Gzip:
		text, rest, err = d.nextGzip(data)
	}
	if err != nil {
		return nil, data, fmt.Errorf("envelope: unpack %d bytes of %s: %w", len(data), c, err)
	}
	b, behind, err := d.read(text)
	switch {
	case err != nil:
		return nil, data, fmt.Errorf("envelope: %w", err)
	case c == None:
		rest = behind
	case len(bytes.TrimSpace(behind)) > 0:
		return nil, data, fmt.Errorf("envelope: %d bytes behind the last message: %w", len(behind), ErrFormat)
	}
	b.Compression = c
	return b, rest, nil
}

// nextGzip unpacks one member.
func (d *Decoder) nextGzip(data []byte) (text, rest []byte, err error) {
	r := bytes.NewReader(data) // it reads single bytes, so the end of the member is exact
	if d.gzip == nil {
		d.gzip = new(gzip.Reader)
	}
	if err := d.gzip.Reset(r); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	d.gzip.Multistream(false)
	text, err = io.ReadAll(io.LimitReader(d.gzip, d.max+1))
	switch {
	case int64(len(text)) > d.max:
		return nil, nil, ErrTooLarge
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return text, data[len(data)-r.Len():], nil
}

// nextZstd unpacks one frame.
func (d *Decoder) nextZstd(data []byte) (text, rest []byte, err error) {
	n, err := zstdFrameLen(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(d.max)), zstd.WithDecoderMaxWindow(uint64(max(d.max, 1<<20))))
		if err != nil {
			return nil, nil, fmt.Errorf("make a zstd decoder: %w", err)
		}
	}
	text, err = d.zstd.DecodeAll(data[:n], nil)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded), int64(len(text)) > d.max:
		return nil, nil, ErrTooLarge
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return text, data[n:], nil
}

// recordCost is what a message counts at least against the limit: lines can be shorter than what is made of them.
const recordCost = 512

// read reads the lines of one batch and returns what is behind them.
func (d *Decoder) read(text []byte) (*Batch, []byte, error) {
	whole := len(text)
	l, text := nextLine(text)
	h, err := readHeader(l)
	if err != nil {
		return nil, nil, err
	}
	if int64(h.N) > d.max/recordCost {
		return nil, nil, fmt.Errorf("%d messages: %w", h.N, ErrTooLarge)
	}
	b := &Batch{Header: h}
	for len(b.Records) < h.N {
		if l, text = nextLine(text); l == nil {
			return nil, nil, fmt.Errorf("%d of %d messages: %w", len(b.Records), h.N, ErrFormat)
		}
		if int64(whole-len(text)) > d.max {
			return nil, nil, ErrTooLarge
		}
		var r Record
		if err := json.Unmarshal(l, &r); err != nil {
			return nil, nil, fmt.Errorf("message %d of %d: %w: %w", len(b.Records)+1, h.N, ErrFormat, err)
		}
		b.Records = append(b.Records, r)
	}
	for len(text) > 0 && (text[0] == '\n' || text[0] == '\r') {
		text = text[1:]
	}
	return b, text, nil
}

// nextLine cuts the first line with anything in it off text; nil: there is none.
func nextLine(text []byte) (l, rest []byte) {
	for len(text) > 0 {
		l, text, _ = bytes.Cut(text, []byte{'\n'})
		if l = bytes.TrimSpace(l); len(l) > 0 {
			return l, text
		}
	}
	return nil, nil
}

// readHeader reads a first line. A message of its own may begin like one, as values of OPC UA do ({"v":1,…): what has no
// gateway and no messages is no batch.
func readHeader(l []byte) (Header, error) {
	var h Header
	if err := json.Unmarshal(l, &h); err != nil {
		return h, fmt.Errorf("header: %w: %w", ErrFormat, err)
	}
	switch {
	case h.Gateway == "" || h.N < 1 || h.V < 1:
		return h, fmt.Errorf("header: v %d, gw %q, n %d: %w", h.V, h.Gateway, h.N, ErrFormat)
	case h.V != Version:
		return h, fmt.Errorf("header: version %d, known is %d: %w", h.V, Version, ErrVersion)
	}
	return h, nil
}
