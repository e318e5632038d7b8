package config

import (
	"strconv"
	"strings"
)

// kind is the TOML type of a node.
type kind int

const (
	tableKind kind = iota
	arrayKind
	stringKind
	integerKind
	floatKind
	boolKind
	timeKind
)

// String returns the word for k with its article, as messages use it.
func (k kind) String() string {
	return [...]string{"a table", "an array", "a string", "an integer", "a decimal number", "a boolean", "a date or time"}[k]
}

// node is one value of a TOML document together with where it stands: everything that is said about a configuration later,
// about its keys as well as about its meaning, finds its line and column here.
type node struct {
	kind kind
	key  Place // where its key stands; for an item of an array where the item stands
	at   Place // where its value stands; for a table where its name stands

	fields map[string]*node // of a table
	names  []string         // the keys of fields in the order of the file
	items  []*node          // of an array

	text    string // of a string; else as written
	integer int64
	truth   bool

	// What TOML allows to be added later depends on how a table came to be.
	made origin
}

// origin says how a table or array was made.
type origin int

const (
	implicit origin = iota // by the header of a table below it
	byHeader               // by its own [header]
	byDots                 // by a dotted key
	byValue                // an inline table or array: closed
	byTables               // an array made by [[header]]
)

func newTable(key Place, made origin) *node {
	return &node{kind: tableKind, key: key, at: key, fields: map[string]*node{}, made: made}
}

// set adds a field that is not there yet.
func (n *node) set(name string, child *node) {
	n.fields[name] = child
	n.names = append(n.names, name)
}

// last returns the table that a header path continues in: n itself, or the newest table of an array of tables; nil when
// there is none.
func (n *node) last() *node {
	switch {
	case n.kind == tableKind && n.made != byValue:
		return n
	case n.kind == arrayKind && n.made == byTables:
		return n.items[len(n.items)-1]
	}
	return nil
}

// isTables reports whether n is an array of tables, however it is written; conf.d appends those.
func (n *node) isTables() bool {
	if n.kind != arrayKind || len(n.items) == 0 {
		return false
	}
	for _, item := range n.items {
		if item.kind != tableKind {
			return false
		}
	}
	return true
}

// merge lays over on n, which both are tables: tables are merged by name, arrays of tables appended, anything else
// replaced, with a warning that names both places.
func (r *reporter) merge(n, over *node, path string) {
	for _, name := range over.names {
		theirs, p := over.fields[name], join(path, name)
		ours, ok := n.fields[name]
		switch {
		case !ok:
			n.set(name, theirs)
		case ours.kind == tableKind && theirs.kind == tableKind:
			r.merge(ours, theirs, p)
		case ours.isTables() && theirs.isTables():
			ours.items = append(ours.items[:len(ours.items):len(ours.items)], theirs.items...)
		default:
			r.add(Warning, theirs.key, p, "replaces the value at %s", ours.key)
			n.fields[name] = theirs
		}
	}
}

// join appends one key to a path, quoted when it is no bare key.
func join(path, name string) string {
	if name == "" || strings.ContainsFunc(name, func(c rune) bool { return !isBare(c) }) {
		name = strconv.Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func isBare(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}
