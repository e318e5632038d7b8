package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// maxLines bounds a source file; most stay below 400.
const maxLines = 600

// root is the folder of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

type source struct {
	path string // relative to the root
	file *ast.File
	fset *token.FileSet
	data []byte
}

func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func (s source) at(p token.Pos) string {
	pos := s.fset.Position(p)
	return s.path + ":" + strconv.Itoa(pos.Line)
}

// sources parses every Go file of the repository.
func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	walk(t, ".go", func(path string, data []byte) {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, data, parser.ParseComments)
		if err != nil {
			t.Errorf("parse %s: %v", path, err)
			return
		}
		list = append(list, source{path, f, fset, data})
	})
	if len(list) < 10 {
		t.Fatalf("found only %d Go files", len(list))
	}
	return list
}

// walk hands out every file of the repository that ends in ext, but for hidden folders and test data.
func walk(t *testing.T, ext string, f func(path string, data []byte)) {
	t.Helper()
	base := root(t)
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != base && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ext {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(base, path)
		if err != nil {
			return err
		}
		f(rel, data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	comments := map[string]string{}
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		dir := filepath.Dir(s.path)
		comments[dir] += s.file.Doc.Text()
	}
	for dir, text := range comments {
		if len(text) < 80 {
			t.Errorf("%s: the package comment must say what it is for, what it does not do and where to start reading; it is %q", dir, text)
		}
	}
}

func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: no init functions", s.at(f.Pos()))
			}
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.data, []byte("\n")); n > maxLines && !s.isTest() {
			t.Errorf("%s has %d lines, at most %d", s.path, n, maxLines)
		}
	}
}

// TestNoProgramsAreKept: built programs lie where .gitignore names them, so that none is committed.
func TestNoProgramsAreKept(t *testing.T) {
	ignored := func(path string) bool {
		return path == "tidegate" || strings.HasPrefix(path, "dist"+string(filepath.Separator))
	}
	walk(t, "", func(path string, data []byte) {
		if bytes.HasPrefix(data, []byte("\x7fELF")) && !ignored(path) {
			t.Errorf("%s is a program", path)
		}
	})
}

// TestNothingIsSkipped: a test that cannot run must fail, or nobody hears that it does not run.
func TestNothingIsSkipped(t *testing.T) {
	forbidden := []string{"Skip", "Skipf", "SkipNow"}
	receivers := []string{"t", "b", "f", "tb"}
	for _, s := range sources(t) {
		if !s.isTest() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(forbidden, sel.Sel.Name) {
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(receivers, x.Name) {
					t.Errorf("%s: %s.%s", s.at(n.Pos()), x.Name, sel.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestNoPanics: outside tests nothing panics on purpose.
func TestNoPanics(t *testing.T) {
	for _, s := range sources(t) {
		if s.isTest() || strings.HasPrefix(s.path, "internal/testpeer") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.Ident); ok && f.Name == "panic" {
					t.Errorf("%s: panic", s.at(n.Pos()))
				}
			}
			return true
		})
	}
}

// TestNothingIsLeftToDo: what is not built yet is refused by name (`check` says so) or written up elsewhere, not in the code.
func TestNothingIsLeftToDo(t *testing.T) {
	word := regexp.MustCompile(`(?i)\b(TO` + `DO|FIX` + `ME|XX` + `X|for n` + `ow|not impl` + `emented)\b`)
	for _, s := range sources(t) {
		for _, group := range s.file.Comments {
			if m := word.FindString(group.Text()); m != "" {
				t.Errorf("%s: a comment says %q", s.at(group.Pos()), m)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if m := word.FindString(lit.Value); m != "" {
					t.Errorf("%s: a text says %q", s.at(n.Pos()), m)
				}
			}
			return true
		})
	}
}

// TestMetricNames: every metric begins with tidegate_, counters end in _total, times are in seconds.
func TestMetricNames(t *testing.T) {
	found := 0
	check := func(s source, pos token.Pos, kind, name string) {
		found++
		if !regexp.MustCompile(`^tidegate_[a-z0-9]+(_[a-z0-9]+)*$`).MatchString(name) {
			t.Errorf("%s: metric %q: want tidegate_ and lower case words", s.at(pos), name)
		}
		if kind == "CounterOpts" && !strings.HasSuffix(name, "_total") {
			t.Errorf("%s: counter %q does not end in _total", s.at(pos), name)
		}
		if strings.Contains(name, "milliseconds") || strings.HasSuffix(name, "_ms") {
			t.Errorf("%s: metric %q: times are in seconds", s.at(pos), name)
		}
	}
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				sel, ok := n.Type.(*ast.SelectorExpr)
				if !ok || !strings.HasSuffix(sel.Sel.Name, "Opts") || !isIdent(sel.X, "prometheus") {
					return true
				}
				for _, e := range n.Elts {
					kv, ok := e.(*ast.KeyValueExpr)
					if !ok || !isIdent(kv.Key, "Name") {
						continue
					}
					if text, ok := literal(kv.Value); ok {
						check(s, kv.Pos(), sel.Sel.Name, text)
					}
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if ok && sel.Sel.Name == "NewDesc" && isIdent(sel.X, "prometheus") && len(n.Args) > 0 {
					if text, ok := literal(n.Args[0]); ok {
						check(s, n.Pos(), "", text)
					}
				}
			}
			return true
		})
	}
	if found == 0 {
		t.Error("found no metric at all: the test looks in the wrong place")
	}
}

// TestMetricsComeInThroughTheConstructor: no package registers with the library's global registry.
func TestMetricsComeInThroughTheConstructor(t *testing.T) {
	forbidden := []string{"DefaultRegisterer", "DefaultGatherer", "MustRegister", "Register"}
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && isIdent(sel.X, "prometheus") && slices.Contains(forbidden, sel.Sel.Name) {
				t.Errorf("%s: prometheus.%s", s.at(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// TestScriptsAreExecutable: every script starts with a line that names its interpreter, and can be run; lib.sh is sourced.
func TestScriptsAreExecutable(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(root(t), "scripts"))
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{filepath.Join(root(t), ".ci", "run")}
	for _, e := range entries {
		if e.Name() != "lib.sh" {
			paths = append(paths, filepath.Join(root(t), "scripts", e.Name()))
		}
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&0o111 == 0 {
			t.Errorf("%s is not executable", path)
		}
		if strings.HasSuffix(path, ".py") { // for users on other machines
			if !bytes.HasPrefix(data, []byte("#!/usr/bin/env python3\n")) {
				t.Errorf("%s does not begin as a Python script", path)
			}
			continue
		}
		if !bytes.HasPrefix(data, []byte("#!/usr/bin/env bash\n")) || !bytes.Contains(data, []byte("set -euo pipefail")) {
			t.Errorf("%s does not begin as a strict bash script", path)
		}
	}
}
