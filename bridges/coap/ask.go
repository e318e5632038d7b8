package coap

import (
	"encoding/binary"
	"strings"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/bridges/coap/wire"
)

// place is what a path names.
type place int

const (
	nowhere    place = iota
	topics           // /ps, all topics together
	topic            // /ps/TOPIC
	wellKnown        // /.well-known/core
	maxEtags   = 4   // more of a request are not looked at; they are elective
	maxQueries = 16
)

// ask is what the options of a request say. Texts are copies, etags point into the request.
type ask struct {
	place   place
	topic   string
	queries []string
	etags   [][]byte
	format  number // Content-Format
	accept  number
	block1  block
	block2  block
}

// number is an option that may be absent.
type number struct {
	value uint32
	given bool
}

// block is the value of a Block1 or Block2 option (RFC 7959, 2.2).
type block struct {
	given bool
	num   uint32
	more  bool
	szx   uint8
}

// size is the size of a block in bytes.
func (k block) size() int { return 16 << k.szx }

// value is what the option carries.
func (k block) value() uint32 {
	v := k.num<<4 | uint32(k.szx)
	if k.more {
		v |= 8
	}
	return v
}

// known are the critical options that are understood here, with the lengths they may have and whether they may be repeated.
// All others, and these with another length or too often, make the request a bad one (RFC 7252, 5.4).
func known(id option.OptionID) (least, most int, repeatable, ok bool) {
	switch id {
	case option.URIHost:
		return 1, 255, false, true
	case option.URIPort:
		return 0, 2, false, true
	case option.URIPath, option.URIQuery:
		return 0, 255, true, true
	case option.Accept:
		return 0, 2, false, true
	case option.Block1, option.Block2:
		return 0, 3, false, true
	case option.ProxyURI:
		return 1, 1034, false, true
	case option.ProxyScheme:
		return 1, 255, false, true
	}
	return 0, 0, false, false
}

// critical reports whether an option must not be ignored by who does not know it (5.4.6).
func critical(id option.OptionID) bool { return id&1 == 1 }

// newAsk reads the options of a request. A refusal says what is wrong with them.
func newAsk(r *wire.Request) (a ask, no *refusal) {
	var path strings.Builder
	var first []byte
	segments := 0
	for i, o := range r.Options {
		if critical(o.ID) {
			least, most, repeatable, ok := known(o.ID)
			again := i > 0 && r.Options[i-1].ID == o.ID
			if !ok || len(o.Value) < least || len(o.Value) > most || again && !repeatable {
				return a, &refusal{code: codes.BadOption, why: "an option that is not understood here"}
			}
		}
		switch o.ID {
		case option.ProxyURI, option.ProxyScheme:
			return a, &refusal{code: codes.ProxyingNotSupported}
		case option.URIPath:
			switch segments {
			case 0:
				first = o.Value
			case 1:
				path.Grow(pathBytes(r.Options[i:]))
				path.Write(o.Value)
			default:
				path.WriteByte('/')
				path.Write(o.Value)
			}
			segments++
		case option.URIQuery:
			if len(a.queries) == maxQueries {
				return a, &refusal{code: codes.BadRequest, why: "too many queries"}
			}
			a.queries = append(a.queries, string(o.Value))
		case option.ETag:
			if len(o.Value) > 0 && len(o.Value) <= 8 && len(a.etags) < maxEtags {
				a.etags = append(a.etags, o.Value)
			}
		case option.ContentFormat:
			if len(o.Value) <= 2 && !a.format.given {
				a.format = number{uintOf(o.Value), true}
			}
		case option.Accept:
			a.accept = number{uintOf(o.Value), true}
		case option.Block1, option.Block2:
			k, ok := blockOf(o.Value)
			if !ok {
				return a, &refusal{code: codes.BadRequest, why: "block size 7 is reserved"}
			}
			if o.ID == option.Block1 {
				a.block1 = k
			} else {
				a.block2 = k
			}
		}
	}
	a.topic = path.String()
	a.place = placeOf(string(first), segments, a.topic)
	return a, nil
}

// pathBytes is how long the path at the beginning of options is.
func pathBytes(options option.Options) int {
	n := 0
	for i := range options {
		if options[i].ID != option.URIPath {
			break
		}
		n += len(options[i].Value) + 1
	}
	return n
}

// placeOf sorts a path by its first segment, how many there are, and what follows the first.
func placeOf(first string, segments int, rest string) place {
	switch {
	case first == "ps" && segments == 1:
		return topics
	case first == "ps":
		return topic
	case first == ".well-known" && segments == 2 && rest == "core":
		return wellKnown
	}
	return nowhere
}

// uintOf reads the value of an option in the format uint (3.2).
func uintOf(b []byte) uint32 {
	var v uint32
	for _, c := range b {
		v = v<<8 | uint32(c)
	}
	return v
}

func blockOf(b []byte) (k block, ok bool) {
	v := uintOf(b)
	k = block{given: true, num: v >> 4, more: v&8 != 0, szx: uint8(v & 7)}
	return k, k.szx < 7
}

// uintOption makes an option in the format uint: no leading zero bytes, and none at all for 0.
func uintOption(id option.OptionID, v uint32) option.Option {
	b := binary.BigEndian.AppendUint32(nil, v)
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return option.Option{ID: id, Value: b}
}
