package link

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// mostPerCall is how much we put into one call where the server names no limit.
const mostPerCall = 1000

// Attribute is one attribute of one node.
type Attribute struct {
	Node      NodeID
	Attribute ua.AttributeID
}

// tooMuch reports whether a call failed for its size, so that half of it may work.
func tooMuch(err error) bool {
	var large *tooLargeError
	if errors.As(err, &large) {
		return true
	}
	var code StatusCode
	if !errors.As(err, &code) {
		return false
	}
	switch ua.StatusCode(code) {
	case ua.StatusBadTooManyOperations, ua.StatusBadEncodingLimitsExceeded, ua.StatusBadTCPMessageTooLarge,
		ua.StatusBadRequestTooLarge, ua.StatusBadResponseTooLarge:
		return true
	default:
		return false
	}
}

// limits are how many things the server takes in one call; 0: not known. Calls of several goroutines share them.
type limits struct{ read, browse, items atomic.Int64 }

// tighten lowers the limits in l to those in with.
func (l *limits) tighten(with *limits) {
	for _, p := range [][2]*atomic.Int64{{&l.read, &with.read}, {&l.browse, &with.browse}, {&l.items, &with.items}} {
		if n := p[1].Load(); n > 0 && (p[0].Load() == 0 || n < p[0].Load()) {
			p[0].Store(n)
		}
	}
}

// inBatches calls do for parts of n things, as many at a time as limit allows. Where a part is too much for the server,
// it is halved and limit with it, so that the next call, or the next connection, begins with what works.
func (s *Session) inBatches(n int, limit *atomic.Int64, do func(from, to int) error) error {
	for from := 0; from < n; {
		most := mostPerCall
		if known := limit.Load(); known > 0 && known < mostPerCall {
			most = int(known)
		}
		to := min(n, from+most)
		err := do(from, to)
		if tooMuch(err) && to-from > 1 {
			limit.Store(int64(to-from) / 2)
			if s.c.reason(nil) == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

// answered checks that there are as many results as there were questions: nothing else may index them.
func answered(got, want int, what string) error {
	if got != want {
		return fmt.Errorf("%s: the server gives %d results for %d", what, got, want)
	}
	return nil
}

func (s *Session) readBatch(ctx context.Context, what []Attribute) ([]DataValue, error) {
	req := &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnBoth, NodesToRead: make([]*ua.ReadValueID, len(what))}
	for i, a := range what {
		req.NodesToRead[i] = &ua.ReadValueID{NodeID: a.Node.ua(), AttributeID: a.Attribute, DataEncoding: &ua.QualifiedName{}}
	}
	var p valuesResponse
	if err := s.call(ctx, req, &p); err != nil {
		return nil, err
	}
	return p.results, answered(len(p.results), len(what), "read")
}

// Read reads attributes. The results stand in the order of what.
func (s *Session) Read(ctx context.Context, what ...Attribute) ([]DataValue, error) {
	values := make([]DataValue, 0, len(what))
	err := s.inBatches(len(what), &s.limits.read, func(from, to int) error {
		got, err := s.readBatch(ctx, what[from:to])
		values = append(values, got...)
		return err
	})
	return values, err
}

// Write writes the value of a node.
func (s *Session) Write(ctx context.Context, node NodeID, value *ua.Variant) error {
	p := statusResponse{encoding: id.WriteResponse_Encoding_DefaultBinary}
	err := s.call(ctx, &ua.WriteRequest{NodesToWrite: []*ua.WriteValue{{
		NodeID: node.ua(), AttributeID: ua.AttributeIDValue,
		// No timestamps and no status: most servers refuse to have them written.
		Value: &ua.DataValue{EncodingMask: ua.DataValueValue, Value: value},
	}}}, &p)
	if err == nil {
		err = answered(len(p.results), 1, "write")
	}
	if err == nil && p.results[0].IsBad() {
		err = p.results[0]
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", node, err)
	}
	return nil
}

// direction of references to follow.
const (
	down = ua.BrowseDirectionForward
	up   = ua.BrowseDirectionInverse
)

// browse lists the references of each node. The status of one node is no error of the others.
func (s *Session) browse(ctx context.Context, nodes []NodeID, direction ua.BrowseDirection, kind uint32, all bool) ([]browsed, error) {
	results := make([]browsed, 0, len(nodes))
	err := s.inBatches(len(nodes), &s.limits.browse, func(from, to int) error {
		req := &ua.BrowseRequest{View: &ua.ViewDescription{ViewID: ua.NewTwoByteNodeID(0)}}
		for _, n := range nodes[from:to] {
			req.NodesToBrowse = append(req.NodesToBrowse, &ua.BrowseDescription{
				NodeID: n.ua(), BrowseDirection: direction, ReferenceTypeID: ua.NewNumericNodeID(0, kind),
				IncludeSubtypes: true, ResultMask: uint32(ua.BrowseResultMaskAll),
			})
		}
		p := browseResponse{encoding: id.BrowseResponse_Encoding_DefaultBinary}
		if err := s.call(ctx, req, &p); err != nil {
			return err
		}
		if err := answered(len(p.results), to-from, "browse"); err != nil {
			return err
		}
		for i := range p.results {
			if err := s.continueBrowse(ctx, &p.results[i], all); err != nil {
				return err
			}
		}
		results = append(results, p.results...)
		return nil
	})
	return results, err
}

// continueBrowse fetches what did not fit into the first answer, or tells the server to forget it.
func (s *Session) continueBrowse(ctx context.Context, b *browsed, all bool) error {
	for pages := 0; len(b.more) > 0; pages++ {
		release := !all || pages > 10_000
		p := browseResponse{encoding: id.BrowseNextResponse_Encoding_DefaultBinary}
		err := s.call(ctx, &ua.BrowseNextRequest{ReleaseContinuationPoints: release, ContinuationPoints: [][]byte{b.more}}, &p)
		if err != nil || release {
			b.more = nil
			return err
		}
		if err := answered(len(p.results), 1, "browse on"); err != nil {
			return err
		}
		b.references = append(b.references, p.results[0].references...)
		b.more = p.results[0].more
	}
	return nil
}

// Browse lists what is below a node by hierarchical references.
func (s *Session) Browse(ctx context.Context, node NodeID) ([]Reference, error) {
	got, err := s.browse(ctx, []NodeID{node}, down, id.HierarchicalReferences, true)
	if err == nil && got[0].status.IsBad() {
		err = got[0].status
	}
	if err != nil {
		return nil, fmt.Errorf("browse %s: %w", node, err)
	}
	return got[0].references, nil
}

// Description is what the server calls a node.
type Description struct {
	Node NodeID
	Name string // browse name, without its namespace
	// Path is the names from below the Objects folder down to the node itself.
	Path []string
}

// maxDepth ends the way up where a server's references run in circles.
const maxDepth = 64

// describe finds out the names and paths of nodes. An item's own failure stands in errs.
func (s *Session) describe(ctx context.Context, nodes []NodeID) (list []Description, errs []error, err error) {
	list, errs = make([]Description, len(nodes)), make([]error, len(nodes))
	what := make([]Attribute, len(nodes))
	for i, n := range nodes {
		what[i] = Attribute{n, ua.AttributeIDBrowseName}
	}
	names, err := s.Read(ctx, what...)
	if err != nil {
		return nil, nil, fmt.Errorf("read browse names: %w", err)
	}
	above := map[NodeID]Reference{} // the reference up, by the node below
	var frontier []NodeID
	for i, v := range names {
		name, ok := v.Value.Value.(QualifiedName)
		switch {
		case v.Status.IsBad():
			errs[i] = v.Status
		case !ok:
			errs[i] = errors.New("the server gives the node no browse name")
		default:
			list[i] = Description{Node: nodes[i], Name: name.Name}
			frontier = append(frontier, nodes[i])
		}
	}
	if err := s.climb(ctx, frontier, above); err != nil {
		return nil, nil, fmt.Errorf("browse upwards: %w", err)
	}
	for i := range list {
		if errs[i] == nil {
			list[i].Path = pathOf(list[i], above)
		}
	}
	return list, errs, nil
}

// climb fills in above, level by level, until every way up has come to the Objects folder or to an end.
func (s *Session) climb(ctx context.Context, frontier []NodeID, above map[NodeID]Reference) error {
	for depth := 0; len(frontier) > 0 && depth < maxDepth; depth++ {
		got, err := s.browse(ctx, frontier, up, id.HierarchicalReferences, false)
		if err != nil {
			return err
		}
		var next []NodeID
		queued := map[NodeID]bool{}
		for i, b := range got {
			if len(b.references) == 0 {
				continue
			}
			parent := b.references[0]
			for _, r := range b.references {
				if isObjects(r.Node.NodeID) { // the shortest way
					parent = r
				}
			}
			above[frontier[i]] = parent
			p := parent.Node.NodeID
			if _, known := above[p]; !known && !isObjects(p) && !queued[p] {
				queued[p] = true
				next = append(next, p)
			}
		}
		frontier = next
	}
	return nil
}

func isObjects(n NodeID) bool {
	return n.Namespace == 0 && n.Kind == Numeric && (n.Num == id.ObjectsFolder || n.Num == id.RootFolder)
}

func pathOf(d Description, above map[NodeID]Reference) []string {
	path := []string{d.Name}
	for n := d.Node; len(path) < maxDepth; {
		r, ok := above[n]
		if !ok || isObjects(r.Node.NodeID) {
			break
		}
		path = append(path, r.BrowseName.Name)
		n = r.Node.NodeID
	}
	for i, j := 0, len(path)-1; i < j; i, j = i+1, j-1 {
		path[i], path[j] = path[j], path[i]
	}
	return path
}
