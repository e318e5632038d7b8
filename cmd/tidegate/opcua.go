package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"tidegate/bridges/opcua"
	"tidegate/config"
)

// opcuaTimeout bounds what the commands that look once may take.
const opcuaTimeout = 30 * time.Second

// opcuaCommand is one word behind `tidegate opcua`. Its first argument is the NAME of an [opcua.NAME], or for those that
// take one a URL.
type opcuaCommand struct {
	name, synopsis string
	least, most    int // arguments
	nodes          int // how many of those behind the first are node IDs
	run            func(opcuaCall) int
}

func opcuaCommands() []opcuaCommand {
	return []opcuaCommand{
		{"endpoints", "NAME|URL [--json]", 1, 1, 0, opcuaEndpoints},
		{"browse", "NAME|URL [NODE] [--depth N] [--json]", 1, 2, 1, opcuaBrowse},
		{"read", "NAME|URL NODE... [--json]", 2, 1000, 1000, opcuaRead},
		{"watch", "NAME|URL NODE... [--json]", 2, 1000, 1000, opcuaWatch},
		{"write", "NAME|URL NODE VALUE", 3, 3, 1, opcuaWrite},
		{"trust", "NAME|THUMBPRINT", 1, 1, 0, opcuaTrust},
	}
}

// opcuaCall is one call of such a command.
type opcuaCall struct {
	stdio
	ctx    context.Context
	name   string // of the command
	args   []string
	depth  int
	asJSON bool
	config *config.Config
	target opcua.Target
}

// cmdOPCUA looks around in an OPC UA server, with the same security as the bridge.
func cmdOPCUA(args []string, std stdio) int {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	for _, c := range opcuaCommands() {
		if c.name == word {
			return runOPCUA(c, args[1:], std)
		}
	}
	var synopses []string
	for _, c := range opcuaCommands() {
		synopses = append(synopses, c.name+" "+c.synopsis+" [--config FILE]")
	}
	return std.otherWord("opcua", word, synopses)
}

// runOPCUA reads the command line of c, finds the server and runs c.
func runOPCUA(c opcuaCommand, args []string, std stdio) int {
	fs := std.flagSet("opcua "+c.name, c.synopsis+" [--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	call := opcuaCall{stdio: std, name: c.name}
	fs.BoolVar(&call.asJSON, "json", false, "as JSON, one object a line")
	fs.IntVar(&call.depth, "depth", 1, "how many levels `N` to go down (browse)")
	rest, code, done := std.parseAround(fs, args)
	if done {
		return code
	}
	if len(rest) < c.least || len(rest) > c.most {
		fs.Usage()
		return exitUsage
	}
	if call.depth < 1 {
		return std.fail(exitUsage, "opcua %s: --depth %d: want 1 or more", c.name, call.depth)
	}
	call.args = rest[1:]
	for _, id := range call.args[:min(c.nodes, len(call.args))] {
		if err := opcua.CheckNode(id); err != nil {
			return std.fail(exitUsage, "opcua %s: %v; write it as nsu=URI;s=TEXT or ns=N;s=TEXT", c.name, err)
		}
	}
	if call.config, code, done = loadConfig(std, *file); done {
		return code
	}
	if c.name == "trust" {
		call.args = rest
	} else if call.target, code, done = opcuaTarget(std, call.config, rest[0]); done {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if c.name != "watch" {
		limited, cancel := context.WithTimeoutCause(ctx, opcuaTimeout, fmt.Errorf("no answer within %s", opcuaTimeout))
		defer cancel()
		ctx = limited
	}
	call.ctx = ctx
	return c.run(call)
}

// opcuaTarget finds the server that name means: one of the configuration, or a URL, which is connected to without security
// and as anonymous.
func opcuaTarget(std stdio, c *config.Config, name string) (t opcua.Target, code int, done bool) {
	t = opcua.Target{Name: name, Dir: opcuaDir(c), GatewayID: c.Gateway.ID}
	if server, ok := c.OPCUA[name]; ok {
		t.Config = server
		return t, exitOK, false
	}
	if strings.Contains(name, "://") {
		text := fmt.Sprintf("[opcua.server]\nendpoint = %q\n", name)
		one, err := config.Parse("", []byte(text))
		if problems := config.Problems(nil); errors.As(err, &problems) {
			first := slices.IndexFunc(problems, func(p config.Problem) bool { return p.Severity == config.Error })
			return t, std.fail(exitUsage, "%s: %s", name, problems[first].Message), true
		}
		t.Name, t.Config = "server", one.OPCUA["server"]
		return t, exitOK, false
	}
	known := "there is none"
	if len(c.OPCUA) > 0 {
		known = "known are " + strings.Join(slices.Sorted(maps.Keys(c.OPCUA)), ", ")
	}
	return t, std.fail(exitUsage, "there is no [opcua.%s] in %s (%s); name one of them, or a URL such as opc.tcp://192.0.2.7:4840",
		name, configName(c), known), true
}

// failed reports why the server could not be asked.
func (c opcuaCall) failed(err error) int {
	code := exitFailed
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		code = exitUnavailable
	}
	return c.fail(code, "opcua %s: %v", c.name, err)
}

// printLines prints each of a list as a JSON object on a line of its own.
func printLines[T any](c opcuaCall, list []T) int {
	for _, x := range list {
		if code := c.printJSON(x); code != exitOK {
			return code
		}
	}
	return exitOK
}

func opcuaEndpoints(c opcuaCall) int {
	list, err := opcua.Endpoints(c.ctx, c.target.Config.Endpoint)
	if err != nil {
		return c.failed(err)
	}
	if c.asJSON {
		return printLines(c, list)
	}
	t := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SECURITY\tUSABLE\tLOGINS\tURL\tCERTIFICATE")
	for _, e := range list {
		usable := "yes"
		if !e.Usable {
			usable = "no"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", e.Security, usable, strings.Join(e.Logins, " "), e.URL, e.Thumbprint)
	}
	_ = t.Flush()
	return exitOK
}

func opcuaBrowse(c opcuaCall) int {
	root := ""
	if len(c.args) > 0 {
		root = c.args[0]
	}
	nodes, err := opcua.Browse(c.ctx, c.target, root, c.depth)
	if err != nil {
		return c.failed(err)
	}
	if c.asJSON {
		return printLines(c, nodes)
	}
	t := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, n := range nodes {
		fmt.Fprintf(t, "%s%s\t%s\t%s\t%s\n", strings.Repeat("  ", n.Depth-1), n.Name, n.Class, n.Type, n.ID)
	}
	_ = t.Flush()
	return exitOK
}

// reading is a value as it is printed with --json.
type reading struct {
	ID    string          `json:"id"`
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

func (c opcuaCall) printReading(r opcua.Reading) int {
	if c.asJSON {
		return c.printJSON(reading{r.ID, r.Type, r.Value})
	}
	fmt.Fprintf(c.out, "%s %s\n", r.ID, r.Value)
	return exitOK
}

func opcuaRead(c opcuaCall) int {
	values, err := opcua.Read(c.ctx, c.target, c.args...)
	if err != nil {
		return c.failed(err)
	}
	for _, v := range values {
		if code := c.printReading(v); code != exitOK {
			return code
		}
	}
	return exitOK
}

func opcuaWatch(c opcuaCall) int {
	// What cannot be read now is watched all the same: it may come. But nobody should wait for a slip of the pen.
	now, err := opcua.Read(c.ctx, c.target, c.args...)
	if err != nil {
		return c.failed(err)
	}
	for _, r := range now {
		if strings.Contains(string(r.Value), `"q":"Bad`) {
			fmt.Fprintf(c.err, "tidegate: opcua watch: %s has no value: %s\n", r.ID, r.Value)
		}
	}
	err = opcua.Watch(c.ctx, c.target, c.args, func(r opcua.Reading) { c.printReading(r) })
	if err != nil && c.ctx.Err() == nil {
		return c.failed(err)
	}
	return exitOK
}

func opcuaWrite(c opcuaCall) int {
	if err := opcua.Write(c.ctx, c.target, c.args[0], []byte(c.args[1])); err != nil {
		return c.failed(err)
	}
	return exitOK
}

func opcuaTrust(c opcuaCall) int {
	a, err := opcua.Trust(opcuaDir(c.config), c.args[0])
	if err != nil {
		return c.failed(err)
	}
	if c.asJSON {
		return c.printJSON(a)
	}
	fmt.Fprintf(c.out, "trusted: %s, thumbprint %s, until %s\n%s\n", a.Subject, a.Thumbprint, a.Expires.Format(time.DateOnly), a.File)
	return exitOK
}
