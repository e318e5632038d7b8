package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// FuzzParse compares the reading of TOML with the library's own decoder: a document that one of them refuses must be refused
// by the other. Whatever the text, every problem must stand somewhere in the file.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"tidegate.example.toml", "wrong.toml"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		for _, section := range strings.Split(string(b), "\n\n") { // small seeds, which are quick to vary and to minimize
			f.Add(section)
		}
	}
	f.Add("a.b.c = 1\n[a]\nx = [{ y = 1 }, [2, 3]]\n[[a.t]]\n[a.t.u]\n")
	f.Add("x = 0x10\ny = 1e3\nz = 2026-01-02T03:04:05Z\nm = '''a\nb'''\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := &reporter{}
		root, whole := parseTree(r, "f.toml", []byte(text))
		var any map[string]any
		err := toml.Unmarshal([]byte(strings.TrimPrefix(text, "\ufeff")), &any)
		if whole != (err == nil) && !(whole && unread(root)) {
			t.Errorf("whole %t, the library says %v, problems:\n%s", whole, err, r.problems)
		}
		_, ps := checkText(text)
		lines := strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n")
		for _, p := range ps {
			if p.Line < 1 || p.Line > len(lines) || p.Column < 1 || p.Column > len(lines[p.Line-1])+1 || p.Message == "" {
				t.Errorf("problem out of place: %s", p)
			}
		}
	})
}

// unread reports whether a value below n is of a type that no key of ours has: it is refused for that, and nobody reads what
// the library may find wrong in it.
func unread(n *node) bool {
	if n.kind == floatKind || n.kind == timeKind || slices.ContainsFunc(n.items, unread) {
		return true
	}
	for _, child := range n.fields {
		if unread(child) {
			return true
		}
	}
	return false
}

// FuzzTemplate: a template that is accepted is the same text again when its parts are put together.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{topic}", "a/{gateway}/{1}x{rest}", "{", "}{", "{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parts, err := ParseTemplate(text)
		if err != nil {
			return
		}
		if got := expand(parts, nil); got != text || text == "" {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// FuzzUnits: what is accepted as a duration or a size is not negative and within its bound.
func FuzzUnits(f *testing.F) {
	for _, s := range []string{"250ms", "7d", "1h30m", "64KiB", "0.5MB", "1e9s", "-1s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := ParseDuration(text); err == nil && d < 0 {
			t.Errorf("%q is %s", text, d.D())
		}
		if s, err := ParseSize(text); err == nil && (s < 0 || s > 1<<60) {
			t.Errorf("%q is %d bytes", text, s)
		}
	})
}
