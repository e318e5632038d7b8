package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says whether a Problem stops the gateway from starting.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // the configuration must not be used
	Warning Severity = "warning" // it works, but probably not as meant
)

// Place is a position in a configuration file.
type Place struct {
	File string
	// Line and Column count from 1, the column in characters. Zero: the whole file is meant.
	Line, Column int
}

// String returns FILE:LINE:COLUMN, or what of it is known.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Problem is one thing that is wrong with a configuration. A problem of a key stands at the key, one of a value at the value.
type Problem struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`   // from 1; 0: the whole file
	Column   int      `json:"column"` // from 1, in characters
	Key      string   `json:"key"`    // such as route.telemetry.qos; empty for a syntax error
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	// Suggestion is what was probably meant: the nearest known key or value; empty when nothing is near.
	Suggestion string `json:"suggestion"`
}

// String returns the line that `check` prints: FILE:LINE:COLUMN: KEY: text.
func (p Problem) String() string {
	var b strings.Builder
	if at := (Place{p.File, p.Line, p.Column}).String(); at != "" {
		b.WriteString(at + ": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	if p.Severity == Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(p.Message)
	if p.Suggestion != "" {
		fmt.Fprintf(&b, "; did you mean %q?", p.Suggestion)
	}
	return b.String()
}

// Problems are all problems of one configuration, in the order of their places. As an error its text has one line each.
type Problems []Problem

// Error returns one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Wrong reports whether one of them is an error.
func (ps Problems) Wrong() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Severity == Error })
}

// sorted orders ps by file, line and column and drops repetitions. Files keep the order in which they were read: the
// main file, then conf.d by name.
func (ps Problems) sorted(files []string) Problems {
	rank := make(map[string]int, len(files))
	for i, f := range files {
		rank[f] = i
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank[a.File], rank[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Key, b.Key), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(ps)
}

// reporter gathers problems while a configuration is read.
type reporter struct{ problems Problems }

func (r *reporter) add(s Severity, at Place, key, format string, args ...any) *Problem {
	r.problems = append(r.problems, Problem{
		File: at.File, Line: at.Line, Column: at.Column, Key: key, Severity: s, Message: fmt.Sprintf(format, args...),
	})
	return &r.problems[len(r.problems)-1]
}
