package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// window reads frames of one segment through a buffer. Frames it returns alias the buffer until it is filled again.
type window struct {
	f    File
	salt uint64
	off  int64
	buf  []byte
	// ahead is how much is read at once; 0: readBytes. Less is of use where it is decompressed to as much as one batch takes.
	ahead int
	// err is the last error of the disk; unreadable bytes count as zero.
	err error
}

// errOutside says that the wanted bytes are not in the buffer and may not be loaded.
var errOutside = errors.New("outside the window")

// reset makes w read another file and keeps the memory.
func (w *window) reset(f File, salt uint64) {
	if cap(w.buf) > 2*frameBytes {
		w.buf = nil // one large record does not keep its memory for ever
	}
	w.f, w.salt, w.off, w.buf, w.err = f, salt, 0, w.buf[:0], nil
}

// fill loads n bytes from off.
func (w *window) fill(off int64, n int) {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	w.buf, w.off = w.buf[:n], off
	if err := readFull(w.f, w.buf, off); err != nil {
		w.err = err
	}
}

// get gives the n bytes at off; load allows reading them, and more up to end, from the file.
func (w *window) get(off int64, n int, end int64, load bool) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		if off+int64(n) > end {
			return nil, errPastEnd
		}
		if !load {
			return nil, errOutside
		}
		ahead := int64(readBytes)
		if w.ahead > 0 {
			ahead = int64(w.ahead)
		}
		w.fill(off, max(n, int(min(end-off, ahead))))
	}
	return w.buf[off-w.off:][:n:n], nil
}

// frame gives the frame at off, which must end at or before end. With a bad body the header is returned beside the error.
func (w *window) frame(off, end int64, load bool) (frameHeader, []byte, error) {
	b, err := w.get(off, frameHeaderLen, end, load)
	if err != nil {
		return frameHeader{}, nil, err
	}
	h, err := readFrameHeader(b, w.salt, off)
	if err != nil {
		return frameHeader{}, nil, err
	}
	if off+h.total() > end {
		return frameHeader{}, nil, errPastEnd
	}
	b, err = w.get(off, int(h.total()), end, load)
	if err != nil {
		return frameHeader{}, nil, err
	}
	body := b[frameHeaderLen:]
	if checksum(seed(w.salt, off), body) != h.bodyCRC {
		return h, nil, errBadBody
	}
	return h, body, nil
}

// resync looks for the first frame at or behind off whose header is intact.
func (w *window) resync(off, end int64) (int64, bool) {
	var magic [4]byte
	binary.LittleEndian.PutUint32(magic[:], frameMagic)
	for off+frameHeaderLen <= end {
		b, err := w.get(off, int(min(end-off, 64<<10)), end, true)
		if err != nil {
			return 0, false
		}
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], magic[:])
			if i < 0 {
				break
			}
			at += i
			if len(b)-at < frameHeaderLen {
				break // the next round sees it whole
			}
			h, err := readFrameHeader(b[at:], w.salt, off+int64(at))
			if err == nil && off+int64(at)+h.total() <= end {
				return off + int64(at), true
			}
		}
		// The last bytes are looked at again: a header may begin in them.
		off += max(int64(len(b))-frameHeaderLen+1, 1)
	}
	return 0, false
}
