package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestDispatch(t *testing.T) {
	for _, c := range []struct {
		name      string
		args      string
		code      int
		out, errs string
	}{
		{"no command", "", exitUsage, "", "usage: tidegate COMMAND"},
		{"help", "help", exitOK, "usage: tidegate COMMAND", ""},
		{"help as a flag", "--help", exitOK, "Exit codes", ""},
		{"misspelt", "verson", exitUsage, "", `unknown command "verson"; did you mean "version"`},
		{"misspelt by two letters", "statsu", exitUsage, "", `did you mean "status"`},
		{"not in this version", "replay", exitUsage, "", "replay is not in this version"},
		{"not in this version", "learn x", exitUsage, "", "learn is not in this version"},
		{"version", "version", exitOK, "tidegate ", ""},
		{"version as a flag", "--version", exitOK, "tidegate ", ""},
		{"version with an argument", "version 1", exitUsage, "", "unexpected argument"},
		{"help of a command", "version --help", exitOK, "", "usage: tidegate version [--json]"},
		{"unknown flag", "version --yaml", exitUsage, "", "flag provided but not defined"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tidegate(t, "", strings.Fields(c.args)...).want(t, c.code, c.out, c.errs)
		})
	}
}

// Only what was probably meant is suggested.
func TestNearestCommand(t *testing.T) {
	for name, want := range map[string]string{
		"nonsense": "", "x": "", "ru": "", "rnu": "", "runn": "run", "chek": "check", "bufer": "buffer", "subb": "sub", "passwrd": "passwd", "": "",
	} {
		if got := nearest(name, commands()); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if r := tidegate(t, "", "nonsense"); strings.Contains(r.err, "mean") || !strings.Contains(r.err, "tidegate help lists all") {
		t.Errorf("nonsense: %q", r.err)
	}
	for _, c := range commands() {
		if slices.Contains(later(), c.name) {
			t.Errorf("%s is said to be missing", c.name)
		}
	}
}

func TestVersionJSON(t *testing.T) {
	r := tidegate(t, "", "version", "--json")
	var v struct{ Version, Go, OS, Arch string }
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Version == "" || v.Go == "" || v.OS == "" || v.Arch == "" {
		t.Fatalf("%q: %+v, %v", r.out, v, err)
	}
}

// What INTERFACE.md lists and this build has stands in the usage text, each command once.
func TestUsageListsCommands(t *testing.T) {
	r := tidegate(t, "", "help")
	for _, c := range commands() {
		if n := strings.Count(r.out, "\n  "+c.name+" "); n != 1 {
			t.Errorf("%s is listed %d times", c.name, n)
		}
	}
}
