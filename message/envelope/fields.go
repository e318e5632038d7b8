package envelope

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"tidegate/message"
)

// This file is how strictly a line is read: names and types of fields as docs/envelope.md has them, no other spelling, no null, text
// that is UTF-8 down to its escapes. scripts/decode_batch.py reads in the same way, and a test holds the two together.

// maxDepth is how deep objects and arrays may lie within each other, in a field of a later version.
const maxDepth = 32

// object is the fields of one line. The first error stays.
type object struct {
	fields map[string]json.RawMessage
	err    error
}

func readObject(l []byte) *object {
	o := &object{err: wellFormed(l)}
	if o.err == nil {
		if o.err = json.Unmarshal(l, &o.fields); o.err == nil && o.fields == nil {
			o.err = errors.New("null is no object")
		}
	}
	return o
}

// wellFormed checks what the JSON decoder lets pass: bytes that are no UTF-8, halves of surrogate pairs, any depth.
func wellFormed(l []byte) error {
	if !utf8.Valid(l) {
		return errors.New("it is no UTF-8")
	}
	depth, quoted := 0, false
	for i := 0; i < len(l); i++ {
		switch c := l[i]; {
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '['):
			if depth++; depth > maxDepth {
				return fmt.Errorf("more than %d levels", maxDepth)
			}
		case !quoted && (c == '}' || c == ']'):
			depth--
		case quoted && c == '\\':
			n, ok := escape(l[i:])
			if !ok {
				return errors.New("half a surrogate pair")
			}
			i += n - 1
		}
	}
	return nil
}

// escape returns the length of the escape sequence at the start of b, of which a pair of surrogates is one (RFC 8259, 7).
func escape(b []byte) (n int, ok bool) {
	switch high := unit(b); {
	case high < 0:
		return 2, true
	case high < 0xd800 || high > 0xdfff:
		return 6, true
	case high < 0xdc00:
		low := unit(b[6:])
		return 12, low >= 0xdc00 && low <= 0xdfff
	}
	return 6, false
}

// unit reads \u and four hexadecimal digits; less than 0: it is another escape, or none.
func unit(b []byte) int64 {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return int64(n)
}

// get returns a field; nil: the line does not have it.
func (o *object) get(name string, must bool) json.RawMessage {
	raw, ok := o.fields[name]
	if !ok && must {
		o.fail(name, errors.New("it is missing"))
	}
	if o.err != nil {
		return nil
	}
	return raw
}

func (o *object) fail(name string, err error) {
	if o.err == nil {
		o.err = fmt.Errorf("%s: %w", name, err)
	}
}

// text reads a string; has says whether it is there.
func (o *object) text(name string, must bool) (s string, has bool) {
	raw := o.get(name, must)
	if raw == nil {
		return "", false
	}
	if raw[0] != '"' {
		o.fail(name, errors.New("want a string"))
		return "", false
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		o.fail(name, err)
	}
	return s, true
}

// number reads a whole number from least to most, written without sign, fraction and exponent.
func (o *object) number(name string, must bool, least, most uint64) uint64 {
	raw := o.get(name, must)
	if raw == nil {
		return 0
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil || n < least || n > most {
		o.fail(name, fmt.Errorf("want a number from %d to %d", least, most))
	}
	return n
}

func (o *object) truth(name string) bool {
	raw := o.get(name, false)
	if raw != nil && string(raw) != "true" && string(raw) != "false" {
		o.fail(name, errors.New("want true or false"))
	}
	return string(raw) == "true"
}

// time reads a time of RFC 3339.
func (o *object) time(name string, must bool) (t time.Time) {
	s, has := o.text(name, must)
	if !has {
		return t
	}
	err := t.UnmarshalText([]byte(s))
	if err == nil && !isStrict(s) {
		err = errors.New("want a time of RFC 3339")
	}
	if err != nil {
		o.fail(name, err)
	}
	return t
}

// isStrict tells whether a time that the package time took is one of RFC 3339: it takes hours of one digit, a comma for the point, and
// any zone.
func isStrict(s string) bool {
	n := len(s)
	return n >= len("2006-01-02T15:04:05Z") && s[len("2006-01-02T15")] == ':' && s[len("2006-01-02T15:04:05")] != ',' &&
		(s[n-1] == 'Z' || s[n-5:n-3] <= "23" && s[n-2:] <= "59")
}

// base64 takes s apart, which must be in the only form that the bytes have.
func (o *object) base64(name, s string) []byte {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && base64.StdEncoding.EncodedLen(len(b)) != len(s) { // line feeds within
		err = errors.New("want base64 without line feeds")
	}
	if err != nil {
		o.fail(name, err)
	}
	return b
}

// properties reads an array of pairs.
func (o *object) properties(name string) []message.Property {
	raw := o.get(name, false)
	if raw == nil {
		return nil
	}
	var rows [][]*string
	err := json.Unmarshal(raw, &rows)
	if err == nil && raw[0] != '[' {
		err = errors.New("want an array")
	}
	var out []message.Property
	for _, p := range rows {
		if len(p) != 2 || p[0] == nil || p[1] == nil {
			err = errors.New("want an array of pairs of strings")
			break
		}
		out = append(out, message.Property{Key: *p[0], Value: *p[1]})
	}
	if err != nil {
		o.fail(name, err)
	}
	return out
}

// UnmarshalJSON reads a line.
func (r *Record) UnmarshalJSON(b []byte) error {
	o := readObject(b)
	*r = Record{}
	r.Seq, _ = o.text("seq", true)
	r.ID, _ = o.text("id", true)
	r.Source, _ = o.text("source", true)
	r.Topic, _ = o.text("topic", true)
	r.Received = o.time("received", true)
	r.QoS = message.QoS(o.number("qos", true, 0, 2))
	r.Retain = o.truth("retain")
	payload, _ := o.text("payload", true)
	switch encoding, _ := o.text("encoding", true); encoding {
	case "utf8":
		r.Payload = []byte(payload)
	case "base64":
		r.Payload = o.base64("payload", payload)
	default:
		o.fail("encoding", fmt.Errorf("%q: want utf8 or base64", encoding))
	}
	r.ContentType, _ = o.text("content_type", false)
	r.ResponseTopic, _ = o.text("response_topic", false)
	if data, has := o.text("correlation_data", false); has {
		r.CorrelationData = o.base64("correlation_data", data)
	}
	r.PayloadUTF8 = o.truth("payload_utf8")
	r.Properties = o.properties("user_properties")
	r.SourceTime = o.time("source_time", false)
	r.Reason, _ = o.text("reason", false)
	r.Uplink, _ = o.text("uplink", false)
	r.Route, _ = o.text("route", false)
	r.Expiry = uint32(o.number("expiry", false, 0, 1<<32-1))
	return o.err
}

// readHeader reads a first line. A message of its own may begin like one, as values of OPC UA do ({"v":1,…): what has no
// gateway and no messages is no batch.
func readHeader(l []byte) (Header, error) {
	o := readObject(l)
	h := Header{V: int(o.number("v", true, 1, 1<<31-1)), N: int(o.number("n", true, 1, 1<<31-1))}
	h.Gateway, _ = o.text("gw", true)
	h.Uplink, _ = o.text("up", false)
	switch {
	case o.err != nil:
		return h, fmt.Errorf("header: %w: %w", ErrFormat, o.err)
	case h.Gateway == "":
		return h, fmt.Errorf("header: gw is empty: %w", ErrFormat)
	case h.V != Version:
		return h, fmt.Errorf("header: version %d, known is %d: %w", h.V, Version, ErrVersion)
	}
	return h, nil
}
