package buffer

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directChunk is how much goes to the disk at once past the page cache; directAlign is a multiple of every block size that
// Linux wants addresses, offsets and lengths to be multiples of.
const (
	directChunk = 1 << 20
	directAlign = 4096
)

// fillZeros writes past the page cache: zeros that go through it cost as much processor time and memory as records do, though
// nobody ever reads them.
func (f osFile) fillZeros(size int64, stopped func() bool) (off int64, err error) {
	d, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return 0, nil // not on this file system; the caller fills what is left in the ordinary way
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	zeros := alignedZeros(directChunk)
	for size -= size % directAlign; off < size; {
		if stopped() {
			return off, ErrClosed
		}
		n, err := d.WriteAt(zeros[:min(size-off, directChunk)], off)
		if errors.Is(err, unix.EINVAL) {
			return off, nil // it was opened, but the blocks are larger than expected
		}
		if err != nil {
			return off, err
		}
		off += int64(n)
	}
	return off, nil
}

// alignedZeros gives n zeros whose address is aligned.
func alignedZeros(n int) []byte {
	b := make([]byte, n+directAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directAlign - 1) //nolint:gosec // the address is only looked at
	return b[skip : skip+n : skip+n]
}
