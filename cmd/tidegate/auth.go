package main

import (
	"flag"
	"fmt"

	"tidegate/access"
	"tidegate/config"
	"tidegate/edge"
)

// cmdAuth is `tidegate auth test USER publish|subscribe TOPIC`: it says whether the rules allow that and which one decides.
// It exits with 0 when allowed and 1 when denied.
func cmdAuth(args []string, std stdio) int {
	fs := std.flagSet("auth", "test USER publish|subscribe TOPIC [--client ID] [--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	client := fs.String("client", "", "client `ID`entifier, for {client} in rules (default: the user)")
	rest, code, done := std.parseAround(fs, args)
	if done {
		return code
	}
	if len(rest) != 4 || rest[0] != "test" {
		fs.Usage()
		return exitUsage
	}
	id := access.Identity{User: rest[1], Client: *client}
	if id.User == config.AnonymousUser {
		id.User = ""
	}
	if id.Client == "" {
		id.Client = rest[1]
	}
	action := access.Action(rest[2])
	if action != access.Publish && action != access.Subscribe {
		return std.fail(exitUsage, "%q is nothing a client does here: write publish or subscribe", rest[2])
	}
	c, problems := inspect(*file)
	printProblems(std.err, problems)
	if problems.Wrong() {
		return exitConfig
	}
	if note := loginNote(c, id.User); note != "" {
		fmt.Fprintln(std.err, "tidegate: note: "+note)
	}
	d := access.NewRules(c.Auth.Rules).Explain(id, action, rest[3])
	if err := edge.Bounded(action, rest[3]); d.Allowed && err != nil {
		d = access.Decision{Text: err.Error()}
	}
	verdict, code := "denied", exitFailed
	if d.Allowed {
		verdict, code = "allowed", exitOK
	}
	fmt.Fprintf(std.out, "%s: %s\n", verdict, d.Text)
	return code
}

// loginNote says when a client of that name could not even connect, which the rules do not know.
func loginNote(c *config.Config, user string) string {
	if user == "" {
		for _, l := range c.Listeners {
			if *l.Anonymous {
				return ""
			}
		}
		return "no listener admits anonymous clients"
	}
	for _, l := range c.Listeners {
		if l.ClientAuth == config.ClientAuthOptional || l.ClientAuth == config.ClientAuthRequire {
			return "" // a certificate can have any name
		}
	}
	users, err := config.LoadUsers(c.Auth.UsersFile)
	if c.Auth.UsersFile == "" || err != nil {
		return "there is no users file, so nobody can log in by a name"
	}
	for _, u := range users {
		if u.Name == user {
			return ""
		}
	}
	return fmt.Sprintf("%s has no user %s", c.Auth.UsersFile, user)
}

// parseAround is parse for commands whose flags may stand before, between or behind their arguments, which it returns.
func (s stdio) parseAround(fs *flag.FlagSet, args []string) (rest []string, code int, done bool) {
	for {
		if code, done = s.parse(fs, args); done {
			return nil, code, true
		}
		if args = fs.Args(); len(args) == 0 {
			return rest, exitOK, false
		}
		rest, args = append(rest, args[0]), args[1:]
	}
}
