package config

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// spot is where a key of the configuration stands.
type spot struct {
	kind       kind
	key, value Place
	items      []Place // of an array
}

// decoder maps nodes onto the structs of config.go by their toml tags and remembers where every key stands, so that
// validation, which looks at the structs, can say where.
type decoder struct {
	*reporter
	spots    map[string]spot
	defaults defaults
	base     string  // folder that relative paths start at
	above    []scope // the tables around the one that is being decoded
}

// scope is a table and the keys it can have.
type scope struct {
	path  string
	known map[string]int
}

// table decodes n into the struct v. shape is path with * for the names that the user chose, see notBuilt.
func (d *decoder) table(n *node, path, shape string, v reflect.Value) {
	known := fieldsOf(v.Type())
	d.above = append(d.above, scope{path, known})
	defer func() { d.above = d.above[:len(d.above)-1] }()
	for _, name := range n.names {
		child, p, s := n.fields[name], join(path, name), join(shape, name)
		d.remember(p, child)
		if i, ok := known[name]; ok {
			d.value(child, p, s, v.Field(i))
			continue
		}
		if what, ok := notBuilt(s); ok {
			d.add(Error, child.key, p, "%s", what)
			continue
		}
		if where, ok := d.belongs(name); ok {
			d.add(Error, child.key, p, "unknown key; it belongs to %s", where)
			continue
		}
		candidates := append(slices.Collect(maps.Keys(known)), notBuiltBelow(shape)...)
		d.add(Error, child.key, p, "unknown key").Suggestion = nearest(name, candidates)
	}
}

// belongs returns the table around this one that has a key called name. In TOML a key behind the header of an inner table
// belongs to that, however it is indented.
func (d *decoder) belongs(name string) (where string, ok bool) {
	for i := len(d.above) - 2; i >= 0; i-- {
		if _, ok := d.above[i].known[name]; !ok {
			continue
		}
		if path := d.above[i].path; path != "" {
			return "[" + path + "] and must stand above the tables inside it", true
		}
		return "the top of the file, above the first [table]", true
	}
	return "", false
}

func (d *decoder) remember(path string, n *node) {
	s := spot{kind: n.kind, key: n.key, value: n.at}
	for _, item := range n.items {
		s.items = append(s.items, item.at)
	}
	d.spots[path] = s
}

// fieldsOf returns the index of each field by its key.
func fieldsOf(t reflect.Type) map[string]int {
	known := map[string]int{}
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "" && tag != "-" {
			known[tag] = i
		}
	}
	return known
}

// value decodes n into v, which is one of the types that config.go uses.
func (d *decoder) value(n *node, path, shape string, v reflect.Value) {
	switch v.Interface().(type) {
	case Duration, Size, InFlight, SyncInterval, Age, MessageRate, ByteRate, ConnectRate:
		d.unit(n, path, v)
		return
	case Secret:
		v.Set(reflect.ValueOf(d.secret(n, path)))
		return
	case Proxy:
		v.Set(reflect.ValueOf(d.proxy(n, path)))
		return
	case Deadband:
		v.Set(reflect.ValueOf(d.deadband(n, path)))
		return
	case Paths:
		if n.kind == stringKind {
			v.Set(reflect.ValueOf(Paths{n.text}))
			return
		}
	}
	switch v.Kind() {
	case reflect.String:
		if d.is(n, path, stringKind) {
			v.SetString(n.text)
		}
	case reflect.Int:
		d.integer(n, path, v)
	case reflect.Bool:
		if d.is(n, path, boolKind) {
			v.SetBool(n.truth)
		}
	case reflect.Pointer:
		d.pointer(n, path, shape, v)
	case reflect.Struct:
		if d.is(n, path, tableKind) {
			d.table(n, path, shape, v)
		}
	case reflect.Map:
		d.named(n, path, shape, v)
	case reflect.Slice:
		d.array(n, path, shape, v)
	}
}

// is reports whether n has the wanted kind, and what is wrong when not.
func (d *decoder) is(n *node, path string, want kind) bool {
	if n.kind == want {
		return true
	}
	d.add(Error, n.at, path, "must be %s, not %s", want, n.kind)
	return false
}

func (d *decoder) integer(n *node, path string, v reflect.Value) {
	if !d.is(n, path, integerKind) {
		return
	}
	if v.OverflowInt(n.integer) || int64(int32(n.integer)) != n.integer {
		d.add(Error, n.at, path, "%d is too large", n.integer)
		return
	}
	v.SetInt(n.integer)
}

// unit decodes what is written as text with a unit or with a word of its own.
func (d *decoder) unit(n *node, path string, v reflect.Value) {
	var value int64
	var err error
	switch v.Interface().(type) {
	case Duration:
		var t Duration
		if n.kind != stringKind {
			err = fmt.Errorf("must be a duration in quotes, such as \"30s\", not %s", n.kind)
		} else {
			t, err = ParseDuration(n.text)
		}
		value = int64(t)
	case Size:
		var s Size
		if n.kind != stringKind {
			err = fmt.Errorf("must be a size in quotes, such as \"64KiB\", not %s", n.kind)
		} else {
			s, err = ParseSize(n.text)
		}
		value = int64(s)
	case InFlight:
		value, err = inFlight(n)
	case SyncInterval:
		value, err = wordOr(n, "always", "1s", time.Millisecond, time.Hour, "from 1ms to 1h")
	case Age:
		value, err = wordOr(n, "off", "24h", time.Second, math.MaxInt64, "1s or more")
	case MessageRate:
		value, err = rate(n, "500/s", ParseMessageRate)
	case ByteRate:
		value, err = rate(n, "64KiB/s", ParseByteRate)
	case ConnectRate:
		value, err = connectRate(n)
	}
	if err != nil {
		d.add(Error, n.at, path, "%s", err)
		return
	}
	v.SetInt(value)
}

func inFlight(n *node) (int64, error) {
	switch {
	case n.kind == stringKind && n.text == "auto":
		return 0, nil
	case n.kind == integerKind && n.integer >= 1 && n.integer <= maxInFlight:
		return n.integer, nil
	case n.kind == integerKind:
		return 0, fmt.Errorf("must be from 1 to %d, or \"auto\", not %d", maxInFlight, n.integer)
	case n.kind == stringKind:
		return 0, fmt.Errorf("must be a number without quotes, or \"auto\", not %q", n.text)
	}
	return 0, fmt.Errorf("must be a number, or \"auto\", not %s", n.kind)
}

func connectRate(n *node) (int64, error) {
	if n.kind == stringKind && n.text == "off" {
		return 0, nil
	}
	if n.kind == stringKind {
		if r, err := ParseMessageRate(n.text); err == nil {
			return int64(r), nil
		}
		return 0, fmt.Errorf("must be \"off\" or a rate such as \"50/s\" or \"30/m\", not %q", n.text)
	}
	return 0, fmt.Errorf("must be \"off\" or a rate in quotes, such as \"50/s\", not %s", n.kind)
}

func rate[R ~int64](n *node, example string, parse func(string) (R, error)) (int64, error) {
	if n.kind != stringKind {
		return 0, fmt.Errorf("must be a rate in quotes, such as %q, not %s", example, n.kind)
	}
	r, err := parse(n.text)
	return int64(r), err
}

// wordOr reads a duration of least to most, or the word that stands for 0. bounds says in words what is allowed.
func wordOr(n *node, word, example string, least, most time.Duration, bounds string) (int64, error) {
	if n.kind != stringKind {
		return 0, fmt.Errorf("must be %q or a duration in quotes, such as %q, not %s", word, example, n.kind)
	}
	if n.text == word {
		return 0, nil
	}
	t, err := ParseDuration(n.text)
	if err != nil {
		return 0, fmt.Errorf("must be %q or a duration such as %q, not %q", word, example, n.text)
	}
	if t.D() < least || t.D() > most {
		return 0, fmt.Errorf("must be %q or %s, not %q", word, bounds, n.text)
	}
	return int64(t), nil
}

func (d *decoder) pointer(n *node, path, shape string, v reflect.Value) {
	elem := reflect.New(v.Type().Elem())
	switch value := elem.Interface().(type) {
	case *bool:
		if !d.is(n, path, boolKind) {
			return
		}
		*value = n.truth
	default:
		if !d.is(n, path, tableKind) {
			return
		}
		d.defaults.fill(elem.Interface())
		d.table(n, path, shape, elem.Elem())
	}
	v.Set(elem)
}

// named decodes a table of tables whose names the user chose.
func (d *decoder) named(n *node, path, shape string, v reflect.Value) {
	if !d.is(n, path, tableKind) {
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, name := range n.names {
		child, p := n.fields[name], join(path, name)
		d.remember(p, child)
		if err := validName(name); err != nil {
			d.add(Error, child.key, p, "%s", err) // and what stands in the table is looked at all the same
		}
		if child.kind != tableKind {
			d.add(Error, child.key, p, "must stand in a table with a name of your own, [%s.NAME]", path)
			continue
		}
		elem := reflect.New(v.Type().Elem())
		d.defaults.fill(elem.Interface())
		d.table(child, p, shape+".*", elem.Elem())
		v.SetMapIndex(reflect.ValueOf(name), elem.Elem())
	}
}

func (d *decoder) array(n *node, path, shape string, v reflect.Value) {
	if n.kind == tableKind && v.Type().Elem().Kind() == reflect.Struct {
		d.add(Error, n.at, path, "must be an array of tables, [[%s]], not a table", path)
		return
	}
	if n.kind == stringKind && v.Type().Elem().Kind() == reflect.String {
		d.add(Error, n.at, path, "must be an array, [%q], not a string", n.text)
		return
	}
	if !d.is(n, path, arrayKind) {
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		p := path
		if out.Index(i).Kind() == reflect.Struct {
			p = indexed(path, i)
			d.remember(p, item)
			d.defaults.fill(out.Index(i).Addr().Interface())
			d.place(out.Index(i), item.key)
		}
		d.value(item, p, shape, out.Index(i))
	}
	v.Set(out)
}

// indexed returns the path of the i-th table of an array; people count from 1.
func indexed(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i+1) }

// place fills the field At of a struct that wants to know where it stands.
func (d *decoder) place(v reflect.Value, at Place) {
	if f := v.FieldByName("At"); f.IsValid() && f.Type() == reflect.TypeFor[Place]() {
		f.Set(reflect.ValueOf(at))
	}
}

// validName refuses names of tables that cannot be part of a folder, a topic and a metric.
func validName(name string) error {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(c rune) bool { return !isBare(c) }) {
		return fmt.Errorf("a name has 1 to 64 letters, digits, - or _")
	}
	return nil
}
