package envelope

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
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

// line is the JSON of a Record. Append writes it without reflection; a test holds the two together.
type line struct {
	Seq      string    `json:"seq"`
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Topic    string    `json:"topic"`
	Received time.Time `json:"received"`
	QoS      uint8     `json:"qos"`
	Retain   bool      `json:"retain,omitempty"`
	Payload  string    `json:"payload"`
	Encoding string    `json:"encoding"` // utf8 or base64

	ContentType     string      `json:"content_type,omitempty"`
	ResponseTopic   string      `json:"response_topic,omitempty"`
	CorrelationData *string     `json:"correlation_data,omitempty"` // base64
	PayloadUTF8     bool        `json:"payload_utf8,omitempty"`
	Properties      [][2]string `json:"user_properties,omitempty"` // order and repetition are kept
	SourceTime      *time.Time  `json:"source_time,omitempty"`
	Reason          string      `json:"reason,omitempty"`
	Uplink          string      `json:"uplink,omitempty"`
	Route           string      `json:"route,omitempty"`
	Expiry          uint32      `json:"expiry,omitempty"`
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
	if utf8.Valid(r.Payload) {
		b = appendField(b, `,"payload":`, r.Payload)
		b = append(b, `,"encoding":"utf8"`...)
	} else {
		b = append(b, `,"payload":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Payload)
		b = append(b, `","encoding":"base64"`...)
	}
	return r.appendRest(b)
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

// UnmarshalJSON reads a line.
func (r *Record) UnmarshalJSON(b []byte) error {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return err
	}
	*r = Record{
		Seq: l.Seq, ID: l.ID, Source: l.Source, Topic: l.Topic, Received: l.Received, QoS: message.QoS(l.QoS), Retain: l.Retain,
		ContentType: l.ContentType, ResponseTopic: l.ResponseTopic, PayloadUTF8: l.PayloadUTF8, Expiry: l.Expiry,
		Reason: l.Reason, Uplink: l.Uplink, Route: l.Route,
	}
	var err error
	switch l.Encoding {
	case "utf8":
		r.Payload = []byte(l.Payload)
	case "base64":
		if r.Payload, err = base64.StdEncoding.DecodeString(l.Payload); err != nil {
			return fmt.Errorf("payload: %w", err)
		}
	default:
		return fmt.Errorf("encoding %q: want utf8 or base64", l.Encoding)
	}
	if l.CorrelationData != nil {
		if r.CorrelationData, err = base64.StdEncoding.DecodeString(*l.CorrelationData); err != nil {
			return fmt.Errorf("correlation_data: %w", err)
		}
	}
	for _, p := range l.Properties {
		r.Properties = append(r.Properties, message.Property{Key: p[0], Value: p[1]})
	}
	if l.SourceTime != nil {
		r.SourceTime = *l.SourceTime
	}
	return nil
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
