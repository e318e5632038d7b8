package opcua

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gopcua/opcua/ua"

	"tidegate/bridges/opcua/link"
	"tidegate/message"
)

func TestPayloads(t *testing.T) {
	at := func(text string) link.DateTime {
		t.Helper()
		when, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return link.DateTime((when.Unix()+11_644_473_600)*10_000_000 + int64(when.Nanosecond())/100)
	}
	scalar := func(v any) link.DataValue { return link.DataValue{Value: link.Variant{Type: 1, Value: v}} }
	array := func(v any, dimensions ...int32) link.DataValue {
		return link.DataValue{Value: link.Variant{Type: 1, Value: v, Array: true, Dimensions: dimensions}}
	}
	for _, c := range []struct {
		name string
		v    link.DataValue
		json string // of "v"
		bare string
	}{
		{"null", link.DataValue{}, `null`, `null`},
		{"empty string", scalar(""), `""`, ``},
		{"control characters", scalar("a\n\t\x00\x7f\\\"é\u2028"), "\"a\\n\\u0009\\u0000\\u007f\\\\\\\"é\u2028\"", "a\n\t\x00\x7f\\\"é\u2028"},
		{"no UTF-8", scalar("a\xffb"), "\"a\ufffdb\"", "a\ufffdb"},
		{"smallest double", scalar(5e-324), `5e-324`, `5e-324`},
		{"largest double", scalar(math.MaxFloat64), `1.7976931348623157e+308`, `1.7976931348623157e+308`},
		{"whole double", scalar(21.0), `21`, `21`},
		{"minus zero", scalar(math.Copysign(0, -1)), `-0`, `-0`},
		{"float", scalar(float32(0.1)), `0.1`, `0.1`},
		{"infinity", scalar(math.Inf(-1)), `"-Infinity"`, `-Infinity`},
		{"NaN of 32 bits", scalar(float32(math.NaN())), `"NaN"`, `NaN`},
		{"largest of 64 bits", scalar(uint64(math.MaxUint64)), `18446744073709551615`, `18446744073709551615`},
		{"100 ns", scalar(at("2026-01-02T03:04:05.1234567Z")), `"2026-01-02T03:04:05.1234567Z"`, `2026-01-02T03:04:05.1234567Z`},
		{"whole second", scalar(at("2026-01-02T03:04:05Z")), `"2026-01-02T03:04:05Z"`, `2026-01-02T03:04:05Z`},
		{"the first time", scalar(link.DateTime(0)), `"1601-01-01T00:00:00Z"`, `1601-01-01T00:00:00Z`},
		{"beyond ISO 8601", scalar(link.DateTime(math.MaxInt64)), `"9999-12-31T23:59:59Z"`, `9999-12-31T23:59:59Z`},
		{"bytes", scalar([]byte{0xFB, 0xFF}), `"+/8="`, `+/8=`},
		{"no bytes", scalar([]byte{}), `""`, ``},
		{"text without a language", scalar(link.LocalizedText{Text: "a"}), `{"text":"a"}`, `a`},
		{"name in namespace 0", scalar(link.QualifiedName{Name: "n"}), `"n"`, `n`},
		{"status with more", scalar(link.StatusCode(0x80340480)), `"0x80340480"`, `0x80340480`},
		{"node", scalar(link.ExpandedNodeID{NodeID: link.NodeID{Kind: link.Numeric, Num: 5}, NamespaceURI: "urn:x"}), `"nsu=urn:x;i=5"`, `nsu=urn:x;i=5`},
		{"empty structure", scalar(link.Structure{}), `null`, `null`},
		{"structure in XML", scalar(link.Structure{TypeID: link.ExpandedNodeID{NodeID: link.NodeID{Kind: link.Numeric, Num: 5}}, Encoding: 2, Body: []byte("<a/>")}), `{"structure":"i=5","xml":"<a/>"}`, `{"structure":"i=5","xml":"<a/>"}`},
		{"variant in an array", array([]link.Variant{{Type: 6, Value: int32(1)}, {}, {Type: 12, Value: "x"}}), `[1,null,"x"]`, `[1,null,"x"]`},
		{"data value", scalar(link.DataValue{Value: link.Variant{Type: 6, Value: int32(1)}}), `{"v":1,"t":null,"q":"Good"}`, `{"v":1,"t":null,"q":"Good"}`},
		{"bytes in an array", array([][]byte{{1}, nil}), `["AQ==",""]`, `["AQ==",""]`},
		{"cube", array([]bool{true, false, true, true}, 2, 1, 2), `[[[true,false]],[[true,true]]]`, `[[[true,false]],[[true,true]]]`},
		{"matrix without rows", array([]int32{}, 0, 3), `[]`, `[]`},
		{"matrix without columns", array([]int32{}, 2, 0), `[[],[]]`, `[[],[]]`},
		{"floats", array([]float32{1.5, float32(math.Inf(1))}), `[1.5,"Infinity"]`, `[1.5,"Infinity"]`},
	} {
		want := `{"v":` + c.json + `,"t":null,"q":"Good"}`
		if got := string(appendJSON(nil, c.v)); got != want || !json.Valid([]byte(got)) {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
		if got := string(appendBare(nil, c.v)); got != c.bare {
			t.Errorf("%s: bare %q, want %q", c.name, got, c.bare)
		}
	}
	v := scalar(21.5)
	v.Server = at("2026-01-02T03:04:06Z")
	if got := string(appendJSON(nil, v)); got != `{"v":21.5,"t":"2026-01-02T03:04:06Z","q":"Good"}` {
		t.Errorf("without a time of the source: %s", got)
	}
	v.Source, v.Status = at("2026-01-02T03:04:05.678Z"), 0x480
	if got := string(appendJSON(nil, v)); got != `{"v":21.5,"t":"2026-01-02T03:04:05.678Z","q":"Good"}` {
		t.Errorf("with an overflow: %s", got)
	}
	v.Status = 0x408F0000
	if got := string(appendJSON(nil, v)); !strings.HasPrefix(got, `{"v":21.5,`) || !strings.HasSuffix(got, `"q":"UncertainNoCommunicationLastUsableValue"}`) {
		t.Errorf("uncertain: %s", got)
	}
	v.Status = 0x80310000
	if got := string(appendJSON(nil, v)); !strings.HasPrefix(got, `{"v":null,`) || !strings.HasSuffix(got, `"q":"BadNoCommunication"}`) {
		t.Errorf("bad: %s", got)
	}
	for _, d := range []link.DateTime{0, -5, 1, math.MaxInt64} {
		if got := sourceTime(d); !got.IsZero() {
			t.Errorf("the source's clock shows %d ticks: %s", d, got)
		}
	}
	if got := sourceTime(at("2000-01-01T00:00:00Z")); got.Year() != 2000 {
		t.Errorf("a clock at its start: %s", got)
	}
}

func TestTopics(t *testing.T) {
	d := link.Description{
		Node: link.NodeID{Namespace: 3, Kind: link.Text, Text: "Line1/Temp+#"}, Name: "Temp/#", Path: []string{"$Plant", "Line 1", "Temp/#"},
	}
	for template_, want := range map[string]string{
		"plant/{path}": "plant/_Plant/Line 1/Temp__", "{name}": "Temp__", "x/{id}/{ns}": "x/Line1_Temp__/3", "plain": "plain", "{path}": "_Plant/Line 1/Temp__",
	} {
		got, err := template(template_).topic(d)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", template_, got, err, want)
		}
	}
	for _, bad := range []string{"tidegate/{name}", "$SYS/{name}", ""} {
		if got, err := template(bad).topic(d); err == nil {
			t.Errorf("%s: %q", bad, got)
		}
	}
	for text, want := range map[string]string{"": "_", "a\x00b\x85": "a_b_", "\xff": "_", "ÄÖ €": "ÄÖ €", "$": "_"} {
		if got := level(text); got != want || message.ValidName(got) != nil {
			t.Errorf("level %q: %q, want %q", text, got, want)
		}
	}
	if template("{id}/{ns}").describes() || !template("a/{name}").describes() || !template("{path}").describes() {
		t.Error("which templates need the server is wrong")
	}
}

// FuzzTopic: whatever a server calls a node, its topic is valid.
func FuzzTopic(f *testing.F) {
	f.Add("a/b", "$x", "+")
	f.Fuzz(func(t *testing.T, name, parent, id string) {
		d := link.Description{Node: link.NodeID{Kind: link.Text, Text: id}, Name: name, Path: []string{parent, name}}
		topic, err := template("x/{path}/{name}/{id}/{ns}").topic(d)
		if err != nil && len(name)+len(parent)+len(id) < 10_000 {
			t.Fatalf("%q %q %q: %v", name, parent, id, err)
		}
		if err == nil && strings.Count(topic, "/") != 5 {
			t.Errorf("%q %q %q: %q has other levels than the template", name, parent, id, topic)
		}
	})
}

// FuzzPayload: whatever a server sends as a value, its payload is JSON in UTF-8.
func FuzzPayload(f *testing.F) {
	for _, v := range []any{true, int64(-7), 2.5, "text", ua.NewLocalizedText("l"), []string{"a", "b"}, [][]uint16{{1, 2}, {3, 4}}, ua.NewStringNodeID(1, "x")} {
		b, err := ua.MustVariant(v).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{1}, b...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := link.DecodeValue(data)
		if err != nil || len(data) > 10_000 {
			return
		}
		if payload := appendJSON(nil, v); !json.Valid(payload) || !utf8.Valid(payload) {
			t.Errorf("%x: %q", data, payload)
		}
		if payload := appendBare(nil, v); !utf8.Valid(payload) {
			t.Errorf("%x: bare %q", data, payload)
		}
	})
}

func TestCoerce(t *testing.T) {
	for _, c := range []struct {
		payload string
		typ     ua.TypeID
		want    any // nil: refused
	}{
		{"1e2", ua.TypeIDByte, uint8(100)},
		{"1e-1", ua.TypeIDByte, nil},
		{"100e-2", ua.TypeIDByte, uint8(1)},
		{"0x10", ua.TypeIDInt32, nil},
		{"1_000", ua.TypeIDInt32, nil},
		{"1/2", ua.TypeIDDouble, nil},
		{"0b1", ua.TypeIDInt32, nil},
		{"1e999999999", ua.TypeIDInt64, nil},
		{"1e-999999999", ua.TypeIDDouble, nil},
		{strings.Repeat("9", 500), ua.TypeIDDouble, nil},
		{"9007199254740993", ua.TypeIDInt64, int64(9007199254740993)},
		{`{"v":9007199254740993}`, ua.TypeIDInt64, int64(9007199254740993)},
		{`"9007199254740993"`, ua.TypeIDInt64, int64(9007199254740993)},
		{"true", ua.TypeIDInt32, nil},
		{"true", ua.TypeIDDouble, nil},
		{"TRUE", ua.TypeIDBoolean, true},
		{"1", ua.TypeIDBoolean, true},
		{"0", ua.TypeIDBoolean, false},
		{"yes", ua.TypeIDBoolean, nil},
		{"1.0", ua.TypeIDBoolean, nil},
		{"16777217", ua.TypeIDFloat, float32(16777216)},
		{"3.4028236e38", ua.TypeIDFloat, nil},
		{"-Infinity", ua.TypeIDFloat, float32(math.Inf(-1))},
		{"", ua.TypeIDString, ""},
		{`""`, ua.TypeIDString, ""},
		{"{", ua.TypeIDString, "{"},
		{`{"v":"x"}`, ua.TypeIDString, "x"},
		{`{"v":null}`, ua.TypeIDString, nil},
		{`{"v":{"v":1}}`, ua.TypeIDInt32, nil},
		{"", ua.TypeIDInt32, nil},
		{"\xff", ua.TypeIDString, nil},
		{`"AA=="`, ua.TypeIDByteString, []byte{0}},
		{`"AB=="`, ua.TypeIDByteString, nil},
		{`"AA"`, ua.TypeIDByteString, nil},
		{`""`, ua.TypeIDByteString, []byte{}},
		{"1234", ua.TypeIDByteString, nil},
		{"true", ua.TypeIDByteString, nil},
		{"AAEC", ua.TypeIDByteString, []byte{0, 1, 2}},
		{"1600-01-01T00:00:00Z", ua.TypeIDDateTime, nil},
		{"2300-01-01T00:00:00Z", ua.TypeIDDateTime, nil},
		{`"2026-01-02T03:04:05.1234567+02:00"`, ua.TypeIDDateTime, time.Date(2026, 1, 2, 1, 4, 5, 123456700, time.UTC)},
		{"i=1", ua.TypeIDNodeID, nil},
		{"1", ua.TypeIDExtensionObject, nil},
		{"1", ua.TypeIDVariant, nil},
	} {
		v, err := coerce([]byte(c.payload), link.NodeType{Type: c.typ, Rank: -1})
		if (err == nil) != (c.want != nil) {
			t.Errorf("%q as %s: %v", c.payload, typeName(c.typ), err)
			continue
		}
		if err != nil {
			if len(c.payload) > 3 && strings.Contains(err.Error(), c.payload) {
				t.Errorf("%q: the error repeats the payload: %v", c.payload, err)
			}
			continue
		}
		got := v.Value()
		if when, ok := got.(time.Time); ok {
			got = when.UTC()
		}
		if b, ok := got.([]byte); ok {
			if string(b) != string(c.want.([]byte)) {
				t.Errorf("%q: %x", c.payload, b)
			}
		} else if got != c.want {
			t.Errorf("%q as %s: %v (%T), want %v (%T)", c.payload, typeName(c.typ), got, got, c.want, c.want)
		}
		if v.Type() != c.typ {
			t.Errorf("%q: written as %s, not as %s", c.payload, v.Type(), c.typ)
		}
	}
	for _, rank := range []int32{1, 2} {
		if _, err := coerce([]byte("1"), link.NodeType{Type: ua.TypeIDInt32, Rank: rank}); err == nil {
			t.Errorf("a scalar for a node of rank %d", rank)
		}
	}
	for _, rank := range []int32{-1, -2, -3, 0} {
		if _, err := coerce([]byte("1"), link.NodeType{Type: ua.TypeIDInt32, Rank: rank}); (err == nil) != (rank < 0) {
			t.Errorf("a scalar for a node of rank %d: %v", rank, err)
		}
	}
}

// FuzzCoerce: what is accepted as an integer says that very integer.
func FuzzCoerce(f *testing.F) {
	for _, s := range []string{"1", "-1.0", `{"v":2}`, `"x"`, "1e3", "NaN", "{}", "[1]"} {
		f.Add(s, byte(ua.TypeIDInt64))
	}
	f.Fuzz(func(t *testing.T, payload string, typ byte) {
		v, err := coerce([]byte(payload), link.NodeType{Type: ua.TypeID(typ), Rank: -1})
		if err != nil {
			return
		}
		if v.Type() != ua.TypeID(typ) {
			t.Fatalf("%q: written as %s, not as %s", payload, v.Type(), ua.TypeID(typ))
		}
		if n, ok := v.Value().(int64); ok {
			if plain, err := strconv.ParseInt(strings.TrimSpace(payload), 10, 64); err == nil && plain != n {
				t.Errorf("%q: written as %d", payload, n)
			}
		}
	})
}
