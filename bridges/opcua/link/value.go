package link

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/gopcua/opcua/ua"
)

// DataValue is a value with what the server says about it.
type DataValue struct {
	Value  Variant
	Status StatusCode
	// Source and Server are the timestamps of the two; zero when the server gave none.
	Source, Server DateTime
}

// Variant is a value of one of the built-in types [Part 6, 5.1.2], or an array of them.
type Variant struct {
	Type ua.TypeID
	// Value is nil for a null, else, by Type: bool, int8, uint8, int16, uint16, int32, uint32, int64, uint64, float32,
	// float64, string (also of XML elements), DateTime, GUID, []byte, NodeID, ExpandedNodeID, StatusCode, QualifiedName,
	// LocalizedText, Structure, DataValue or Variant; DiagnosticInfo is always nil. An array is a slice of these; null
	// strings in it read as empty ones.
	Value any
	// Array: Value is a slice. Dimensions are those of a matrix, whose elements stand in Value one row after the other;
	// empty: one dimension.
	Array      bool
	Dimensions []int32
}

// Values of Structure.Encoding.
const (
	StructureEmpty  = 0
	StructureBinary = 1
	StructureXML    = 2
)

// Structure is an extension object: bytes whose layout only its type knows.
type Structure struct {
	TypeID   ExpandedNodeID // of the encoding, not of the data type
	Encoding byte
	Body     []byte
}

// QualifiedName is a name in a namespace.
type QualifiedName struct {
	Namespace uint16
	Name      string
}

// LocalizedText is a text and the language it is in.
type LocalizedText struct{ Locale, Text string }

// GUID is the 16 bytes of a GUID as they are on the wire.
type GUID [16]byte

// String writes g in its usual form, 72962b91-fa75-4ae6-8d28-b404dc7daf63.
func (g GUID) String() string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x", g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8:10], g[10:])
}

// DateTime is a time in steps of 100 ns since 1601-01-01 UTC. Zero and below mean that there is none.
type DateTime int64

const (
	ticksPerSecond   = 10_000_000
	secondsUntil1970 = 11_644_473_600
)

// Time returns the same instant. Years from 1601 on come out right, which time.Unix in nanoseconds cannot promise.
func (d DateTime) Time() time.Time {
	return time.Unix(int64(d)/ticksPerSecond-secondsUntil1970, int64(d)%ticksPerSecond*100).UTC()
}

// IsZero reports whether there is no time.
func (d DateTime) IsZero() bool { return d <= 0 }

// StatusCode is the result of a service or the quality of a value.
type StatusCode uint32

// IsGood, IsUncertain and IsBad report the severity.
func (s StatusCode) IsGood() bool      { return s>>30 == 0 }
func (s StatusCode) IsUncertain() bool { return s>>30 == 1 }
func (s StatusCode) IsBad() bool       { return s>>31 == 1 }

// Overflow reports whether the server threw values away before this one, because its queue was full [Part 4, 7.39].
func (s StatusCode) Overflow() bool { return s&0x0C00 == 0x0400 && s&0x80 != 0 }

// String is the symbolic name, such as BadNodeIdUnknown; the number where there is none.
func (s StatusCode) String() string {
	if s == 0 {
		return "Good"
	}
	if d, ok := ua.StatusCodes[ua.StatusCode(s&0xFFFF0000)]; ok {
		return specName(strings.TrimPrefix(d.Name, "Status"))
	}
	return fmt.Sprintf("0x%08X", uint32(s))
}

// Error makes a bad status an error.
func (s StatusCode) Error() string { return s.String() }

// specName undoes what the library does to the abbreviations in the names of the specification: BadNodeIdUnknown there is
// BadNodeIDUnknown here.
func specName(name string) string {
	for _, w := range []struct{ library, spec string }{
		{"IDS", "Ids"}, {"ID", "Id"}, {"URI", "Uri"}, {"TCP", "Tcp"}, {"URL", "Url"}, {"HTTP", "Http"}, {"CRL", "Crl"},
	} {
		name = strings.ReplaceAll(name, w.library, w.spec)
	}
	return name
}

func (r *reader) dataValue() DataValue {
	var d DataValue
	mask := r.u8()
	if mask&0x01 != 0 {
		d.Value = r.nestedVariant()
	}
	if mask&0x02 != 0 {
		d.Status = r.status()
	}
	if mask&0x04 != 0 {
		d.Source = r.time()
	}
	if mask&0x10 != 0 {
		r.u16() // picoseconds
	}
	if mask&0x08 != 0 {
		d.Server = r.time()
	}
	if mask&0x20 != 0 {
		r.u16()
	}
	return d
}

func (r *reader) variant() Variant {
	mask := r.u8()
	v := Variant{Type: ua.TypeID(mask & 0x3F), Array: mask&0x80 != 0}
	if v.Type == ua.TypeIDNull {
		return Variant{} // no value follows, whatever the other bits say
	}
	read := r.scalar
	if v.Array {
		read = r.array
	}
	var known bool
	if v.Value, known = read(v.Type); !known {
		r.fail(fmt.Errorf("a value of the unknown built-in type %d", v.Type))
		return Variant{}
	}
	if v.Array && mask&0x40 != 0 {
		v.Dimensions = list(r, 4, (*reader).i32)
		if n := length(v.Value); r.err == nil && !fits(v.Dimensions, n) {
			r.fail(fmt.Errorf("%d elements in a matrix of %v", n, v.Dimensions))
		}
		if len(v.Dimensions) < 2 {
			v.Dimensions = nil
		}
	}
	return v
}

// length counts the elements of a slice of any kind.
func length(slice any) int {
	if slice == nil {
		return 0
	}
	return reflect.ValueOf(slice).Len()
}

// fits reports whether a matrix of these dimensions has n elements.
func fits(dimensions []int32, n int) bool {
	if len(dimensions) == 0 {
		return true
	}
	product := int64(1)
	for _, d := range dimensions {
		if d < 0 {
			return false
		}
		if product *= int64(d); product > int64(maxMessageBytes) {
			return false
		}
	}
	return product == int64(n)
}

// scalar reads one value of a built-in type; known is false for a type that there is not.
func (r *reader) scalar(t ua.TypeID) (v any, known bool) {
	switch t {
	case ua.TypeIDBoolean:
		v = r.bool()
	case ua.TypeIDSByte:
		v = r.i8()
	case ua.TypeIDByte:
		v = r.u8()
	case ua.TypeIDInt16:
		v = r.i16()
	case ua.TypeIDUint16:
		v = r.u16()
	case ua.TypeIDInt32:
		v = r.i32()
	case ua.TypeIDUint32:
		v = r.u32()
	case ua.TypeIDInt64:
		v = r.i64()
	case ua.TypeIDUint64:
		v = r.u64()
	case ua.TypeIDFloat:
		v = r.f32()
	case ua.TypeIDDouble:
		v = r.f64()
	case ua.TypeIDString, ua.TypeIDXMLElement:
		if b := r.bytes(); b != nil {
			v = string(b)
		}
	case ua.TypeIDDateTime:
		v = r.time()
	case ua.TypeIDGUID:
		v = r.guid()
	case ua.TypeIDByteString:
		if b := r.bytes(); b != nil {
			v = b
		}
	case ua.TypeIDNodeID:
		v = r.nodeID()
	case ua.TypeIDExpandedNodeID:
		v = r.expandedNodeID()
	case ua.TypeIDStatusCode:
		v = r.status()
	case ua.TypeIDQualifiedName:
		v = r.qualifiedName()
	case ua.TypeIDLocalizedText:
		v = r.localizedText()
	case ua.TypeIDExtensionObject:
		v = r.structure()
	case ua.TypeIDDataValue:
		v = r.nestedDataValue()
	case ua.TypeIDVariant:
		v = r.nestedVariant()
	case ua.TypeIDDiagnosticInfo:
		r.diagnostics()
	default:
		return nil, false
	}
	return v, true
}

// array reads an array of a built-in type.
func (r *reader) array(t ua.TypeID) (v any, known bool) {
	switch t {
	case ua.TypeIDBoolean:
		v = list(r, 1, (*reader).bool)
	case ua.TypeIDSByte:
		v = list(r, 1, (*reader).i8)
	case ua.TypeIDByte:
		v = list(r, 1, (*reader).u8)
	case ua.TypeIDInt16:
		v = list(r, 2, (*reader).i16)
	case ua.TypeIDUint16:
		v = list(r, 2, (*reader).u16)
	case ua.TypeIDInt32:
		v = list(r, 4, (*reader).i32)
	case ua.TypeIDUint32:
		v = list(r, 4, (*reader).u32)
	case ua.TypeIDInt64:
		v = list(r, 8, (*reader).i64)
	case ua.TypeIDUint64:
		v = list(r, 8, (*reader).u64)
	case ua.TypeIDFloat:
		v = list(r, 4, (*reader).f32)
	case ua.TypeIDDouble:
		v = list(r, 8, (*reader).f64)
	case ua.TypeIDString, ua.TypeIDXMLElement:
		v = list(r, 4, (*reader).string)
	case ua.TypeIDDateTime:
		v = list(r, 8, (*reader).time)
	case ua.TypeIDGUID:
		v = list(r, 16, (*reader).guid)
	case ua.TypeIDByteString:
		v = list(r, 4, (*reader).bytes)
	case ua.TypeIDNodeID:
		v = list(r, 2, (*reader).nodeID)
	case ua.TypeIDExpandedNodeID:
		v = list(r, 2, (*reader).expandedNodeID)
	case ua.TypeIDStatusCode:
		v = list(r, 4, (*reader).status)
	case ua.TypeIDQualifiedName:
		v = list(r, 6, (*reader).qualifiedName)
	case ua.TypeIDLocalizedText:
		v = list(r, 1, (*reader).localizedText)
	case ua.TypeIDExtensionObject:
		v = list(r, 3, (*reader).structure)
	case ua.TypeIDDataValue:
		v = list(r, 1, (*reader).nestedDataValue)
	case ua.TypeIDVariant:
		v = list(r, 1, (*reader).nestedVariant)
	case ua.TypeIDDiagnosticInfo:
		r.diagnosticList()
	default:
		return nil, false
	}
	return v, true
}

func (r *reader) nestedDataValue() (d DataValue) {
	r.nested(func() { d = r.dataValue() })
	return d
}

func (r *reader) nestedVariant() (v Variant) {
	r.nested(func() { v = r.variant() })
	return v
}

// DecodeValue reads one data value in OPC UA Binary.
func DecodeValue(data []byte) (DataValue, error) {
	r := &reader{b: data}
	return r.dataValue(), r.err
}
