package gate

import "errors"

// Control packet types the gate tells apart (high half of the first byte).
const (
	typeConnect    = 1
	typeConnack    = 2
	typePuback     = 4
	typePubrec     = 5
	typePubcomp    = 7
	typeDisconnect = 14
)

// Reason codes of the DISCONNECT packets the gate sends by itself on MQTT 5.
const (
	codeMalformed      = 0x81
	codePacketTooLarge = 0x95
)

// maxLengthBytes is the longest remaining length field: four bytes, 268,435,455 at most.
const maxLengthBytes = 4

// What a peer can send that ends its connection. Read returns them wrapped.
var (
	// ErrNotConnect: the first packet is not CONNECT [MQTT-3.1.0-1].
	ErrNotConnect = errors.New("first packet is not connect")
	// ErrConnectTooLarge: the CONNECT packet is larger than Options.MaxConnectBytes.
	ErrConnectTooLarge = errors.New("connect packet too large")
	// ErrPacketTooLarge: a later packet is larger than Options.MaxPacket [MQTT-3.2.2-15].
	ErrPacketTooLarge = errors.New("packet too large")
	// ErrMalformed: the fixed header is none: type 0, or a remaining length of more than four bytes.
	ErrMalformed = errors.New("malformed fixed header")
)

// splitFrame looks at the packet at the start of p. It returns its type and its whole length in bytes; ok is false when p
// does not hold that packet whole or begins with no fixed header at all.
func splitFrame(p []byte) (typ byte, n int, ok bool) {
	if len(p) < 2 || p[0]>>4 == 0 {
		return 0, 0, false
	}
	length := 0
	for i := range maxLengthBytes {
		if 1+i >= len(p) {
			return 0, 0, false
		}
		b := p[1+i]
		length |= int(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			n = 2 + i + length
			return p[0] >> 4, n, n <= len(p)
		}
	}
	return 0, 0, false
}

// accepts tells whether the CONNACK packet in frame lets the client in: the reason code is the second byte of its body.
func accepts(frame []byte) bool {
	i := 1
	for i < len(frame) && frame[i]&0x80 != 0 {
		i++
	}
	return i+2 < len(frame) && frame[i+2] == 0
}

// waitsForDisk tells which packets a ticket holds back. CONNACK is among them only to stay the first packet.
func waitsForDisk(typ byte) bool {
	return typ == typePuback || typ == typePubrec || typ == typePubcomp || typ == typeConnack
}

// scanner follows the packets in a byte stream that arrives in arbitrary pieces. It looks at fixed headers, and in the
// CONNECT at the protocol level; bodies are skipped and nothing is copied.
type scanner struct {
	maxConnect int // largest CONNECT, whole packet, bytes
	maxPacket  int // largest other packet, whole packet, bytes

	left     int  // body bytes of the current packet still to come
	length   int  // remaining length as far as it was read
	typ      byte // type of the current packet
	header   byte // bytes of the fixed header read so far; 0: at a packet boundary
	first    bool // a first packet was begun
	whole    bool // the CONNECT was read to its end
	level    byte // protocol level of the CONNECT: 3, 4, 5; 0 while not known
	pos      byte // position in the CONNECT body while the level is not known
	nameSize byte // length of the protocol name, from the CONNECT
}

// levelSearch bounds the search for the protocol level: two bytes of length, a name of at most six, the level.
const levelSearch = 9

// scan goes over p, the next bytes of the stream. It returns how many of them may be handed on: all, or with an error
// those before the packet that caused it. After an error the scanner must not be used any more.
func (s *scanner) scan(p []byte) (int, error) {
	start := 0 // where the current packet begins in p
	for i := 0; i < len(p); {
		if s.left > 0 {
			i += s.body(p[i:])
			continue
		}
		if s.header == 0 {
			start = i
		}
		done, err := s.headerByte(p[i])
		if err != nil {
			return start, err
		}
		i++
		if done && s.left == 0 {
			s.packetEnd()
		}
	}
	return len(p), nil
}

// between tells whether the last byte scanned was the end of a packet.
func (s *scanner) between() bool { return s.header == 0 && s.left == 0 }

// body takes what belongs to the current packet's body from the front of p and returns how much that was.
func (s *scanner) body(p []byte) int {
	n := min(s.left, len(p))
	if s.typ == typeConnect && !s.whole && s.level == 0 {
		s.findLevel(p[:n])
	}
	s.left -= n
	if s.left == 0 {
		s.packetEnd()
	}
	return n
}

func (s *scanner) packetEnd() {
	if s.typ == typeConnect {
		s.whole = true
	}
}

// findLevel reads the protocol level, the byte after the protocol name, from the body of the first CONNECT.
func (s *scanner) findLevel(p []byte) {
	for _, b := range p {
		switch {
		case s.pos >= levelSearch:
			return
		case s.pos == 0 && b != 0:
			s.pos = levelSearch // a name of 256 bytes or more: no MQTT
			return
		case s.pos == 1:
			s.nameSize = b
		case s.pos == 2+s.nameSize && s.nameSize < levelSearch-2:
			s.level = b
			s.pos = levelSearch
			return
		}
		s.pos++
	}
}

// headerByte takes one byte of a fixed header. It returns true with the last one, after which left is the body's length.
func (s *scanner) headerByte(b byte) (bool, error) {
	if s.header == 0 {
		s.typ = b >> 4
		s.length = 0
		s.header = 1
		switch {
		case !s.first && s.typ != typeConnect:
			return false, ErrNotConnect
		case s.typ == 0:
			return false, ErrMalformed
		}
		return false, nil
	}
	s.length |= int(b&0x7f) << (7 * (s.header - 1))
	s.header++
	if b&0x80 != 0 {
		if s.header > maxLengthBytes {
			return false, ErrMalformed
		}
		return false, nil
	}
	size := int(s.header) + s.length
	switch {
	case !s.first && size > s.maxConnect:
		return false, ErrConnectTooLarge
	case size > s.maxPacket:
		return false, ErrPacketTooLarge
	}
	s.first = true
	s.left = s.length
	s.header = 0
	return true, nil
}
