package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// NodeType is what a variable can hold.
type NodeType struct {
	// Type is the built-in type that values of the node are encoded as.
	Type ua.TypeID
	// Rank is the value rank [Part 3, 5.6.2]: -1 scalar, 1 and above arrays of so many dimensions, others either.
	Rank int32
}

// TypeOf finds out what a variable can hold. A data type of the server's own is followed up to the built-in type that it
// is derived from; one that leaves the choice open, such as Number, is settled by the value that the node has.
func (s *Session) TypeOf(ctx context.Context, node NodeID) (NodeType, error) {
	got, err := s.Read(ctx, Attribute{node, ua.AttributeIDDataType}, Attribute{node, ua.AttributeIDValueRank}, Attribute{node, ua.AttributeIDValue})
	if err != nil {
		return NodeType{}, fmt.Errorf("read the data type of %s: %w", node, err)
	}
	if got[0].Status.IsBad() {
		return NodeType{}, fmt.Errorf("read the data type of %s: %w", node, got[0].Status)
	}
	data, ok := got[0].Value.Value.(NodeID)
	if e, expanded := got[0].Value.Value.(ExpandedNodeID); expanded { // by mistake, but clear enough
		data, ok = e.NodeID, true
	}
	if !ok {
		return NodeType{}, fmt.Errorf("read the data type of %s: %w", node, errors.New("the server gives none"))
	}
	t := NodeType{Rank: -1}
	if rank, ok := got[1].Value.Value.(int32); ok && !got[1].Status.IsBad() {
		t.Rank = rank
	}
	if t.Type, err = s.builtin(ctx, data); err != nil {
		return NodeType{}, fmt.Errorf("find the built-in type of %s: %w", node, err)
	}
	if t.Type == ua.TypeIDNull {
		t.Type = got[2].Value.Type
	}
	if t.Type == ua.TypeIDNull {
		return NodeType{}, fmt.Errorf("the data type of %s leaves its kind open, and it has no value to go by", node)
	}
	return t, nil
}

// builtin follows a data type up; TypeIDNull means that it leaves the choice open.
func (s *Session) builtin(ctx context.Context, data NodeID) (ua.TypeID, error) {
	for range maxDepth {
		if data.Namespace == 0 && data.Kind == Numeric {
			switch n := data.Num; {
			case n == id.Enumeration:
				return ua.TypeIDInt32, nil
			case n == id.BaseDataType || n == id.Number || n == id.Integer || n == id.UInteger:
				return ua.TypeIDNull, nil
			case n >= 1 && n <= 25:
				return ua.TypeID(n), nil
			}
		}
		got, err := s.browse(ctx, []NodeID{data}, up, id.HasSubtype, false)
		if err != nil {
			return 0, err
		}
		if len(got[0].references) == 0 { // the server's tree of types has a hole
			return ua.TypeIDNull, nil
		}
		data = got[0].references[0].Node.NodeID
	}
	return 0, fmt.Errorf("data type %s is derived from itself", data)
}
