package opcua

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/gopcua/opcua/ua"

	"tidegate/bridges/opcua/link"
	"tidegate/config"
)

// Endpoint is one way into a server.
type Endpoint struct {
	URL      string `json:"url"`      // by which the server can be reached from here
	Security string `json:"security"` // as `security` in the configuration takes it
	// Usable: the security is none of the broken ones, and the transport is opc.tcp.
	Usable      bool     `json:"usable"`
	Logins      []string `json:"logins"` // anonymous, username, certificate, token
	Application string   `json:"application"`
	// Thumbprint is that of the server's certificate; empty: it shows none.
	Thumbprint string `json:"thumbprint,omitempty"`
}

// Endpoints asks the server at url how it can be connected to. Nothing in the answer is verified.
func Endpoints(ctx context.Context, url string) ([]Endpoint, error) {
	list, err := link.Discover(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("opcua: %w", err)
	}
	endpoints := make([]Endpoint, 0, len(list))
	for _, e := range list {
		s := link.Security{Policy: e.Policy, Mode: ua.MessageSecurityMode(e.Mode)}
		_, broken := link.ParseSecurity(s.String())
		out := Endpoint{URL: e.URL, Security: s.String(), Usable: broken == nil && e.Binary(), Application: e.Application}
		for _, t := range e.Tokens {
			out.Logins = append(out.Logins, strings.ToLower(strings.TrimPrefix(ua.UserTokenType(t.Type).String(), "UserTokenType")))
		}
		if len(e.Certificate) > 0 {
			out.Thumbprint = hex.EncodeToString(link.Thumbprint(e.Certificate))
		}
		endpoints = append(endpoints, out)
	}
	return endpoints, nil
}

// Target is a server of the configuration, as the commands reach it: with the same security as the bridge.
type Target struct {
	Name      string
	Config    config.OPCUA
	Dir       string // as in Options
	GatewayID string
}

func (t Target) connect(ctx context.Context) (*link.Session, error) {
	lo, err := linkOptions(t.Name, t.Config, t.Dir, t.GatewayID)
	if err != nil {
		return nil, err
	}
	s, err := link.Connect(ctx, lo)
	if err != nil {
		return nil, fmt.Errorf("opcua: %w", err)
	}
	return s, nil
}

// Node is a node that Browse found.
type Node struct {
	// ID is what `id` in the configuration takes, with the namespace by its URI.
	ID    string `json:"id"`
	Name  string `json:"name"`
	Class string `json:"class"` // Object, Variable, Method …
	// Type is the data type of a variable: the name of a built-in type, else a node ID.
	Type string `json:"type,omitempty"`
	// Depth is 1 for what is right below the root.
	Depth int `json:"depth"`
}

// mostBrowsed ends a look around on a server that never comes to an end.
const mostBrowsed = 100_000

// Browse lists what is below root, down to depth levels, each node once and before what is below it. root "" is the
// Objects folder.
func Browse(ctx context.Context, t Target, root string, depth int) ([]Node, error) {
	s, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close(ctx)
	if root == "" {
		root = "i=85"
	}
	from, err := resolve(s, root)
	if err != nil {
		return nil, err
	}
	w := &walk{ctx: ctx, s: s, seen: map[link.NodeID]bool{from: true}}
	if err := w.below(from, 1, depth); err != nil {
		return nil, fmt.Errorf("opcua: %s: %w", t.Name, err)
	}
	return w.nodes, w.types()
}

func resolve(s *link.Session, id string) (link.NodeID, error) {
	ref, err := link.ParseRef(id)
	if err != nil {
		return link.NodeID{}, fmt.Errorf("opcua: %w", err)
	}
	node, err := ref.Resolve(s.Namespaces())
	if err != nil {
		return link.NodeID{}, fmt.Errorf("opcua: %s: %w", id, err)
	}
	return node, nil
}

// walk is one look around.
type walk struct {
	ctx   context.Context //nolint:containedctx // it lives no longer than Browse
	s     *link.Session
	seen  map[link.NodeID]bool
	nodes []Node
	ids   []link.NodeID // of nodes
}

func (w *walk) below(parent link.NodeID, level, depth int) error {
	if level > depth {
		return nil
	}
	children, err := w.s.Browse(w.ctx, parent)
	if err != nil {
		return err
	}
	for _, c := range children {
		id := c.Node.NodeID
		if w.seen[id] || c.Node.ServerIndex != 0 || len(w.nodes) >= mostBrowsed {
			continue
		}
		w.seen[id] = true
		w.nodes = append(w.nodes, Node{
			ID: portable(w.s, id), Name: c.BrowseName.Name, Depth: level,
			Class: strings.TrimPrefix(ua.NodeClass(c.Class).String(), "NodeClass"),
		})
		w.ids = append(w.ids, id)
		if err := w.below(id, level+1, depth); err != nil {
			return err
		}
	}
	return nil
}

// portable writes a node ID with the namespace by its URI, which stays the same when the server starts anew.
func portable(s *link.Session, id link.NodeID) string {
	if n := int(id.Namespace); n > 0 && n < len(s.Namespaces()) {
		return link.ExpandedNodeID{NodeID: id, NamespaceURI: s.Namespaces()[n]}.String()
	}
	return id.String()
}

// types fills in the data types of the variables.
func (w *walk) types() error {
	var what []link.Attribute
	var of []int
	for i, n := range w.nodes {
		if n.Class == "Variable" {
			what = append(what, link.Attribute{Node: w.ids[i], Attribute: ua.AttributeIDDataType})
			of = append(of, i)
		}
	}
	values, err := w.s.Read(w.ctx, what...)
	if err != nil {
		return fmt.Errorf("opcua: read data types: %w", err)
	}
	for i, v := range values {
		id, ok := v.Value.Value.(link.NodeID)
		switch {
		case !ok || v.Status.IsBad():
		case id.Namespace == 0 && id.Kind == link.Numeric && id.Num >= 1 && id.Num <= 25:
			w.nodes[of[i]].Type = typeName(ua.TypeID(id.Num))
		default:
			w.nodes[of[i]].Type = portable(w.s, id)
		}
	}
	return nil
}

// CheckNode reports why id is no node ID.
func CheckNode(id string) error {
	if _, err := link.ParseRef(id); err != nil {
		return fmt.Errorf("opcua: %w", err)
	}
	return nil
}

// Reading is the value of one node.
type Reading struct {
	ID string `json:"id"`
	// Value is as the format "json" publishes it: {"v":…,"t":…,"q":…}.
	Value []byte `json:"-"`
	Type  string `json:"type"`
}

// Read reads the values of nodes, in the order of ids. A node that cannot be read has its status as quality.
func Read(ctx context.Context, t Target, ids ...string) ([]Reading, error) {
	s, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close(ctx)
	what := make([]link.Attribute, len(ids))
	for i, id := range ids {
		node, err := resolve(s, id)
		if err != nil {
			return nil, err
		}
		what[i] = link.Attribute{Node: node, Attribute: ua.AttributeIDValue}
	}
	values, err := s.Read(ctx, what...)
	if err != nil {
		return nil, fmt.Errorf("opcua: %s: read: %w", t.Name, err)
	}
	readings := make([]Reading, len(ids))
	for i, v := range values {
		readings[i] = Reading{ID: ids[i], Value: appendJSON(nil, v), Type: typeName(v.Value.Type)}
	}
	return readings, nil
}

// Write writes one value, with the checks that a message to a [[opcua.NAME.write]] passes.
func Write(ctx context.Context, t Target, id string, payload []byte) error {
	s, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close(ctx)
	node, err := resolve(s, id)
	if err != nil {
		return err
	}
	typ, err := s.TypeOf(ctx, node)
	if err != nil {
		return fmt.Errorf("opcua: %s: %w", t.Name, err)
	}
	value, err := coerce(payload, typ)
	if err != nil {
		return fmt.Errorf("opcua: %s: write %s: %w", t.Name, id, err)
	}
	if err := s.Write(ctx, node, value); err != nil {
		return fmt.Errorf("opcua: %s: %w", t.Name, err)
	}
	return nil
}

// Watch shows the values of nodes, and each change of them, until ctx ends. A server that cannot be reached at first is an
// error; one that is lost later is waited for.
func Watch(ctx context.Context, t Target, ids []string, show func(Reading)) error {
	lo, err := linkOptions(t.Name, t.Config, t.Dir, t.GatewayID)
	if err != nil {
		return err
	}
	for _, id := range ids {
		ref, err := link.ParseRef(id)
		if err != nil {
			return fmt.Errorf("opcua: %w", err)
		}
		lo.Items = append(lo.Items, link.Item{Ref: ref})
	}
	// What keeps a bridge from ever giving up would keep whoever watches from hearing that nobody is there.
	s, err := t.connect(ctx)
	if err != nil {
		return err
	}
	s.Close(ctx)
	lo.Name += " watch" // a session of its own, which is not kept
	lo.Sink = &display{ids: ids, show: show}
	l, err := link.New(lo)
	if err != nil {
		return err
	}
	return l.Run(ctx)
}

// display is the sink of Watch.
type display struct {
	ids  []string
	show func(Reading)
}

func (*display) Resolve(int, link.Description) error { return nil }

func (d *display) Take(_ context.Context, values []link.Value, done func(error)) {
	for _, v := range values {
		d.show(Reading{ID: d.ids[v.Item], Value: appendJSON(nil, v.DataValue), Type: typeName(v.Value.Type)})
	}
	done(nil)
}

// Accepted is a certificate that is trusted from now on.
type Accepted struct {
	File       string    `json:"file"`
	Subject    string    `json:"subject"`
	Thumbprint string    `json:"thumbprint"`
	Expires    time.Time `json:"expires"`
}

// Trust accepts the certificate that was refused for the connection of that name; where several were, name is the
// thumbprint of one of them. dir is as in Options. A running bridge uses it at its next attempt, within seconds.
func Trust(dir, name string) (Accepted, error) {
	a, err := link.Trust(dir, name)
	return Accepted(a), err
}
