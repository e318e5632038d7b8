package config

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// parser turns the text of one file into nodes. It goes on behind an error, so that one run finds all of them.
type parser struct {
	*reporter
	file  string
	data  []byte
	lines []int // offset of each line's first byte
	base  int   // offset in data of what toml was last reset to
	toml  unstable.Parser

	root    *node
	current *node  // the table that keys are added to
	prefix  string // its path
	// broken: something could not be read, so a key that seems to be missing may well be there.
	broken bool
}

// parseTree reads one TOML document. What is wrong with it is reported; what could be read is returned, and whether all of
// it could.
func parseTree(r *reporter, file string, data []byte) (root *node, whole bool) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	p := &parser{reporter: r, file: file, data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			p.lines = append(p.lines, i+1)
		}
	}
	p.root = newTable(Place{File: file, Line: 1, Column: 1}, byHeader)
	p.current = p.root
	if i := invalidUTF8(data); i >= 0 {
		p.wrong(i, "", "the file is not UTF-8 text")
		return p.root, false
	}
	p.parse()
	return p.root, !p.broken
}

func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		c, n := utf8.DecodeRune(b[i:])
		if c == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return -1
}

func (p *parser) parse() {
	p.toml.Reset(p.data)
	for {
		for p.toml.NextExpression() {
			p.expression(p.toml.Expression())
		}
		err := p.toml.Error()
		if err == nil {
			return
		}
		at := p.errorOffset(err)
		p.syntax(at, err)
		if !p.resume(at) {
			return
		}
	}
}

// syntax reports what the library says about the byte at offset at, or something better where the mistake is a common one:
// text, a duration or a size without quotes.
func (p *parser) syntax(at int, err error) {
	line := p.lineOf(at)
	key := p.keyOf(line)
	_, value, _ := strings.Cut(p.lineText(line), "=")
	word, _, _ := strings.Cut(strings.TrimLeft(value, " \t"), " ")
	if key != "" && isUnquoted(word) {
		start := p.lines[line] + bytes.IndexByte(p.data[p.lines[line]:], '=')
		p.wrong(p.valueStart(start), key, "text stands in quotes: %q", word)
		return
	}
	p.wrong(at, key, "%s", err)
}

// isUnquoted reports whether word looks like text that wants quotes: it has a letter, and nothing that TOML gives a meaning.
func isUnquoted(word string) bool {
	odd := func(c rune) bool { return !isBare(c) && !strings.ContainsRune("./:", c) }
	letter := func(c rune) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	return strings.ContainsFunc(word, letter) && !strings.ContainsFunc(word, odd)
}

// errorOffset returns where in the file the library found err. It marks a slice of the text it was given.
func (p *parser) errorOffset(err error) int {
	pe := (*unstable.ParserError)(nil)
	if !errors.As(err, &pe) {
		return len(p.data)
	}
	offset := p.base + cap(p.toml.Data()) - cap(pe.Highlight)
	return max(p.base, min(offset, len(p.data)))
}

// resume continues with the first line behind offset at that looks like the start of an expression. When a header was the
// broken one, the keys below it belong nowhere: it continues with the next header.
func (p *parser) resume(at int) bool {
	line := p.lineOf(at)
	headers := p.startsHeader(line)
	for line++; line < len(p.lines); line++ {
		if p.startsHeader(line) || !headers && p.startsKey(line) {
			p.base = p.lines[line]
			p.toml.Reset(p.data[p.base:])
			return true
		}
	}
	return false
}

func (p *parser) lineText(line int) string {
	end := len(p.data)
	if line+1 < len(p.lines) {
		end = p.lines[line+1]
	}
	return strings.TrimSpace(string(p.data[p.lines[line]:end]))
}

// startsHeader reports whether the line is a table header rather than a nested array.
func (p *parser) startsHeader(line int) bool {
	rest := strings.TrimLeft(p.lineText(line), "[ \t")
	return strings.HasPrefix(p.lineText(line), "[") && rest != "" && isBare(rune(rest[0])) && !strings.Contains(rest, ",")
}

func (p *parser) startsKey(line int) bool { return p.keyOf(line) != "" }

// keyOf guesses the key that a line sets, as far as one can without understanding the line; empty when it sets none.
func (p *parser) keyOf(line int) string {
	key, _, ok := strings.Cut(p.lineText(line), "=")
	key = strings.TrimSpace(key)
	if !ok || key == "" || strings.ContainsFunc(key, func(c rune) bool { return !isBare(c) && c != '.' }) {
		return ""
	}
	if p.prefix == "" {
		return key
	}
	return p.prefix + "." + key
}

func (p *parser) lineOf(offset int) int {
	return sort.Search(len(p.lines), func(i int) bool { return p.lines[i] > offset }) - 1
}

// place returns the position of the byte at offset in the file.
func (p *parser) place(offset int) Place {
	line := p.lineOf(offset)
	return Place{p.file, line + 1, utf8.RuneCount(p.data[p.lines[line]:offset]) + 1}
}

func (p *parser) wrong(offset int, key, format string, args ...any) {
	p.broken = true
	p.add(Error, p.place(offset), key, format, args...)
}

// part is one key of a dotted key or header.
type part struct {
	name   string
	offset int
	end    int
}

func (p *parser) parts(it unstable.Iterator) []part {
	var parts []part
	for it.Next() {
		n := it.Node()
		start := p.base + int(n.Raw.Offset)
		parts = append(parts, part{string(n.Data), start, start + int(n.Raw.Length)})
	}
	return parts
}

// path returns the path of parts below prefix.
func path(prefix string, parts []part) string {
	s := prefix
	for _, k := range parts {
		s = join(s, k.name)
	}
	return s
}

func (p *parser) expression(n *unstable.Node) {
	switch n.Kind {
	case unstable.Table:
		p.header(p.parts(n.Key()), false)
	case unstable.ArrayTable:
		p.header(p.parts(n.Key()), true)
	case unstable.KeyValue:
		p.keyValue(p.current, n, p.prefix)
	}
}

// header opens the table that [keys] or [[keys]] names.
func (p *parser) header(keys []part, array bool) {
	p.current = newTable(p.place(keys[0].offset), byHeader) // keys below a refused header belong nowhere
	p.prefix = path("", keys)
	t := p.root
	for i, k := range keys[:len(keys)-1] {
		child := t.fields[k.name]
		if child == nil {
			child = newTable(p.place(k.offset), implicit)
			t.set(k.name, child)
		}
		if t = child.last(); t == nil {
			p.wrong(k.offset, path("", keys[:i+1]), "cannot hold tables: it was set at %s", child.key)
			return
		}
	}
	k := keys[len(keys)-1]
	at, old := p.place(k.offset), t.fields[k.name]
	switch {
	case array:
		p.openItem(t, k, old)
	case old == nil:
		p.current = newTable(at, byHeader)
		t.set(k.name, p.current)
	case old.kind == tableKind && old.made == implicit:
		old.made, old.key, old.at = byHeader, at, at
		p.current = old
	case old.kind == tableKind && old.made == byHeader:
		p.wrong(k.offset, p.prefix, "the table is already there, at %s", old.key)
		p.current = old
	default:
		p.wrong(k.offset, p.prefix, "was set at %s already", old.key)
	}
}

func (p *parser) openItem(t *node, k part, old *node) {
	at := p.place(k.offset)
	switch {
	case old == nil:
		old = &node{kind: arrayKind, key: at, at: at, made: byTables}
		t.set(k.name, old)
	case old.made != byTables || old.kind != arrayKind:
		p.wrong(k.offset, p.prefix, "is no array of tables: it was set at %s", old.key)
		return
	}
	p.current = newTable(at, byHeader)
	old.items = append(old.items, p.current)
}

// keyValue adds `a.b.c = value` to table t, whose path is prefix.
func (p *parser) keyValue(t *node, n *unstable.Node, prefix string) {
	keys := p.parts(n.Key())
	for i, k := range keys[:len(keys)-1] {
		child := t.fields[k.name]
		if child == nil {
			child = newTable(p.place(k.offset), byDots)
			t.set(k.name, child)
		}
		if child.kind != tableKind || child.made != byDots {
			p.wrong(k.offset, path(prefix, keys[:i+1]), "was set at %s already", child.key)
			return
		}
		t = child
	}
	k := keys[len(keys)-1]
	if old := t.fields[k.name]; old != nil {
		p.wrong(k.offset, path(prefix, keys), "was set at %s already", old.key)
		return
	}
	child := p.value(n.Value(), p.valueStart(k.end), path(prefix, keys))
	child.key = p.place(k.offset)
	t.set(k.name, child)
}

// valueStart returns the offset of the value behind a key that ends at offset end; the library gives none for arrays.
func (p *parser) valueStart(end int) int {
	for end < len(p.data) && strings.IndexByte(" \t=", p.data[end]) >= 0 {
		end++
	}
	return end
}

// value converts the value of key, which starts at offset start.
func (p *parser) value(n *unstable.Node, start int, key string) *node {
	if n.Raw.Length > 0 {
		start = p.base + int(n.Raw.Offset)
	}
	at := p.place(start)
	v := &node{key: at, at: at, text: string(n.Data), made: byValue}
	switch n.Kind {
	case unstable.String:
		v.kind = stringKind
	case unstable.Bool:
		v.kind, v.truth = boolKind, v.text == "true"
	case unstable.Integer:
		v.kind = integerKind
		if err := v.parseInteger(); err != nil {
			p.wrong(start, key, "%s", err)
		}
	case unstable.Float:
		v.kind = floatKind
	case unstable.Array:
		v.kind = arrayKind
		for it := n.Children(); it.Next(); {
			v.items = append(v.items, p.value(it.Node(), start, key))
		}
	case unstable.InlineTable:
		v.kind, v.fields = tableKind, map[string]*node{}
		for it := n.Children(); it.Next(); {
			p.keyValue(v, it.Node(), key)
		}
	default:
		v.kind = timeKind
	}
	return v
}

// parseInteger reads decimal, 0x, 0o and 0b with underscores, as TOML writes them.
func (n *node) parseInteger() error {
	digits, base := strings.ReplaceAll(n.text, "_", ""), 10
	if len(digits) > 2 && digits[0] == '0' {
		if b := map[byte]int{'x': 16, 'o': 8, 'b': 2}[digits[1]]; b != 0 {
			digits, base = digits[2:], b
		}
	}
	i, err := strconv.ParseInt(digits, base, 64)
	if err != nil {
		return fmt.Errorf("the number %s is too large", n.text)
	}
	n.integer = i
	return nil
}
