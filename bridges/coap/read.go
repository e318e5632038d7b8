package coap

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"time"
	"unicode/utf8"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/access"
	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

const (
	// wholeLimit is the largest payload that is sent in one datagram to a client that asked for no blocks: with head and
	// options it fits the smallest link that IPv6 runs on (RFC 7252, 4.6).
	wholeLimit = 1024
	// largestBlock is the size exponent of 1,024 bytes, the largest block (RFC 7959, 2.2).
	largestBlock = 6
)

// get answers with the retained message of a topic.
func (b *Bridge) get(r *wire.Request, a *ask) {
	if err := message.ValidName(a.topic); err != nil {
		b.refuse(r, refusalOf(err, 0))
		return
	}
	if len(a.queries) > 0 {
		b.refuse(r, *badQuery(a.queries[0], "is not known for GET"))
		return
	}
	if !b.mayRead(identity(r), a.topic) {
		b.refuse(r, refusalOf(message.ErrNotAllowed, 0))
		return
	}
	retained := b.o.Bus.Retained(a.topic)
	if len(retained) == 0 {
		b.refuse(r, refusal{code: codes.NotFound})
		return
	}
	m := &retained[0]
	v := value{payload: m.Payload, format: b.formats.contentFormat(m.ContentType), typed: m.ContentType != ""}
	if !m.Expires.IsZero() {
		v.age = number{uint32(max(m.Expires.Sub(r.Received()).Round(time.Second)/time.Second, 0)), true}
	}
	b.reply(r, b.represent(a, v))
}

// mayRead reports whether a client may subscribe to a topic and have its messages delivered.
func (b *Bridge) mayRead(id access.Identity, topic string) bool {
	return b.o.ACL.Allow(id, access.Subscribe, topic) && b.o.ACL.Allow(id, access.Deliver, topic)
}

// value is what a GET is answered with.
type value struct {
	payload []byte
	format  number
	typed   bool   // it has a content type, which need not be one that has a number
	age     number // Max-Age
}

// represent makes the answer to a GET: the whole value, one block of it, or only the news that the client has it already.
//
// Each block is cut from the value of the moment. A client that gets two of them with different ETags knows that the value
// changed in between, and begins again (RFC 7959, 2.4).
func (b *Bridge) represent(a *ask, v value) wire.Response {
	format, acceptable := acceptable(a.accept, v)
	if !acceptable {
		return refusal{code: codes.NotAcceptable}.response()
	}
	etag := b.etag(v)
	options := option.Options{{ID: option.ETag, Value: etag}}
	for _, known := range a.etags {
		if bytes.Equal(known, etag) {
			if v.age.given {
				options = append(options, uintOption(option.MaxAge, v.age.value))
			}
			return wire.Response{Code: codes.Valid, Options: options}
		}
	}
	if format.given {
		options = append(options, uintOption(option.ContentFormat, format.value))
	}
	if v.age.given {
		options = append(options, uintOption(option.MaxAge, v.age.value))
	}
	k := block{szx: largestBlock}
	if a.block2.given {
		k.num, k.szx = a.block2.num, min(a.block2.szx, largestBlock)
	}
	if k.num == 0 && len(v.payload) <= min(k.size(), wholeLimit) {
		return wire.Response{Code: codes.Content, Options: options, Payload: v.payload}
	}
	from := int64(k.num) * int64(k.size())
	if from >= int64(len(v.payload)) {
		return refusal{code: codes.BadRequest, why: "no such block"}.response()
	}
	to := min(from+int64(k.size()), int64(len(v.payload)))
	k.more = to < int64(len(v.payload))
	options = append(options, uintOption(option.Block2, k.value()))
	if k.num == 0 {
		options = append(options, uintOption(option.Size2, uint32(len(v.payload))))
	}
	return wire.Response{Code: codes.Content, Options: options, Payload: v.payload[from:to]}
}

// acceptable returns the Content-Format to say, and whether the client takes it. A value whose publisher did not say what it
// is may be taken for text where it is text, and for bytes always.
func acceptable(accept number, v value) (format number, ok bool) {
	switch {
	case !accept.given || accept == v.format:
		return v.format, true
	case v.typed:
		return number{}, false
	}
	return accept, accept.value == uint32(option.AppOctets) || accept.value == uint32(option.TextPlain) && utf8.Valid(v.payload)
}

// etag is a hash of a value and its format. After a restart it is another one, and a client fetches the value once more.
func (b *Bridge) etag(v value) []byte {
	var h maphash.Hash
	h.SetSeed(b.seed)
	var head [5]byte
	if v.format.given {
		head[0] = 1
		binary.BigEndian.PutUint32(head[1:], v.format.value)
	}
	_, _ = h.Write(head[:])
	_, _ = h.Write(v.payload)
	return h.Sum(nil)
}
