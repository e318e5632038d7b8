package opcua

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gopcua/opcua/ua"

	"tidegate/bridges/opcua/link"
)

// maxWriteBytes bounds the payload of a write: a value for a node, not a file.
const maxWriteBytes = 1 << 20

// coerce makes of a payload exactly what the node holds, or refuses. The payload is {"v":VALUE}, a JSON value or bare text.
// A value is never rounded into an integer, cut to a range or read as something else. Errors do not repeat the payload,
// because they are logged.
func coerce(payload []byte, t link.NodeType) (*ua.Variant, error) {
	if t.Rank >= 0 { // 0: one dimension or more
		return nil, errors.New("the node holds an array; only single values are written")
	}
	if len(payload) > maxWriteBytes {
		return nil, fmt.Errorf("a payload of %d bytes is more than the %d that are written", len(payload), maxWriteBytes)
	}
	if !utf8.Valid(payload) {
		return nil, errors.New("the payload is no UTF-8 text")
	}
	v, err := parse(payload)
	if err != nil {
		return nil, err
	}
	native, err := v.native(t.Type)
	if err != nil {
		return nil, err
	}
	return ua.NewVariant(native)
}

// given is what a payload says: a JSON value, or text that is none.
type given struct {
	kind byte   // 's' a string, 'n' a number, 'b' true or false, 't' text that is no JSON
	text string // of a string what it says, else as it is written
}

func parse(payload []byte) (given, error) {
	trimmed := bytes.TrimSpace(payload)
	if !json.Valid(trimmed) {
		return given{'t', string(payload)}, nil
	}
	if trimmed[0] == '{' {
		var wrapped map[string]json.RawMessage
		if err := json.Unmarshal(trimmed, &wrapped); err != nil {
			return given{}, errors.New("the payload cannot be read as JSON")
		}
		inner, ok := wrapped["v"]
		if !ok {
			return given{}, errors.New(`the payload is an object without "v"`)
		}
		trimmed = bytes.TrimSpace(inner)
	}
	switch c := trimmed[0]; {
	case c == '"':
		var s string
		if err := json.Unmarshal(trimmed, &s); err != nil {
			return given{}, errors.New("the payload cannot be read as JSON")
		}
		return given{'s', s}, nil
	case c == 't' || c == 'f':
		return given{'b', string(trimmed)}, nil
	case c == '-' || c >= '0' && c <= '9':
		return given{'n', string(trimmed)}, nil
	case c == 'n':
		return given{}, errors.New("null is no value that can be written")
	default:
		return given{}, errors.New("the payload holds no single value")
	}
}

// native converts to the Go type by which the library knows a built-in type.
func (g given) native(t ua.TypeID) (any, error) {
	switch t {
	case ua.TypeIDBoolean:
		return g.boolean()
	case ua.TypeIDSByte:
		n, err := g.integer("SByte", math.MinInt8, math.MaxInt8)
		return int8(n), err
	case ua.TypeIDByte:
		n, err := g.integer("Byte", 0, math.MaxUint8)
		return uint8(n), err
	case ua.TypeIDInt16:
		n, err := g.integer("Int16", math.MinInt16, math.MaxInt16)
		return int16(n), err
	case ua.TypeIDUint16:
		n, err := g.integer("UInt16", 0, math.MaxUint16)
		return uint16(n), err
	case ua.TypeIDInt32:
		n, err := g.integer("Int32", math.MinInt32, math.MaxInt32)
		return int32(n), err
	case ua.TypeIDUint32:
		n, err := g.integer("UInt32", 0, math.MaxUint32)
		return uint32(n), err
	case ua.TypeIDInt64:
		n, err := g.integer("Int64", math.MinInt64, math.MaxInt64)
		return n, err
	case ua.TypeIDUint64:
		return g.unsigned()
	case ua.TypeIDFloat:
		f, err := g.float("Float", 32)
		return float32(f), err
	case ua.TypeIDDouble:
		return g.float("Double", 64)
	case ua.TypeIDString:
		return g.text, nil
	case ua.TypeIDLocalizedText:
		return ua.NewLocalizedText(g.text), nil
	case ua.TypeIDDateTime:
		return g.time()
	case ua.TypeIDGUID:
		id, err := link.ParseGUID(strings.TrimSpace(g.text))
		if err != nil || g.kind == 'n' {
			return nil, errors.New("the payload is no Guid of the form 72962b91-fa75-4ae6-8d28-b404dc7daf63")
		}
		return ua.NewGUID(id.String()), nil
	case ua.TypeIDByteString:
		b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(g.text))
		if err != nil || g.kind == 'b' || g.kind == 'n' { // true and 1234 are base64 as well
			return nil, errors.New("the payload is no base64 in quotes, as which a ByteString is written")
		}
		return b, nil
	default:
		return nil, fmt.Errorf("the node holds values of the type %s, which cannot be written", typeName(t))
	}
}

func typeName(t ua.TypeID) string { return strings.TrimPrefix(t.String(), "TypeID") }

func (g given) boolean() (any, error) {
	switch strings.ToLower(strings.TrimSpace(g.text)) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return nil, errors.New("the payload is no Boolean: true, false, 1 or 0")
}

// number reads exactly what is written, whatever its size: 64 bits do not fit into a float.
func (g given) number(name string) (*big.Rat, error) {
	bad := fmt.Errorf("the payload is no number, as which a node of the type %s is written", name)
	text := strings.TrimSpace(g.text)
	if g.kind == 'b' || len(text) > 400 || strings.ContainsAny(text, "/_xXoOpP") || strings.HasPrefix(text, "0b") {
		return nil, bad // big.Rat takes more forms than JSON
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		if e, err := strconv.Atoi(text[i+1:]); err != nil || e > 400 || e < -400 {
			return nil, bad // an exponent that would fill the memory with digits
		}
	}
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		return nil, bad
	}
	return r, nil
}

// integer wants a whole number in a range.
func (g given) integer(name string, least, most int64) (int64, error) {
	r, err := g.number(name)
	if err != nil {
		return 0, err
	}
	if !r.IsInt() {
		return 0, fmt.Errorf("the payload is no whole number, and the node is of the type %s", name)
	}
	n := r.Num()
	if !n.IsInt64() || n.Int64() < least || n.Int64() > most {
		return 0, fmt.Errorf("the payload is outside of %d to %d, the range of %s", least, most, name)
	}
	return n.Int64(), nil
}

func (g given) unsigned() (any, error) {
	r, err := g.number("UInt64")
	if err != nil {
		return nil, err
	}
	if !r.IsInt() || !r.Num().IsUint64() {
		return nil, fmt.Errorf("the payload is no whole number from 0 to %d, the range of UInt64", uint64(math.MaxUint64))
	}
	return r.Num().Uint64(), nil
}

// float rounds to the nearest number of the type, as any float does, but never to infinity.
func (g given) float(name string, bits int) (float64, error) {
	switch strings.TrimSpace(g.text) {
	case "NaN":
		return math.NaN(), nil
	case "Infinity":
		return math.Inf(1), nil
	case "-Infinity":
		return math.Inf(-1), nil
	}
	if _, err := g.number(name); err != nil {
		return 0, err
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(g.text), bits)
	if err != nil {
		return 0, fmt.Errorf("the payload is outside of the range of %s", name)
	}
	return f, nil
}

// Years of times that can be written: those that the library encodes right.
const (
	firstYear = 1678
	lastYear  = 2261
)

func (g given) time() (any, error) {
	t, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(g.text))
	switch {
	case err != nil:
		return nil, errors.New("the payload is no time of the form 2026-01-02T03:04:05.678Z")
	case t.Nanosecond()%100 != 0:
		return nil, errors.New("the time is finer than the 100 ns that a DateTime can hold")
	case t.UTC().Year() < firstYear || t.UTC().Year() > lastYear:
		return nil, fmt.Errorf("the time is outside of the years %d to %d", firstYear, lastYear)
	}
	return t, nil
}
