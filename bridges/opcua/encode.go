package opcua

import (
	"encoding/base64"
	"math"
	"reflect"
	"strconv"
	"unicode/utf8"

	"tidegate/bridges/opcua/link"
)

// A payload in the format "json" is {"v":VALUE,"t":TIME,"q":QUALITY}. Nothing is lost on the way where JSON can say it:
//
//	Boolean                 true, false
//	integers                all digits, also of 64 bits
//	Float, Double           the shortest digits that read back as the same number; "NaN", "Infinity", "-Infinity" as strings
//	String, XmlElement      string; bytes that are no UTF-8 become U+FFFD
//	DateTime                "2026-01-02T03:04:05.678Z" to 100 ns, without zeros at the end
//	Guid                    "72962b91-fa75-4ae6-8d28-b404dc7daf63"
//	ByteString              base64
//	NodeId, ExpandedNodeId  "ns=2;s=Press", "nsu=URI;i=1"
//	StatusCode              its name, or "0x80AB0001" where the name does not say all
//	QualifiedName           "1:name", "name" in namespace 0
//	LocalizedText           {"text":"Presse","locale":"de"}
//	structures              {"structure":TYPE,"base64":BODY}: the type of its encoding and its bytes
//	arrays and matrices     [1,2,3] and [[1,2],[3,4]]
//	null                    null

// appendJSON appends the whole payload: value, time of the source (of the server, if the source gave none) and quality. A
// bad value is null: what it holds is not to be used.
func appendJSON(b []byte, v link.DataValue) []byte {
	b = append(b, `{"v":`...)
	if v.Status.IsBad() {
		b = append(b, "null"...)
	} else {
		b = appendVariant(b, v.Value)
	}
	b = append(b, `,"t":`...)
	t := v.Source
	if t.IsZero() {
		t = v.Server
	}
	if t.IsZero() {
		b = append(b, "null"...)
	} else {
		b = appendTime(b, t)
	}
	b = append(b, `,"q":"`...)
	b = append(b, quality(v.Status)...)
	return append(b, `"}`...)
}

// quality names a status without the bits that speak of the transport, such as an overflow.
func quality(s link.StatusCode) string { return (s &^ 0xFFFF).String() }

// appendBare appends the value alone, as the format "value" has it: a text without quotes, all else as in JSON. A bad
// value is null.
func appendBare(b []byte, v link.DataValue) []byte {
	if v.Status.IsBad() {
		return append(b, "null"...)
	}
	if v.Value.Array || v.Value.Value == nil {
		return appendVariant(b, v.Value)
	}
	switch x := v.Value.Value.(type) {
	case string:
		return appendUTF8(b, x)
	case link.LocalizedText:
		return appendUTF8(b, x.Text)
	case link.Structure, link.DataValue, link.Variant:
		return appendVariant(b, v.Value)
	}
	from := len(b)
	b = appendVariant(b, v.Value)
	if n := len(b); n-from >= 2 && b[from] == '"' && b[n-1] == '"' { // times, GUIDs, base64, NaN: nothing in them is escaped
		b = append(b[:from], b[from+1:n-1]...)
	}
	return b
}

// appendUTF8 appends s with what is no UTF-8 replaced, as the payload says that it is UTF-8.
func appendUTF8(b []byte, s string) []byte {
	for _, r := range s {
		b = utf8.AppendRune(b, r)
	}
	return b
}

func appendVariant(b []byte, v link.Variant) []byte {
	switch {
	case v.Value == nil:
		return append(b, "null"...)
	case !v.Array:
		return appendScalar(b, v.Value)
	}
	dimensions := v.Dimensions
	n := reflect.ValueOf(v.Value).Len()
	if len(dimensions) == 0 {
		dimensions = []int32{int32(n)}
	}
	b, _ = appendArray(b, v.Value, dimensions, 0)
	return b
}

// appendArray appends one dimension of an array whose elements, in order, begin at from. It returns where the next begin.
func appendArray(b []byte, values any, dimensions []int32, from int) ([]byte, int) {
	b = append(b, '[')
	for i := range int(dimensions[0]) {
		if i > 0 {
			b = append(b, ',')
		}
		if len(dimensions) > 1 {
			b, from = appendArray(b, values, dimensions[1:], from)
			continue
		}
		b = appendElement(b, values, from)
		from++
	}
	return append(b, ']'), from
}

// appendElement appends one element. The frequent types do without reflection.
func appendElement(b []byte, values any, i int) []byte {
	switch x := values.(type) {
	case []float64:
		return appendFloat(b, x[i], 64)
	case []float32:
		return appendFloat(b, float64(x[i]), 32)
	case []int32:
		return strconv.AppendInt(b, int64(x[i]), 10)
	case []uint8:
		return strconv.AppendUint(b, uint64(x[i]), 10)
	default:
		return appendScalar(b, reflect.ValueOf(values).Index(i).Interface())
	}
}

func appendScalar(b []byte, v any) []byte {
	switch x := v.(type) {
	case bool:
		return strconv.AppendBool(b, x)
	case int8:
		return strconv.AppendInt(b, int64(x), 10)
	case uint8:
		return strconv.AppendUint(b, uint64(x), 10)
	case int16:
		return strconv.AppendInt(b, int64(x), 10)
	case uint16:
		return strconv.AppendUint(b, uint64(x), 10)
	case int32:
		return strconv.AppendInt(b, int64(x), 10)
	case uint32:
		return strconv.AppendUint(b, uint64(x), 10)
	case int64:
		return strconv.AppendInt(b, x, 10)
	case uint64:
		return strconv.AppendUint(b, x, 10)
	case float32:
		return appendFloat(b, float64(x), 32)
	case float64:
		return appendFloat(b, x, 64)
	case string:
		return appendText(b, x)
	case link.DateTime:
		return appendTime(b, x)
	case []byte:
		return appendBase64(b, x)
	case link.StatusCode:
		return appendText(b, statusText(x))
	case link.QualifiedName:
		if x.Namespace == 0 {
			return appendText(b, x.Name)
		}
		return appendText(b, strconv.Itoa(int(x.Namespace))+":"+x.Name)
	case link.LocalizedText:
		b = appendText(append(b, `{"text":`...), x.Text)
		if x.Locale != "" {
			b = appendText(append(b, `,"locale":`...), x.Locale)
		}
		return append(b, '}')
	case link.Structure:
		return appendStructure(b, x)
	case link.DataValue:
		return appendJSON(b, x)
	case link.Variant:
		return appendVariant(b, x)
	case link.GUID:
		return appendText(b, x.String())
	case link.NodeID:
		return appendText(b, x.String())
	case link.ExpandedNodeID:
		return appendText(b, x.String())
	default: // nil in an array of byte strings
		return append(b, "null"...)
	}
}

// statusText is the name of a status that is a value: the whole number where the name leaves bits out.
func statusText(s link.StatusCode) string {
	if s&0xFFFF == 0 {
		return s.String()
	}
	const digits = "0123456789ABCDEF"
	text := []byte("0x00000000")
	for i := range 8 {
		text[9-i] = digits[s>>(4*i)&0xF]
	}
	return string(text)
}

// appendStructure shows that there is something, what it is and its bytes, rather than a silent null: who knows the type
// can decode it.
func appendStructure(b []byte, s link.Structure) []byte {
	if s.Encoding == link.StructureEmpty && s.TypeID.IsZero() {
		return append(b, "null"...)
	}
	b = appendText(append(b, `{"structure":`...), s.TypeID.String())
	switch s.Encoding {
	case link.StructureBinary:
		b = appendBase64(append(b, `,"base64":`...), s.Body)
	case link.StructureXML:
		b = appendText(append(b, `,"xml":`...), string(s.Body))
	}
	return append(b, '}')
}

// appendFloat writes the shortest digits that read back as the same number, with an exponent only where that is shorter to
// read. JSON has no word for the three that are none.
func appendFloat(b []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(b, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(b, `"-Infinity"`...)
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(b, f, format, -1, bits)
}

func appendTime(b []byte, d link.DateTime) []byte {
	t := d.Time()
	if t.Year() > 9999 { // ISO 8601 has four digits; later times are written like this [Part 6, 5.4.2.6]
		return append(b, `"9999-12-31T23:59:59Z"`...)
	}
	b = append(b, '"')
	b = t.AppendFormat(b, "2006-01-02T15:04:05.9999999Z")
	return append(b, '"')
}

func appendBase64(b, data []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"')
}

// appendText appends a JSON string.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s { // what is no UTF-8 comes as U+FFFD
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r < 0x20 || r == 0x7F:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&0xF])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
