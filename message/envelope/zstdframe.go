package envelope

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var errFrameCut = errors.New("the zstd frame is cut short")

// maxBlock is the size of a block of zstd at most (RFC 8878, 3.1.1.2.4).
const maxBlock = 128 << 10

// readZstdFrame appends one zstd frame to b, which its block headers tell (RFC 8878, 3.1.1), and reads not a byte more. A frame
// that is longer than what it may unpack to is too large.
func readZstdFrame(r *bufio.Reader, b []byte, limit int64) ([]byte, error) {
	take := func(n int) error {
		if int64(len(b)+n) > limit+maxBlock {
			return ErrTooLarge
		}
		from := len(b)
		b = append(b, make([]byte, n)...)
		_, err := io.ReadFull(r, b[from:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return malformed(errFrameCut)
		}
		return err
	}
	if err := take(5); err != nil {
		return b, err
	}
	descriptor := b[4]
	header := 0
	single := descriptor&0x20 != 0
	if !single {
		header++ // window descriptor
	}
	header += []int{0, 1, 2, 4}[descriptor&3] // dictionary identifier
	switch size := descriptor >> 6; {         // frame content size
	case size > 0:
		header += 1 << size
	case single:
		header++
	}
	if err := take(header); err != nil {
		return b, err
	}
	for last := false; !last; {
		if err := take(3); err != nil {
			return b, err
		}
		at := len(b) - 3
		block := uint32(b[at]) | uint32(binary.LittleEndian.Uint16(b[at+1:]))<<8
		last = block&1 != 0
		size := int(block >> 3)
		if size > maxBlock {
			return b, malformed(fmt.Errorf("a block of %d bytes", size))
		}
		if block>>1&3 == 1 { // a repeated byte
			size = 1
		}
		if err := take(size); err != nil {
			return b, err
		}
	}
	if descriptor&4 != 0 {
		return b, take(4) // checksum
	}
	return b, nil
}
