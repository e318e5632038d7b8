package archtest

import (
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// statements are the numbered statements of the specifications: how many there are under each heading, as their appendices list
// them. In MQTT 5 the first one under 2.2.1 has the number 2; the others begin with 1.
var statements = map[string]map[string]int{
	"3.1.1": {
		"1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6, "3.3.1": 12,
		"3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2,
		"3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1, "4.3.2": 2, "4.3.3": 2, "4.4.0": 1, "4.5.0": 2,
		"4.6.0": 6, "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2, "6.0.0": 4, "7.0.0": 2, "7.1.1": 1, "7.1.2": 1,
	},
	"5": {
		"1.5.4": 3, "1.5.5": 1, "1.5.7": 1, "2.1.3": 1, "2.2.1": 6, "2.2.2": 1, "3.1.0": 2, "3.1.2": 30, "3.1.3": 12, "3.1.4": 6,
		"3.2.0": 2, "3.2.2": 22, "3.3.1": 13, "3.3.2": 20, "3.3.4": 10, "3.4.2": 3, "3.5.2": 3, "3.6.1": 1, "3.6.2": 3, "3.7.2": 3,
		"3.8.1": 1, "3.8.3": 5, "3.8.4": 8, "3.9.2": 2, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.11.2": 2, "3.11.3": 2,
		"3.12.4": 1, "3.14.0": 1, "3.14.1": 1, "3.14.2": 4, "3.14.4": 3, "3.15.1": 1, "3.15.2": 3, "4.1.0": 2, "4.2.0": 1, "4.3.1": 1,
		"4.3.2": 5, "4.3.3": 13, "4.4.0": 2, "4.5.0": 2, "4.6.0": 6, "4.7.0": 1, "4.7.1": 2, "4.7.2": 1, "4.7.3": 4, "4.8.2": 6,
		"4.9.0": 3, "4.12.0": 7, "4.12.1": 2, "4.13.1": 1, "4.13.2": 1, "6.0.0": 4,
	},
}

// isStatement reports whether version has a statement with that number.
func isStatement(version, number string) bool {
	heading, n, _ := strings.Cut(number, "-")
	var i int
	if _, err := fmt.Sscan(n, &i); err != nil || i < 1 || version == "5" && number == "2.2.1-1" {
		return false
	}
	return i <= statements[version][heading]
}

var (
	number = regexp.MustCompile(`\d+\.\d+\.\d+-\d+`)
	// tagged finds statements one behind the other, also over the end of a line of comment, and the version behind them.
	tagged   = regexp.MustCompile(`\[MQTT-[\d.]+-\d+\](?:(?:\s|//)*\[MQTT-[\d.]+-\d+\])*((?:\s|//)+of 3\.1\.1)?`)
	testName = regexp.MustCompile("`([a-z/]+)\\.(Test\\w+)`")
)

// tags returns the statements that each test is tagged with, by version, under its folder and name.
func tags(t *testing.T) map[string]map[string]map[string]bool {
	t.Helper()
	found := map[string]map[string]map[string]bool{}
	for _, s := range sources(t) {
		if !s.isTest() {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			begin := f.Pos()
			if f.Doc != nil {
				begin = f.Doc.Pos()
			}
			of := map[string]map[string]bool{"3.1.1": {}, "5": {}}
			for _, m := range tagged.FindAllStringSubmatch(string(s.data[s.fset.Position(begin).Offset:s.fset.Position(f.End()).Offset]), -1) {
				version := "5"
				if m[1] != "" || filepath.Base(s.path) == "conformance3_test.go" {
					version = "3.1.1"
				}
				for _, n := range number.FindAllString(m[0][:len(m[0])-len(m[1])], -1) {
					of[version][n] = true
				}
			}
			found[filepath.Dir(s.path)+"."+f.Name.Name] = of
		}
	}
	return found
}

// row is a line of a table of docs/conformance.md.
type row struct {
	section, part string // the headings above it
	cells         []string
}

func conformancePage(t *testing.T) []row {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(t), "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	var r row
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "## "):
			r.section, r.part = line[3:], ""
		case strings.HasPrefix(line, "### "):
			r.part = line[4:]
		case strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| ---"):
			r.cells = strings.Split(strings.Trim(line, "| "), " | ")
			rows = append(rows, r)
		}
	}
	return rows
}

// TestConformancePage: every test that docs/conformance.md names is there and is tagged with what the page says of it, and
// every numbered statement of the specifications is on the page, with a test or with the reason why it has none.
func TestConformancePage(t *testing.T) {
	tests := tags(t)
	onPage := map[string]bool{}
	cases := map[string]int{}
	named := map[string]map[string]bool{"3.1.1": {}, "5": {}}
	name := func(version, n string) {
		if !isStatement(version, n) {
			t.Errorf("MQTT %s has no statement %s", version, n)
		}
		named[version][n] = true
	}
	for _, r := range conformancePage(t) {
		first := r.cells[0]
		has := map[string]map[string]bool{"3.1.1": {}, "5": {}}
		for _, m := range testName.FindAllStringSubmatch(strings.Join(r.cells, " "), -1) {
			of, ok := tests[m[1]+"."+m[2]]
			onPage[m[1]+"."+m[2]] = true
			if !ok {
				t.Errorf("%s: there is no test %s.%s", first, m[1], m[2])
			}
			for version := range has {
				maps.Copy(has[version], of[version])
			}
		}
		switch {
		case first == "case" || first == "test" || first == "MQTT 3.1.1": // a head
		case r.part != "":
			version := strings.TrimPrefix(r.part, "MQTT ")
			cases[version]++
			list := number.FindAllString(r.cells[2], -1)
			if len(list) == 0 {
				t.Errorf("%s: no statement", first)
			}
			for _, n := range list {
				if name(version, n); !has[version][n] {
					t.Errorf("%s: none of %s is tagged [MQTT-%s] for version %s", first, r.cells[1], n, version)
				}
			}
		case r.section == "Tests and their statements":
			for i, version := range []string{"3.1.1", "5"} {
				list := number.FindAllString(r.cells[i+1], -1)
				for _, n := range list {
					name(version, n)
				}
				if have := slices.Collect(maps.Keys(has[version])); !slices.Equal(slices.Sorted(slices.Values(list)), slices.Sorted(slices.Values(have))) {
					slices.Sort(have)
					t.Errorf("%s: version %s: the page has %v, the test %v", first, version, list, have)
				}
			}
		default:
			for i, version := range []string{"3.1.1", "5"} {
				for _, n := range number.FindAllString(r.cells[i], -1) {
					name(version, n)
				}
			}
		}
	}
	if cases["3.1.1"] != 10 || cases["5"] != 27 {
		t.Errorf("the page has cases %v, the suite has 10 of MQTT 3.1.1 and 27 of MQTT 5", cases)
	}
	for test := range tests {
		if strings.HasPrefix(test, "edge.TestConformance") && !onPage[test] {
			t.Errorf("the page does not name %s", test)
		}
	}
	for version, headings := range statements {
		for heading, n := range headings {
			for i := range n {
				if s := fmt.Sprintf("%s-%d", heading, i+1); isStatement(version, s) && !named[version][s] {
					t.Errorf("the page does not name MQTT-%s of version %s", s, version)
				}
			}
		}
	}
}
