package buffer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// This file and codec.go own every byte on disk. All numbers are little endian; "uvarint" and "varint" are those of
// encoding/binary; times are log times, in milliseconds (see clock.go); checksums are CRC-32C.
//
// # Segment file, NNNNNNNNNNNNNNNN.seg (16 hexadecimal digits, rising)
//
//	0      512     1024      1536     2048                                                    size-512   size
//	+------+-------+---------+--------+---------+---------+-------+-----+-------+-----+----------+--------+
//	|header|header |seal slot|reserved|check-   |check-   |frame  | ... |frame  | end | stale or | header |
//	|      |(copy) |         |        |point    |point    |       |     |(seal) | mark| zero     | (copy) |
//	+------+-------+---------+--------+---------+---------+-------+-----+-------+-----+----------+--------+
//
// What lies behind the end mark has no meaning: zeros in a new file, the old content in a recycled one. Each commit overwrites the
// end mark of the one before. The end mark tells a log that simply ends from one whose last frame was torn or damaged.
//
// The first frame that begins behind the first 4096 bytes holds every queue, too, unless a checkpoint stands there: with the header at
// the end, the loss of the first page costs no more than what is in it. A segment that is shortened keeps its header at the new end.
//
// Segment header (64 of 512 bytes; written three times, so that one bad sector or page does not cost the segment):
//
//	0       4       6     8      16      24          32      40        48     52          60     64
//	+-------+-------+-----+------+-------+-----------+-------+---------+------+-----------+------+
//	| magic |version|flags| salt | index | first pos | epoch | origin  | size | boot      | crc  |
//	+-------+-------+-----+------+-------+-----------+-------+---------+------+-----------+------+
//
// boot names the start of the machine in which the segment was begun, 0 if that is not known, and origin is the log time of that start.
//
// The random salt and the frame's own offset seed the checksums of every frame, the end mark and the seal slot, so nothing left over
// from an earlier life of the file, and nothing copied into a payload, can be taken for a frame.
//
// Seal slot (24 bytes): magic 4, version 4, offset of the seal frame 8, reserved 4, crc 4. It is written when the segment is closed for
// writing; without a valid one, or without a valid seal frame, the segment is scanned.
//
// End mark (8 bytes): magic 4, crc 4 (over the magic, seeded by salt and offset).
//
// # Frame (one group commit)
//
//	0       4      5       6          8        12      16          24          32        40        44       48
//	+-------+------+-------+----------+--------+-------+-----------+-----------+---------+---------+--------+------~
//	| magic | kind | flags | sections | length | count | first pos | base time | expires | crc of  | crc of | body
//	|       |      |       |          | (body) |       |           |           |(largest)| body    | header |
//	+-------+------+-------+----------+--------+-------+-----------+-----------+---------+---------+--------+------~
//
// Kinds: commit (records, or only cursors), checkpoint (every queue), relocated (records moved here with their old sequences; they
// take no position), seal (every queue, and the extents of this segment). "expires" is 0 if a record in it never expires.
//
// # Section (the body is one or more)
//
//	0      1       2          4       8            12              16             20          24
//	+------+-------+----------+-------+------------+---------------+--------------+-----------+-------~
//	| kind | codec | cipher   | count | raw length | stored length | index length | key       | bytes
//	+------+-------+----------+-------+------------+---------------+--------------+-----------+-------~
//
// codec 0 is plain, 1 is zstd (compress.go). cipher 0 is plain, 1 AES-256-GCM, 2 ChaCha20-Poly1305 (crypt.go), and key then names the key,
// so that the queues of each uplink can have their own. Only records are compressed and then sealed, never the index behind them: raw
// length is that of both before, stored length that of what is there, the tag of the cipher between records and index included.
// Records of several keys stand in several sections of one frame. A reader skips sections of a kind it does not know.
const (
	segmentMagic  = 0x31534754 // "TGS1"
	slotMagic     = 0x31455354 // "TSE1"
	endMagic      = 0x31444e45 // "END1"
	frameMagic    = 0x31464754 // "TGF1"
	formatVersion = 2          // 1 has no records that end like others and no losses

	segmentHeaderLen = 64
	headerCopyAt     = 512
	slotAt           = 1024
	slotLen          = 24
	dataStart        = 2048
	// firstPage is what one bad page at the head may cost, tailLen is kept for the header's copy at the end.
	firstPage        = 4096
	tailLen          = 512
	frameHeaderLen   = 48
	sectionHeaderLen = 24
	endMarkLen       = 8

	// flagDelayedSync in a segment header says that commits were reported before their fsync, so after a crash even
	// a clean looking end may lack records that were read.
	flagDelayedSync = 1
)

type frameKind uint8

const (
	frameCommit     frameKind = 1
	frameCheckpoint frameKind = 2
	frameRelocated  frameKind = 3
	frameSeal       frameKind = 4
)

type sectionKind uint8

const (
	sectionRecords sectionKind = 1
	sectionQueues  sectionKind = 2 // every queue there is
	sectionCursors sectionKind = 3 // queues that changed
	sectionExtents sectionKind = 4
	sectionAges    sectionKind = 5
	sectionKeys    sectionKind = 6
	sectionLosses  sectionKind = 7 // beside queues or cursors
)

// seed gives the start value of the checksums of what stands at off in a segment.
func seed(salt uint64, off int64) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], salt)
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	return checksum(0, b[:])
}

func checksum(start uint32, b []byte) uint32 {
	return crc32.Update(start, crc32.MakeTable(crc32.Castagnoli), b)
}

type segmentHeader struct {
	flags  uint16
	salt   uint64
	index  uint64
	first  Pos
	epoch  uint64
	boot   uint64
	origin int64
	size   uint32
}

// putSegmentHeader writes two copies into b, which holds the first bytes of the file; the third is for its end.
func putSegmentHeader(b []byte, h segmentHeader) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], segmentMagic)
	le.PutUint16(b[4:], formatVersion)
	le.PutUint16(b[6:], h.flags)
	le.PutUint64(b[8:], h.salt)
	le.PutUint64(b[16:], h.index)
	le.PutUint64(b[24:], h.first)
	le.PutUint64(b[32:], h.epoch)
	le.PutUint64(b[40:], uint64(h.origin))
	le.PutUint32(b[48:], h.size)
	le.PutUint64(b[52:], h.boot)
	le.PutUint32(b[60:], checksum(0, b[:60]))
	copy(b[headerCopyAt:], b[:segmentHeaderLen])
}

// readSegmentHeader reads whichever copy at the start of the file is intact. version is 0 if none is.
func readSegmentHeader(b []byte) (h segmentHeader, version uint16) {
	if h, version = readHeaderCopy(b); version == 0 {
		h, version = readHeaderCopy(b[headerCopyAt:])
	}
	return h, version
}

// readHeaderCopy reads one copy. version is 0 if it is not intact.
func readHeaderCopy(c []byte) (h segmentHeader, version uint16) {
	le := binary.LittleEndian
	if le.Uint32(c) != segmentMagic || le.Uint32(c[60:]) != checksum(0, c[:60]) {
		return segmentHeader{}, 0
	}
	return segmentHeader{
		flags: le.Uint16(c[6:]), salt: le.Uint64(c[8:]), index: le.Uint64(c[16:]), first: le.Uint64(c[24:]),
		epoch: le.Uint64(c[32:]), origin: int64(le.Uint64(c[40:])), size: le.Uint32(c[48:]), boot: le.Uint64(c[52:]),
	}, le.Uint16(c[4:])
}

func putSealSlot(b []byte, salt uint64, sealAt int64) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], slotMagic)
	le.PutUint32(b[4:], formatVersion)
	le.PutUint64(b[8:], uint64(sealAt))
	le.PutUint32(b[16:], 0)
	le.PutUint32(b[20:], checksum(seed(salt, slotAt), b[:20]))
}

func readSealSlot(b []byte, salt uint64) (sealAt int64, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(b) != slotMagic || le.Uint32(b[20:]) != checksum(seed(salt, slotAt), b[:20]) {
		return 0, false
	}
	return int64(le.Uint64(b[8:])), true
}

func putEndMark(b []byte, salt uint64, off int64) {
	binary.LittleEndian.PutUint32(b, endMagic)
	binary.LittleEndian.PutUint32(b[4:], checksum(seed(salt, off), b[:4]))
}

func isEndMark(b []byte, salt uint64, off int64) bool {
	return len(b) >= endMarkLen && binary.LittleEndian.Uint32(b) == endMagic &&
		binary.LittleEndian.Uint32(b[4:]) == checksum(seed(salt, off), b[:4])
}

type frameHeader struct {
	kind     frameKind
	flags    uint8
	sections uint16
	length   uint32
	count    uint32
	first    Pos
	base     int64
	expires  int64
	bodyCRC  uint32
}

// total is the length of the whole frame.
func (h frameHeader) total() int64 { return frameHeaderLen + int64(h.length) }

// positions is how many positions the frame takes.
func (h frameHeader) positions() uint64 {
	if h.kind != frameCommit {
		return 0
	}
	return uint64(h.count)
}

// finishFrame fills in the header and both checksums of the frame b, which will stand at off.
func finishFrame(b []byte, h frameHeader, salt uint64, off int64) {
	le := binary.LittleEndian
	s := seed(salt, off)
	body := b[frameHeaderLen:]
	le.PutUint32(b[0:], frameMagic)
	b[4], b[5] = byte(h.kind), h.flags
	le.PutUint16(b[6:], h.sections)
	le.PutUint32(b[8:], uint32(len(body)))
	le.PutUint32(b[12:], h.count)
	le.PutUint64(b[16:], h.first)
	le.PutUint64(b[24:], uint64(h.base))
	le.PutUint64(b[32:], uint64(h.expires))
	le.PutUint32(b[40:], checksum(s, body))
	le.PutUint32(b[44:], checksum(s, b[:44]))
}

// readFrameHeader checks the header at the start of b, which stands at off.
func readFrameHeader(b []byte, salt uint64, off int64) (frameHeader, error) {
	le := binary.LittleEndian
	if len(b) < frameHeaderLen || le.Uint32(b) != frameMagic {
		return frameHeader{}, errBadMagic
	}
	if le.Uint32(b[44:]) != checksum(seed(salt, off), b[:44]) {
		return frameHeader{}, errBadHeader
	}
	return frameHeader{
		kind: frameKind(b[4]), flags: b[5], sections: le.Uint16(b[6:]), length: le.Uint32(b[8:]), count: le.Uint32(b[12:]),
		first: le.Uint64(b[16:]), base: int64(le.Uint64(b[24:])), expires: int64(le.Uint64(b[32:])), bodyCRC: le.Uint32(b[40:]),
	}, nil
}

type sectionHeader struct {
	kind   sectionKind
	codec  uint8
	cipher uint16
	count  uint32
	raw    uint32
	stored uint32
	index  uint32
	key    uint32
}

func putSectionHeader(b []byte, h sectionHeader) {
	le := binary.LittleEndian
	b[0], b[1] = byte(h.kind), h.codec
	le.PutUint16(b[2:], h.cipher)
	le.PutUint32(b[4:], h.count)
	le.PutUint32(b[8:], h.raw)
	le.PutUint32(b[12:], h.stored)
	le.PutUint32(b[16:], h.index)
	le.PutUint32(b[20:], h.key)
}

// section is one section of a checked frame; bytes alias the frame.
type section struct {
	sectionHeader
	head, bytes []byte
}

// nextSection cuts the first section off a body.
func nextSection(body []byte) (s section, rest []byte, err error) {
	if len(body) < sectionHeaderLen {
		return section{}, nil, fmt.Errorf("section header: %w", errBadContent)
	}
	le := binary.LittleEndian
	s.sectionHeader = sectionHeader{
		kind: sectionKind(body[0]), codec: body[1], cipher: le.Uint16(body[2:]), count: le.Uint32(body[4:]),
		raw: le.Uint32(body[8:]), stored: le.Uint32(body[12:]), index: le.Uint32(body[16:]),
		key: le.Uint32(body[20:]),
	}
	s.head, body = body[:sectionHeaderLen], body[sectionHeaderLen:]
	if uint64(s.stored) > uint64(len(body)) {
		return section{}, nil, fmt.Errorf("section length: %w", errBadContent)
	}
	s.bytes = body[:s.stored]
	return s, body[s.stored:], nil
}

// plain says whether the section's bytes can be read as they are.
func (s section) plain() bool {
	return s.codec == codecNone && s.cipher == cipherNone && s.raw == s.stored && s.index <= s.raw
}

// sound says whether the lengths in the header of a section of records can be true.
func (s section) sound() bool {
	switch {
	case s.plain():
		return true
	case s.codec > codecZstd || s.cipher > cipherChaCha || s.index > s.raw || s.raw-s.index > maxRaw:
		return false
	}
	need := uint64(s.index)
	if s.cipher != cipherNone {
		need += tagBytes
	}
	if s.codec == codecNone {
		return uint64(s.stored) == need+uint64(s.raw-s.index)
	}
	return uint64(s.stored) >= need
}
