package envelope

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Reader takes envelopes apart that stand one behind the other in a stream, packed in any way, as mosquitto_sub and a file give
// them that payloads were appended to. Line feeds between two are passed over. Each is handed out as soon as its last byte is there.
type Reader struct {
	d     *Decoder
	src   *source
	r     *bufio.Reader
	start int64
}

// NewReader makes a reader of envelopes that unpack to maxBytes at most; 0 means DefaultMaxBytes.
func NewReader(r io.Reader, maxBytes int64) *Reader {
	src := &source{r: r}
	return &Reader{d: NewDecoder(maxBytes), src: src, r: bufio.NewReaderSize(src, 64<<10)}
}

// Next returns the next envelope; io.EOF: there is none. Any other error ends the stream, as where the next one begins is not known
// then: it is that of the stream, or is or wraps ErrFormat, ErrVersion or ErrTooLarge.
func (r *Reader) Next() (*Batch, error) {
	for {
		c, err := r.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if c != '\n' && c != '\r' {
			break
		}
	}
	_ = r.r.UnreadByte()
	r.start = r.at()
	b, err := r.d.next(r.r)
	switch failed := r.src.err; {
	case err == nil:
		return b, nil
	case failed != nil && !errors.Is(failed, io.EOF):
		return nil, failed
	}
	return nil, fmt.Errorf("envelope: %w", err)
}

// Offset is where the envelope begins that Next returned or failed at.
func (r *Reader) Offset() int64 { return r.start }

// Close frees the reader's memory. It does not close the stream.
func (r *Reader) Close() { r.d.Close() }

func (r *Reader) at() int64 { return r.src.n - int64(r.r.Buffered()) }

// source counts what was read and keeps why it ended.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}
