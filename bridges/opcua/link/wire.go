package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Bounds on what a server may send. A message that breaks one of them ends the connection, not the process.
const (
	// maxNesting is how deep variants, data values and diagnostics may hold one another [Part 6, 5.1.7: decoders shall
	// support at least 100 levels].
	maxNesting = 100
	// maxMessageBytes bounds one message, all chunks together.
	maxMessageBytes = 8 << 20
	// maxChunks bounds the chunks of one message.
	maxChunks = 4096
)

var (
	errShort  = errors.New("the message is cut short")
	errNested = fmt.Errorf("values are nested more than %d levels deep", maxNesting)
)

// reader takes values of OPC UA Binary [Part 6, 5.2] off the front of b until one does not fit; after that every value is
// zero and err says why. It never reserves more memory than the bytes that are left can fill.
//
// It stands in for the decoder of package ua, which panics on some messages, recurses without bound on others, and drops
// the content of structures it does not know (docs/adr/0005).
type reader struct {
	b     []byte
	err   error
	depth int
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// take returns the next n bytes. They alias the message.
func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.fail(errShort)
		return nil
	}
	part := r.b[:n:n]
	r.b = r.b[n:]
	return part
}

func (r *reader) u8() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) bool() bool         { return r.u8() != 0 }
func (r *reader) i8() int8           { return int8(r.u8()) }
func (r *reader) i16() int16         { return int16(r.u16()) }
func (r *reader) i32() int32         { return int32(r.u32()) }
func (r *reader) i64() int64         { return int64(r.u64()) }
func (r *reader) f32() float32       { return math.Float32frombits(r.u32()) }
func (r *reader) f64() float64       { return math.Float64frombits(r.u64()) }
func (r *reader) status() StatusCode { return StatusCode(r.u32()) }
func (r *reader) time() DateTime     { return DateTime(r.i64()) }
func (r *reader) string() string     { return string(r.bytes()) }

// bytes returns a byte string; nil when it is null. It aliases the message.
func (r *reader) bytes() []byte {
	n := r.i32()
	if r.err != nil || n == -1 {
		return nil
	}
	return r.take(int(n))
}

// count reads the length of an array whose elements take at least least bytes each. A null array has none.
func (r *reader) count(least int) int {
	n := int(r.i32())
	switch {
	case r.err != nil || n == -1:
		return 0
	case n < 0 || n > len(r.b)/least:
		r.fail(fmt.Errorf("an array of %d elements in %d bytes", n, len(r.b)))
		return 0
	}
	return n
}

// list reads an array of elements of at least least bytes each.
func list[T any](r *reader, least int, element func(*reader) T) []T {
	n := r.count(least)
	if r.err != nil {
		return nil
	}
	items := make([]T, 0, n)
	for range n {
		items = append(items, element(r))
		if r.err != nil {
			return nil
		}
	}
	return items
}

// nested runs f one level deeper, or fails where that is too deep.
func (r *reader) nested(f func()) {
	if r.depth++; r.depth > maxNesting {
		r.fail(errNested)
		return
	}
	f()
	r.depth--
}

func (r *reader) guid() GUID {
	var g GUID
	copy(g[:], r.take(len(g)))
	return g
}

func (r *reader) nodeID() NodeID {
	id, _ := r.maskedNodeID()
	return id
}

// The two high bits of the first byte of a node ID are flags of expanded node IDs [Part 6, 5.2.2.10].
const (
	flagNamespaceURI = 0x80
	flagServerIndex  = 0x40
)

func (r *reader) maskedNodeID() (id NodeID, flags byte) {
	mask := r.u8()
	switch mask &^ (flagNamespaceURI | flagServerIndex) {
	case 0:
		id = NodeID{Kind: Numeric, Num: uint32(r.u8())}
	case 1:
		id = NodeID{Namespace: uint16(r.u8()), Kind: Numeric, Num: uint32(r.u16())}
	case 2:
		id = NodeID{Namespace: r.u16(), Kind: Numeric, Num: r.u32()}
	case 3:
		id = NodeID{Namespace: r.u16(), Kind: Text, Text: r.string()}
	case 4:
		id = NodeID{Namespace: r.u16(), Kind: GUIDText}
		g := r.guid()
		id.Text = g.String()
	case 5:
		id = NodeID{Namespace: r.u16(), Kind: Opaque, Text: r.string()}
	default:
		r.fail(fmt.Errorf("a node ID of the unknown encoding %#x", mask))
	}
	return id, mask & (flagNamespaceURI | flagServerIndex)
}

func (r *reader) expandedNodeID() ExpandedNodeID {
	id, flags := r.maskedNodeID()
	e := ExpandedNodeID{NodeID: id}
	if flags&flagNamespaceURI != 0 {
		e.NamespaceURI = r.string()
	}
	if flags&flagServerIndex != 0 {
		e.ServerIndex = r.u32()
	}
	return e
}

func (r *reader) qualifiedName() QualifiedName {
	return QualifiedName{Namespace: r.u16(), Name: r.string()}
}

func (r *reader) localizedText() LocalizedText {
	var t LocalizedText
	mask := r.u8()
	if mask&1 != 0 {
		t.Locale = r.string()
	}
	if mask&2 != 0 {
		t.Text = r.string()
	}
	return t
}

// diagnostics skips a DiagnosticInfo: nothing of it is used.
func (r *reader) diagnostics() {
	for level := 0; r.err == nil; level++ {
		mask := r.u8()
		for bit := byte(1); bit <= 8; bit <<= 1 {
			if mask&bit != 0 {
				r.u32()
			}
		}
		if mask&0x10 != 0 {
			r.bytes()
		}
		if mask&0x20 != 0 {
			r.u32()
		}
		if mask&0x40 == 0 {
			return
		}
		if level == maxNesting {
			r.fail(errNested)
		}
	}
}

func (r *reader) diagnosticList() {
	for range r.count(1) {
		if r.err != nil {
			return
		}
		r.diagnostics()
	}
}

// structure reads an extension object without looking into it.
func (r *reader) structure() Structure {
	s := Structure{TypeID: r.expandedNodeID(), Encoding: r.u8()}
	if s.Encoding > StructureXML {
		r.fail(fmt.Errorf("a structure of the unknown encoding %d", s.Encoding))
	}
	if s.Encoding != StructureEmpty {
		s.Body = r.bytes()
	}
	return s
}
