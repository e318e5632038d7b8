package envelope

import (
	"compress/gzip"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// encoderWindow bounds how far back a repetition is found, and with it the memory of an encoder and of every decoder.
const encoderWindow = 256 << 10

// Encoder packs batches, one after the other. It is not for use from several goroutines. It keeps about a MiB.
type Encoder struct {
	compression Compression
	zstd        *zstd.Encoder
	gzip        *gzip.Writer
	out         appender
}

// NewEncoder makes an encoder.
func NewEncoder(c Compression) (*Encoder, error) {
	e := &Encoder{compression: c}
	switch c {
	case None:
	case Gzip:
		e.gzip = gzip.NewWriter(&e.out)
	case Zstd:
		var err error
		// The fastest level packs lines of one kind as well as the next one, at less cost. It would leave base64 as it is, in which it
		// finds no repetitions, but for the literals.
		e.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithAllLitEntropyCompression(true),
			zstd.WithWindowSize(encoderWindow), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("envelope: make a zstd encoder: %w", err)
		}
	default:
		return nil, fmt.Errorf("envelope: no compression %d", c)
	}
	return e, nil
}

// Compression is what the encoder was made for.
func (e *Encoder) Compression() Compression { return e.compression }

// Append packs text, which is a header and its lines, and appends the result to dst.
func (e *Encoder) Append(dst, text []byte) ([]byte, error) {
	switch e.compression {
	case Zstd:
		return e.zstd.EncodeAll(text, dst), nil
	case Gzip:
		e.out.b = dst
		e.gzip.Reset(&e.out)
		_, err := e.gzip.Write(text)
		if cerr := e.gzip.Close(); err == nil {
			err = cerr
		}
		dst, e.out.b = e.out.b, nil
		if err != nil {
			return dst, fmt.Errorf("envelope: gzip: %w", err)
		}
		return dst, nil
	}
	return append(dst, text...), nil
}

// appender is a writer into memory that the caller gives.
type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}
