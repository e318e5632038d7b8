package envelope

import (
	"encoding/binary"
	"errors"
)

var errFrameCut = errors.New("the zstd frame is cut short")

// zstdFrameLen returns how many of the first bytes of data are one zstd frame, which its block headers tell
// (RFC 8878, 3.1.1). data begins with the magic number.
func zstdFrameLen(data []byte) (int, error) {
	if len(data) < 5 {
		return 0, errFrameCut
	}
	descriptor := data[4]
	at := 5
	single := descriptor&0x20 != 0
	if !single {
		at++ // window descriptor
	}
	at += []int{0, 1, 2, 4}[descriptor&3] // dictionary identifier
	switch size := descriptor >> 6; {     // frame content size
	case size > 0:
		at += 1 << size
	case single:
		at++
	}
	for {
		if at+3 > len(data) {
			return 0, errFrameCut
		}
		header := uint32(data[at]) | uint32(binary.LittleEndian.Uint16(data[at+1:]))<<8
		at += 3
		size := int(header >> 3)
		if header>>1&3 == 1 { // a repeated byte
			size = 1
		}
		at += size
		if header&1 != 0 {
			break
		}
	}
	if descriptor&4 != 0 {
		at += 4 // checksum
	}
	if at > len(data) {
		return 0, errFrameCut
	}
	return at, nil
}
