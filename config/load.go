package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// maxFileBytes bounds one configuration file.
const maxFileBytes = 4 << 20

// systemFile is where the configuration of a service lives.
const systemFile = "/etc/tidegate/tidegate.toml"

// Find returns the configuration file to use: the one that a --config flag named, else that of TIDEGATE_CONFIG, else
// /etc/tidegate/tidegate.toml if it exists, else "", which stands for the built-in default. A file that was named but does
// not exist is an error, never the default: a mistyped path must not start an open gateway. The error
// is of type Problems.
func Find(flag string) (path string, err error) {
	path, how := flag, "--config"
	if path == "" {
		path, how = os.Getenv("TIDEGATE_CONFIG"), "TIDEGATE_CONFIG"
	}
	if path == "" {
		if _, err := os.Stat(systemFile); errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return systemFile, nil
	}
	if _, err := os.Stat(path); err != nil {
		return "", Problems{{File: path, Severity: Error, Message: fmt.Sprintf("%s; it was named by %s", fileReason(err), how)}}
	}
	return path, nil
}

// Default returns the configuration without any file: one listener on loopback, no uplink.
func Default() *Config {
	c, _ := read("", nil, nil)
	return c
}

// Load reads the main file at path and its conf.d folder; an empty path stands for the built-in default. The error is of
// type Problems and holds all that is wrong, warnings included; without an error the warnings are in Config.Warnings.
func Load(path string) (*Config, error) {
	return refuse(Check(path))
}

// Parse is Load for one file's content. Relative paths start at the folder of name; there is no conf.d.
func Parse(name string, data []byte) (*Config, error) {
	return refuse(read(name, []document{{name, data}}, nil))
}

// refuse turns problems into an error when one of them is.
func refuse(c *Config, ps Problems) (*Config, error) {
	if ps.Wrong() {
		return nil, ps
	}
	return c, nil
}

// Check is Load for programs that look at a configuration without running it: it returns all problems, and what could be
// read even when some of them are errors.
func Check(path string) (*Config, Problems) {
	if path == "" {
		return read("", nil, nil)
	}
	var r reporter
	docs := r.readFiles(path)
	c, ps := read(path, docs, r.problems)
	return c, ps
}

// document is one file.
type document struct {
	name string
	data []byte
}

// readFiles reads the main file and conf.d beside it.
func (r *reporter) readFiles(path string) []document {
	var docs []document
	load := func(name string) {
		data, err := readFile(name)
		if err != nil {
			r.add(Error, Place{File: name}, "", "%s", err)
			return
		}
		docs = append(docs, document{name, data})
	}
	load(path)
	folder := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(folder) // in name order
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.add(Error, Place{File: folder}, "", "%s", fileReason(err))
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			load(filepath.Join(folder, e.Name()))
		}
	}
	return docs
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, fileReason(err)
	case info.IsDir():
		return nil, errors.New("is a folder, not a file")
	case info.Size() > maxFileBytes:
		return nil, fmt.Errorf("has %d bytes, a configuration has at most %d", info.Size(), maxFileBytes)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fileReason(err)
	}
	return b, nil
}

// read merges, decodes and validates documents, of which the first is the main file.
func read(name string, docs []document, before Problems) (*Config, Problems) {
	r := &reporter{problems: before}
	root, whole := newTable(Place{File: name}, byHeader), true
	files := []string{name}
	for _, doc := range docs {
		tree, ok := parseTree(r, doc.name, doc.data)
		whole = whole && ok
		if doc.name != name {
			files = append(files, doc.name)
			if v := tree.fields["version"]; v != nil {
				r.add(Error, v.key, "version", "stands in the main file alone, %s", name)
				delete(tree.fields, "version")
				tree.names = slices.DeleteFunc(tree.names, func(n string) bool { return n == "version" })
			}
		}
		r.merge(root, tree, "")
	}
	c := defaults{}.config()
	c.File = name
	base, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		base = filepath.Dir(name)
	}
	d := &decoder{reporter: r, spots: map[string]spot{}, base: base}
	d.table(root, "", "", reflect.ValueOf(c).Elem())
	v := &validator{decoder: d, c: c, whole: whole && !before.Wrong(), bad: map[valueAt]bool{}}
	for _, p := range r.problems {
		v.bad[valueAt{Place{p.File, p.Line, p.Column}, p.Key}] = p.Severity == Error
	}
	v.validate()
	problems := r.problems.sorted(files)
	for _, p := range problems {
		if p.Severity == Warning {
			c.Warnings = append(c.Warnings, p)
		}
	}
	return c, problems
}
