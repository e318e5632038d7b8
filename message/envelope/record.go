package envelope

import (
	"encoding/base64"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"tidegate/message"
)

// Record is one message: a line of a batch, of `buffer export`, of `buffer dead ls` and of `decode`.
type Record struct {
	Seq      string // tg-seq: EPOCH-LANE-N
	ID       string // tg-id
	Source   string // tg-src
	Topic    string
	Received time.Time // when the gateway got it
	QoS      message.QoS
	Retain   bool
	Payload  []byte

	ContentType     string
	ResponseTopic   string
	CorrelationData []byte // nil: absent; empty and not nil: present and empty
	PayloadUTF8     bool   // the MQTT 5 payload format indicator
	Properties      []message.Property
	SourceTime      time.Time // the source's own time; zero when it gave none
	// Expiry is how many seconds after it was sent the message was still worth delivering; 0: without end. It is at
	// least 1 where there is an end, and rounded up.
	Expiry uint32

	// What follows is only known to the gateway itself, and not part of a batch.

	Reason string // why it is a dead letter
	Uplink string
	Route  string
}

// Of makes the record of a message that has the sequence seq. Its payload and properties are those of m.
func Of(m *message.Message, seq string) Record {
	return Record{
		Seq: seq, ID: m.ID.String(), Source: m.Source.Name(), Topic: m.Topic, Received: m.Received, QoS: m.QoS, Retain: m.Retain,
		Payload: m.Payload, ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData,
		PayloadUTF8: m.PayloadUTF8, Properties: m.Properties, SourceTime: m.SourceTime,
	}
}

// Append appends the line of r to b, with its line feed.
func (r *Record) Append(b []byte) []byte { return Finish(r.AppendOpen(b), r.Expiry) }

// AppendOpen appends the line of r without its end, which Finish adds: what is left of an expiry interval is known only
// when the batch is sent.
func (r *Record) AppendOpen(b []byte) []byte {
	b = appendField(b, `{"seq":`, r.Seq)
	b = appendField(b, `,"id":`, r.ID)
	b = appendField(b, `,"source":`, r.Source)
	b = appendField(b, `,"topic":`, r.Topic)
	b = appendTime(b, `,"received":"`, r.Received)
	b = append(b, `,"qos":`...)
	b = strconv.AppendUint(b, uint64(r.QoS), 10)
	if r.Retain {
		b = append(b, `,"retain":true`...)
	}
	if n, ok := quotedLen(r.Payload); ok {
		b = appendField(slices.Grow(b, n+64), `,"payload":`, r.Payload)
		b = append(b, `,"encoding":"utf8"`...)
	} else {
		b = append(slices.Grow(b, base64.StdEncoding.EncodedLen(len(r.Payload))+64), `,"payload":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Payload)
		b = append(b, `","encoding":"base64"`...)
	}
	return r.appendRest(b)
}

// quotedLen is how long a payload is as a JSON string; ok says whether it is to be one. It is not if it is no UTF-8, or if its control
// characters, of which each takes six bytes, would more than double it: that is no text either, and base64 is shorter.
func quotedLen(p []byte) (n int, ok bool) {
	for _, c := range p {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
			n += 2
		case c < ' ':
			n += 6
		default:
			n++
		}
	}
	return n, n <= 2*len(p) && utf8.Valid(p)
}

// appendRest appends the fields that most messages do not have.
func (r *Record) appendRest(b []byte) []byte {
	b = appendOptional(b, `,"content_type":`, r.ContentType)
	b = appendOptional(b, `,"response_topic":`, r.ResponseTopic)
	if r.CorrelationData != nil {
		b = append(b, `,"correlation_data":"`...)
		b = append(base64.StdEncoding.AppendEncode(b, r.CorrelationData), '"')
	}
	if r.PayloadUTF8 {
		b = append(b, `,"payload_utf8":true`...)
	}
	for i, p := range r.Properties {
		opening := `,[`
		if i == 0 {
			opening = `,"user_properties":[[`
		}
		b = append(appendField(appendField(b, opening, p.Key), `,`, p.Value), ']')
	}
	if len(r.Properties) > 0 {
		b = append(b, ']')
	}
	if !r.SourceTime.IsZero() {
		b = appendTime(b, `,"source_time":"`, r.SourceTime)
	}
	b = appendOptional(b, `,"reason":`, r.Reason)
	b = appendOptional(b, `,"uplink":`, r.Uplink)
	return appendOptional(b, `,"route":`, r.Route)
}

// Finish ends a line that AppendOpen began. expiry is as in Record.
func Finish(b []byte, expiry uint32) []byte {
	if expiry > 0 {
		b = append(b, `,"expiry":`...)
		b = strconv.AppendUint(b, uint64(expiry), 10)
	}
	return append(b, "}\n"...)
}

// MarshalJSON implements json.Marshaler.
func (r Record) MarshalJSON() ([]byte, error) {
	b := r.Append(nil)
	return b[:len(b)-1], nil
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, name, value)
}

func appendField[T string | []byte](b []byte, name string, value T) []byte {
	return appendString(append(b, name...), value)
}

// appendTime appends name, which ends with a quotation mark, and t. A year that RFC 3339 cannot write comes out as the zero
// time: a wrong clock must not make a line that nobody can read.
func appendTime(b []byte, name string, t time.Time) []byte {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		t = time.Time{}
	}
	return append(t.AppendFormat(append(b, name...), time.RFC3339Nano), '"')
}

// appendString appends s as a JSON string. What is no UTF-8 in it becomes U+FFFD, as JSON demands; payloads never have any.
func appendString[T string | []byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			if _, n := decodeRune(s[i:]); n > 1 {
				i += n
				continue
			}
			b = append(append(b, s[start:i]...), "\ufffd"...)
			i++
			start = i
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

func decodeRune[T string | []byte](s T) (rune, int) {
	var c [utf8.UTFMax]byte
	return utf8.DecodeRune(c[:copy(c[:], s)])
}
