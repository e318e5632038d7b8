package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// Exit codes, a contract with scripts and service managers: a unit may say RestartPreventExitStatus=2 78.
const (
	exitOK          = 0
	exitFailed      = 1  // failed at run time
	exitUsage       = 2  // wrong use of the command line
	exitUnavailable = 69 // something needed is not there: no running gateway, a peer that cannot be reached
	exitConfig      = 78 // the configuration is wrong
)

// stdio is what a command reads and writes, so that a test can hand it buffers.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// fail writes one line for the person at the terminal and returns code: what happened, with what, and what to do.
func (s stdio) fail(code int, format string, args ...any) int {
	fmt.Fprintf(s.err, "tidegate: "+format+"\n", args...)
	return code
}

// flagSet returns the flags of one command. Its help goes to standard error, as wrong use does.
func (s stdio) flagSet(name, synopsis string) *flag.FlagSet {
	fs := flag.NewFlagSet("tidegate "+name, flag.ContinueOnError)
	fs.SetOutput(s.err)
	fs.Usage = func() {
		fmt.Fprintf(s.err, "usage: tidegate %s\n", strings.TrimSpace(name+" "+synopsis))
		fs.PrintDefaults()
	}
	return fs
}

// parse reads args into fs. When done is true the command ends with code: help was asked for, or a flag is wrong (the
// flag package has said which on standard error).
func (s stdio) parse(fs *flag.FlagSet, args []string) (code int, done bool) {
	switch err := fs.Parse(args); {
	case err == nil:
		return exitOK, false
	case errors.Is(err, flag.ErrHelp):
		return exitOK, true
	default:
		return exitUsage, true
	}
}

// setFlags returns the names of the flags that were given, to tell "-m ”" from no -m at all.
func setFlags(fs *flag.FlagSet) map[string]bool {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return given
}

// otherWord answers for a command of several words whose second one is none of those it has: help, nothing, or a mistake.
func (s stdio) otherWord(command, word string, synopses []string) int {
	fmt.Fprintln(s.err, "usage:")
	for _, line := range synopses {
		fmt.Fprintf(s.err, "  tidegate %s %s\n", command, line)
	}
	switch word {
	case "-h", "-help", "--help":
		return exitOK
	case "":
		return exitUsage
	}
	return s.fail(exitUsage, "unknown command %q", command+" "+word)
}
