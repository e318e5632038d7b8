// Command tidegate is the gateway and its tools in one binary.
//
// This file only finds the command; each command is one file with a function that takes its arguments and what it reads
// and writes, and returns the exit code (stdio.go). The gateway itself starts in run.go: wire.go builds every part from
// the configuration and supervise.go starts and stops them in order. reload.go makes the running gateway follow a changed
// configuration.
package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

func main() {
	os.Exit(dispatch(os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
}

// command is one word of the command line.
type command struct {
	name    string
	summary string
	run     func(args []string, std stdio) int
}

// commands lists what this build has, in the order of the usage text.
func commands() []command {
	return []command{
		{"run", "run the gateway", cmdRun},
		{"demo", "devices, gateway and cloud in one process, through an outage", cmdDemo},
		{"init", "write a commented configuration", cmdInit},
		{"check", "look for everything wrong with a configuration", cmdCheck},
		{"status", "one look at the running gateway", cmdStatus},
		{"reload", "make the running gateway follow its changed configuration", cmdReload},
		{"buffer", "list, check, export and purge the stored backlog", cmdBuffer},
		{"pub", "publish messages to an MQTT broker", cmdPub},
		{"sub", "print messages of an MQTT broker", cmdSub},
		{"decode", "batch envelopes to JSON lines", cmdDecode},
		{"opcua", "look around in an OPC UA server, trust its certificate", cmdOPCUA},
		{"verify", "what of the gateways' messages is missing at the cloud", cmdVerify},
		{"passwd", "add or change a user", cmdPasswd},
		{"auth", "which rule decides", cmdAuth},
		{"cert", "a private authority, certificates for the gateway and its devices", cmdCert},
		{"version", "what this binary is", cmdVersion},
	}
}

// dispatch runs the command that args name.
func dispatch(args []string, std stdio) int {
	if len(args) == 0 {
		usage(std.err)
		return exitUsage
	}
	known := commands()
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(std.out)
		return exitOK
	case "-version", "--version":
		return cmdVersion(nil, std)
	}
	for _, c := range known {
		if c.name == args[0] {
			return c.run(args[1:], std)
		}
	}
	if slices.Contains(later(), args[0]) {
		return std.fail(exitUsage, "%s is not in this version; tidegate help lists what is", args[0])
	}
	if meant := nearest(args[0], known); meant != "" {
		return std.fail(exitUsage, "unknown command %q; did you mean %q? tidegate help lists all", args[0], meant)
	}
	return std.fail(exitUsage, "unknown command %q; tidegate help lists all", args[0])
}

// later lists the commands that other versions have, or are to have.
func later() []string {
	return []string{
		"bench", "coap", "completion", "doctor", "learn", "ledger", "replay", "test",
		"top", "why",
	}
}

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: tidegate COMMAND [FLAGS]\n\nAn MQTT edge gateway: what a device got acknowledged reaches the cloud.\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	_ = t.Flush()
	fmt.Fprint(w, "\ntidegate COMMAND --help shows the flags of one command.\n"+
		"Exit codes: 0 fine, 1 failed, 2 wrong use, 69 something needed is unavailable, 78 wrong configuration.\n")
}

// nearest returns the known command with the fewest changes of a letter to name: at most two, and fewer than half of its
// letters; empty when there is none.
func nearest(name string, known []command) string {
	best, fewest := "", min(3, (len(name)+1)/2)
	for _, c := range known {
		if d := distance(name, c.name); d < fewest {
			best, fewest = c.name, d
		}
	}
	return best
}

// distance counts the letters to insert, delete or replace to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
