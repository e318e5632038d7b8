package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"tidegate/bridges/external"
	"tidegate/config"
	"tidegate/forwarder/uplink"
)

// onlineTimeout bounds the attempt to reach one server.
const onlineTimeout = 5 * time.Second

// cmdCheck is `tidegate check`: it reports everything that is wrong with a configuration, in one go. Problems go to standard
// error one a line, with --json to standard output as one array.
func cmdCheck(args []string, std stdio) int {
	fs := std.flagSet("check", "[--config FILE] [--online] [--json]")
	file := fs.String("config", "", "configuration `FILE`")
	online := fs.Bool("online", false, "also try to reach every server: name, connection, TLS")
	asJSON := fs.Bool("json", false, "print the problems as a JSON array on standard output")
	rest, code, done := std.parseAround(fs, args)
	if done {
		return code
	}
	if len(rest) > 0 {
		return std.fail(exitUsage, "check takes no argument %q; name the file with --config", rest[0])
	}
	c, problems := inspect(*file)
	code = exitOK
	switch {
	case problems.Wrong():
		code = exitConfig
	case *online:
		found := reachAll(c)
		problems = append(problems, found...)
		if found.Wrong() {
			code = exitUnavailable
		}
	}
	if *asJSON {
		printProblemsJSON(std.out, problems)
		return code
	}
	printProblems(std.err, problems)
	if code == exitOK {
		fmt.Fprintln(std.out, configName(c)+": fine")
	}
	if *online && code != exitConfig {
		fmt.Fprintln(std.err, "tidegate: --online tried names, connections and TLS; login, clock and disk speed are not tried by this build")
	}
	return code
}

// inspect finds and checks the configuration; it is nil when there is none.
func inspect(flag string) (*config.Config, config.Problems) {
	path, err := config.Find(flag)
	if problems := config.Problems(nil); errors.As(err, &problems) {
		return nil, problems
	}
	return config.Check(path)
}

func configName(c *config.Config) string {
	if c == nil || c.File == "" {
		return "built-in default"
	}
	return c.File
}

func printProblems(w io.Writer, problems config.Problems) {
	for _, p := range problems {
		fmt.Fprintln(w, p)
	}
}

func printProblemsJSON(w io.Writer, problems config.Problems) {
	if problems == nil {
		problems = config.Problems{} // [], not null
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(problems) // a closed standard output is nobody's to tell
}

// reachAll connects to every server of every uplink and of the user's own broker, and says which cannot be reached.
func reachAll(c *config.Config) config.Problems {
	var all config.Problems
	for _, name := range slices.Sorted(maps.Keys(c.Uplinks)) {
		u := c.Uplinks[name]
		all = append(all, reachSome("uplink."+name+".servers", u.Servers, u.ServersAt, func(ctx context.Context, i int) error {
			return uplink.Reach(ctx, name, u, c.Gateway.ID, i)
		})...)
	}
	if e := c.Broker.External; e != nil && c.Broker.Mode == config.ModeExternal {
		all = append(all, reachSome("broker.external.servers", e.Servers, e.ServersAt, func(ctx context.Context, i int) error {
			return external.Reach(ctx, *e, i)
		})...)
	}
	return all
}

// reachSome connects to each of the servers of one key as the gateway would, and ends the connection again. Where one of them
// can be reached it works, so the others are warnings then.
func reachSome(key string, servers []string, at []config.Place, reach func(ctx context.Context, i int) error) config.Problems {
	var failed config.Problems
	for i, server := range servers {
		ctx, cancel := context.WithTimeout(context.Background(), onlineTimeout)
		err := reach(ctx, i)
		cancel()
		if err != nil {
			failed = append(failed, config.Problem{
				File: at[i].File, Line: at[i].Line, Column: at[i].Column, Key: key, Severity: config.Warning, Message: config.WithoutQuery(server) + ": " + err.Error(),
			})
		}
	}
	if len(failed) == len(servers) {
		for i := range failed {
			failed[i].Severity = config.Error
		}
	}
	return failed
}
