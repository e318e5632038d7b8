package coap

import (
	"bytes"
	"hash/maphash"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

// FuzzAsk reads any options and does what they say. Whatever is published is a valid message, a path and a topic are each
// other's image, and every answer to a GET can be sent.
func FuzzAsk(f *testing.F) {
	for _, path := range []string{"/ps/a/b", "/ps//a", "/ps/", "/ps", "/.well-known/core?rt=core.ps", "/ps/a?qos=1&expiry=5&ct=50&retain=1", ""} {
		for _, o := range []option.Option{
			uintOption(option.ContentFormat, 50), uintOption(option.Block1, 8), uintOption(option.Block2, 22),
			{ID: 2053},
			{ID: option.ETag, Value: []byte("12345678")},
		} {
			b := make([]byte, 500)
			n, err := pathOptions(path, o).Marshal(b)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(n), b[:n], []byte("payload"))
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, b, payload []byte) {
		b = bytes.TrimRight(b, "\xff") // no payload marker among the options
		options := make(option.Options, 0, 600)
		if n, err := options.Unmarshal(b, nil); err != nil || n != len(b) {
			return
		}
		r := &wire.Request{Code: codes.Code(method%4 + 1), Options: options, Payload: payload}
		br := &Bridge{o: Options{MaxPayload: 1000}, log: slog.New(slog.DiscardHandler), formats: newFormatTable(), seed: maphash.MakeSeed()}
		a, no := newAsk(r)
		if no != nil {
			if no.code>>5 < 4 || len(no.why) > maxDiagnostic {
				t.Fatalf("refused with %+v", no)
			}
			return
		}
		checkPath(t, options, a)
		if a.place == topic {
			checkMessage(t, br, r, &a)
		}
		resp := br.represent(&a, value{payload: payload, format: a.format, typed: a.format.given, age: number{5, true}})
		last := option.OptionID(0)
		for _, o := range resp.Options {
			if o.ID < last || len(o.Value) > 8 {
				t.Fatalf("options %v", resp.Options)
			}
			last = o.ID
		}
		if len(resp.Payload) > wholeLimit {
			t.Fatalf("%d bytes in one answer", len(resp.Payload))
		}
	})
}

func checkPath(t *testing.T, options option.Options, a ask) {
	t.Helper()
	var segments []string
	for _, o := range options {
		if o.ID == option.URIPath {
			segments = append(segments, string(o.Value))
		}
	}
	whole := strings.Join(segments, "/")
	isTopic := len(segments) > 1 && segments[0] == "ps"
	if isTopic != (a.place == topic) || isTopic && "ps/"+a.topic != whole {
		t.Fatalf("%q is the place %d, topic %q", whole, a.place, a.topic)
	}
}

func checkMessage(t *testing.T, b *Bridge, r *wire.Request, a *ask) {
	t.Helper()
	m, no := b.messageOf(r, a)
	if no != nil {
		if no.code>>5 != 4 || len(no.why) > maxDiagnostic || !utf8.ValidString(no.why) {
			t.Fatalf("refused with %+v", no)
		}
		return
	}
	if err := message.ValidName(m.Topic); err != nil || m.Topic != a.topic {
		t.Fatalf("published on %q: %v", m.Topic, err)
	}
	if m.QoS > 2 || !utf8.ValidString(m.ContentType) || strings.Contains(m.ContentType, "\x00") || len(m.Payload) > b.o.MaxPayload {
		t.Fatalf("published %+v", m)
	}
	if a.block1.given && (a.block1.more || a.block1.num > 0) && r.Code != codes.DELETE {
		t.Fatal("published a part of a body")
	}
	if _, err := m.AppendBinary(nil); err != nil {
		t.Fatal(err)
	}
}

// FuzzEscape: a listed topic is a path of plain ASCII that says the same.
func FuzzEscape(f *testing.F) {
	f.Add("plant/press1/temp")
	f.Add("/a b/ü%<>\"")
	f.Fuzz(func(t *testing.T, topic string) {
		e := escape(topic)
		for _, c := range []byte(e) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte("<>\"\\", c) >= 0 {
				t.Fatalf("%q has %q", e, c)
			}
		}
		if got, ok := unescape(e); !ok || got != topic {
			t.Fatalf("%q comes back as %q", topic, got)
		}
	})
}

// unescape is url.PathUnescape, which would refuse nothing that it should not.
func unescape(s string) (string, bool) {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		const digits = "0123456789ABCDEF"
		hi, lo := strings.IndexByte(digits, s[i+1]), strings.IndexByte(digits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	return string(out), true
}
