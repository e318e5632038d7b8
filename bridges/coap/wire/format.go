package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	coap "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

// A datagram (RFC 7252, section 3), numbers big endian:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---+---+-------+---------------+-------------------------------+
//	| 1 | T |  TKL  |     code      |          message ID           |
//	+---+---+-------+---------------+-------------------------------+
//	| token, TKL bytes … | options … | 0xff and the payload, if any |
//	+--------------------+-----------+------------------------------+
//
// The codec of go-coap reads and writes the options. The head is read here, because what is wrong with a datagram decides
// what becomes of it: that needs more than an error.
const (
	headLen       = 4
	version       = 1
	payloadMarker = 0xff

	// maxDatagram is the largest UDP datagram.
	maxDatagram = 65535
	// maxOptions bounds the options of a request; a topic has one for each of its levels.
	maxOptions = 512
)

// head is the beginning of a datagram. token is a part of it.
type head struct {
	typ   coap.Type
	code  byte
	mid   uint16
	token []byte
}

// kind is what a datagram is to a server.
type kind int

const (
	// ignored: not CoAP, or a message that nobody may answer.
	ignored kind = iota
	// broken: a message format error. A confirmable message is rejected, others are ignored (4.2, 4.3).
	broken
	// request to be handled.
	request
	// rejected: a confirmable message that a server has no use for, such as a ping (4.3) or a response.
	rejected
	// acknowledgement of one of our confirmable messages.
	acknowledgement
	// reset: the peer does not want one of our messages.
	reset
)

// readHead reads the beginning of b and says what b is. rest is what follows the token.
//
// Datagrams of another version are to be ignored (section 3). So are those with a token length from 9 to 15: where their
// token ends is unknown, and with it everything behind.
func readHead(b []byte) (h head, rest []byte, is kind) {
	if len(b) < headLen || b[0]>>6 != version {
		return h, nil, ignored
	}
	h = head{typ: coap.Type(b[0] >> 4 & 3), code: b[1], mid: binary.BigEndian.Uint16(b[2:])}
	tokenLen := int(b[0] & 0xf)
	if tokenLen > coap.MaxTokenSize {
		return h, nil, ignored
	}
	if len(b) < headLen+tokenLen {
		return h, nil, broken
	}
	h.token = b[headLen : headLen+tokenLen]
	return h, b[headLen+tokenLen:], h.kind(len(b) == headLen)
}

// kind sorts a message by its type and code. bare: nothing follows the message ID.
func (h head) kind(bare bool) kind {
	class := h.code >> 5
	switch {
	case h.code == 0 && !bare:
		return broken // an empty message has nothing behind the message ID (4.1)
	case h.code == 0 && h.typ == coap.Acknowledgement:
		return acknowledgement
	case h.code == 0 && h.typ == coap.Reset:
		return reset
	case class == 0 && h.code != 0 && (h.typ == coap.Confirmable || h.typ == coap.NonConfirmable):
		return request
	case h.typ == coap.Confirmable:
		return rejected // a ping, a response that nobody waits for, or a reserved class
	}
	return ignored
}

var errFormat = errors.New("message format error")

// readOptions reads the options and the payload behind the token into dst, which it returns, grown if need be. Both point
// into b. Whether an option is known, and its length right, is for the reader of the options to judge: the codec's own
// table would drop critical options of a wrong length silently, which have to be refused (5.4.3).
func readOptions(dst coap.Options, b []byte) (options coap.Options, payload []byte, err error) {
	for {
		options = dst[:0]
		n, err := options.Unmarshal(b, nil)
		switch {
		case errors.Is(err, coap.ErrOptionsTooSmall) && cap(dst) < maxOptions:
			dst = make(coap.Options, 0, min(4*cap(dst), maxOptions))
			continue
		case err != nil:
			return dst, nil, fmt.Errorf("%w: %w", errFormat, err)
		case n < len(b):
			return options, b[n:], nil
		case n > 0 && b[n-1] == payloadMarker && endsInMarker(b, cap(dst)):
			return dst, nil, fmt.Errorf("%w: nothing behind the payload marker", errFormat)
		}
		return options, nil, nil
	}
}

// endsInMarker tells a payload marker at the very end from an option whose value ends in the same byte: without its last
// byte such an option is cut short. The codec does not tell them apart.
func endsInMarker(b []byte, room int) bool {
	again := make(coap.Options, 0, room)
	n, err := again.Unmarshal(b[:len(b)-1], nil)
	return err == nil && n == len(b)-1
}

// appendMessage appends the bytes of a message to b.
func appendMessage(b []byte, h head, r Response) ([]byte, error) {
	m := coap.Message{
		Type: h.typ, Code: r.Code, MessageID: int32(h.mid), Token: h.token, Options: r.Options, Payload: r.Payload,
	}
	const most = headLen + coap.MaxTokenSize + 1 // with the payload marker
	room := most + len(r.Payload)
	for _, o := range r.Options {
		room += 5 + len(o.Value)
	}
	old := len(b)
	b = append(b, make([]byte, room)...)
	n, err := coder.DefaultCoder.Encode(m, b[old:])
	if err != nil {
		return b[:old], fmt.Errorf("encode a response %v: %w", r.Code, err)
	}
	if n > maxPayload {
		return b[:old], fmt.Errorf("encode a response %v: %d bytes, at most %d", r.Code, n, maxPayload)
	}
	return b[:old+n], nil
}

// maxPayload is what a UDP datagram over IPv4 can carry.
const maxPayload = 65507

// empty returns an empty message.
func empty(typ coap.Type, mid uint16) [headLen]byte {
	return [headLen]byte{version<<6 | byte(typ)<<4, byte(codes.Empty), byte(mid >> 8), byte(mid)}
}
