package link

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gopcua/opcua/ua"
)

// IDKind is the kind of identifier in a node ID.
type IDKind byte

// The kinds, as they are written.
const (
	Numeric  IDKind = 'i'
	Text     IDKind = 's'
	GUIDText IDKind = 'g'
	Opaque   IDKind = 'b'
)

// NodeID names a node within one run of a server, which may number its namespaces differently in the next.
type NodeID struct {
	Namespace uint16
	Kind      IDKind
	Num       uint32 // of a numeric one
	Text      string // of the others; the bytes themselves of an opaque one
}

// ExpandedNodeID may name its namespace by URI and its server by an index.
type ExpandedNodeID struct {
	NodeID
	NamespaceURI string
	ServerIndex  uint32
}

// IsZero reports whether n is the null node ID.
func (n NodeID) IsZero() bool {
	return n.Namespace == 0 && n.Num == 0 && n.Text == ""
}

// Identifier is the part behind the kind: the number, the text, the GUID or the base64 of the bytes.
func (n NodeID) Identifier() string {
	switch n.Kind {
	case Text, GUIDText:
		return n.Text
	case Opaque:
		return base64.StdEncoding.EncodeToString([]byte(n.Text))
	default:
		return strconv.FormatUint(uint64(n.Num), 10)
	}
}

// String writes n in the form of Part 6, 5.3.1.10.
func (n NodeID) String() string {
	kind := n.Kind
	if kind == 0 {
		kind = Numeric
	}
	id := string(kind) + "=" + n.Identifier()
	if n.Namespace == 0 {
		return id
	}
	return "ns=" + strconv.Itoa(int(n.Namespace)) + ";" + id
}

// String writes e with its namespace URI, if it has one.
func (e ExpandedNodeID) String() string {
	text := e.NodeID.String()
	if e.NamespaceURI != "" {
		bare := e.NodeID
		bare.Namespace = 0
		text = "nsu=" + e.NamespaceURI + ";" + bare.String()
	}
	if e.ServerIndex != 0 {
		text = "svr=" + strconv.FormatUint(uint64(e.ServerIndex), 10) + ";" + text
	}
	return text
}

// ua converts n into the type that requests are made of.
func (n NodeID) ua() *ua.NodeID {
	switch n.Kind {
	case Text:
		return ua.NewStringNodeID(n.Namespace, n.Text)
	case GUIDText:
		return ua.NewGUIDNodeID(n.Namespace, n.Text)
	case Opaque:
		return ua.NewByteStringNodeID(n.Namespace, []byte(n.Text))
	default:
		return ua.NewNumericNodeID(n.Namespace, n.Num)
	}
}

// Ref is a node ID as a configuration names it: with a namespace URI, which each run of the server numbers anew, or with a
// number.
type Ref struct {
	URI string // empty: ID has the namespace already
	ID  NodeID
}

// String writes r as ParseRef reads it.
func (r Ref) String() string {
	return ExpandedNodeID{NodeID: r.ID, NamespaceURI: r.URI}.String()
}

// ParseRef reads nsu=URI;s=TEXT, ns=N;s=TEXT or s=TEXT, with i=, g= and b= for the other kinds.
func ParseRef(text string) (Ref, error) {
	var ref Ref
	rest := text
	switch {
	case strings.HasPrefix(rest, "nsu="):
		var found bool
		if ref.URI, rest, found = strings.Cut(rest[len("nsu="):], ";"); !found || ref.URI == "" {
			return Ref{}, badRef(text)
		}
	case strings.HasPrefix(rest, "ns="):
		index, after, found := strings.Cut(rest[len("ns="):], ";")
		n, err := strconv.ParseUint(index, 10, 16)
		if err != nil || !found {
			return Ref{}, badRef(text)
		}
		ref.ID.Namespace, rest = uint16(n), after
	}
	kind, id, found := strings.Cut(rest, "=")
	if !found || id == "" || len(kind) != 1 {
		return Ref{}, badRef(text)
	}
	ref.ID.Kind = IDKind(kind[0])
	switch ref.ID.Kind {
	case Numeric:
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return Ref{}, badRef(text)
		}
		ref.ID.Num = uint32(n)
	case Text:
		ref.ID.Text = id
	case GUIDText:
		g, err := ParseGUID(id)
		if err != nil {
			return Ref{}, badRef(text)
		}
		ref.ID.Text = g.String()
	case Opaque:
		b, err := base64.StdEncoding.DecodeString(id)
		if err != nil {
			return Ref{}, badRef(text)
		}
		ref.ID.Text = string(b)
	default:
		return Ref{}, badRef(text)
	}
	return ref, nil
}

func badRef(text string) error {
	return fmt.Errorf("%q is no node ID; the form is nsu=URI;s=TEXT or ns=N;s=TEXT, with i=, g= or b= for other identifiers", text)
}

// Resolve numbers the namespace by the server's own table.
func (r Ref) Resolve(namespaces []string) (NodeID, error) {
	if r.URI == "" {
		return r.ID, nil
	}
	i := slices.Index(namespaces, r.URI)
	if i < 0 || i > 0xFFFF {
		return NodeID{}, fmt.Errorf("the server has no namespace %q", r.URI)
	}
	id := r.ID
	id.Namespace = uint16(i)
	return id, nil
}

// ParseGUID reads the form that GUID.String writes, in either case, with or without its hyphens.
func ParseGUID(text string) (GUID, error) {
	var g GUID
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != len(g) {
		return g, fmt.Errorf("%q is no GUID; the form is 72962b91-fa75-4ae6-8d28-b404dc7daf63", text)
	}
	// The first three groups are numbers, which the wire has with the lowest byte first.
	copy(g[:], []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]})
	copy(g[8:], b[8:])
	return g, nil
}

// MarshalText and UnmarshalText use the form of String, which keeps the bytes of opaque identifiers.
func (n NodeID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (n *NodeID) UnmarshalText(text []byte) error {
	ref, err := ParseRef(string(text))
	if err == nil && ref.URI != "" {
		err = badRef(string(text))
	}
	*n = ref.ID
	return err
}
