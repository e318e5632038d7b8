package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"tidegate/access"
	"tidegate/config"
)

// cmdPasswd is `tidegate passwd USER`: it adds a user to the users_file of the configuration, or changes the password. The
// password comes from the terminal, typed twice without being shown, or else from the first line of standard input.
func cmdPasswd(args []string, std stdio) int {
	fs := std.flagSet("passwd", "USER [--scram] [--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	scram := fs.Bool("scram", false, "prepare the password for SCRAM-SHA-256 too, by which a device proves it without sending it")
	rest, code, done := std.parseAround(fs, args)
	if done {
		return code
	}
	if len(rest) != 1 {
		return std.fail(exitUsage, "passwd takes one user name; the password comes from the terminal or standard input")
	}
	user := rest[0]
	if err := config.ValidUser(user); err != nil {
		return std.fail(exitUsage, "%v", err)
	}
	path, code, ok := usersFile(*file, std)
	if !ok {
		return code
	}
	password, err := readPassword(user, std)
	if err != nil {
		return std.fail(exitFailed, "read the password: %v", err)
	}
	var also []access.Method
	if *scram {
		also = append(also, access.SCRAM)
	}
	unlock, err := lockBeside(path)
	if err != nil {
		return std.fail(exitFailed, "write the users file: %v", err)
	}
	defer unlock()
	added, err := access.SetPassword(path, user, password, also...)
	if err != nil {
		return std.fail(exitFailed, "%v", err)
	}
	verb := "changed the password of"
	if added {
		verb = "added"
	}
	fmt.Fprintf(std.out, "%s %s in %s\n", verb, user, path)
	return exitOK
}

// usersFile returns the file that the configuration names. Other problems of the configuration do not matter here; that the
// file does not exist yet is what passwd is for.
func usersFile(flag string, std stdio) (path string, code int, ok bool) {
	c, problems := inspect(flag)
	if c != nil && c.Auth.UsersFile != "" {
		return c.Auth.UsersFile, exitOK, true
	}
	if problems.Wrong() {
		printProblems(std.err, problems)
	}
	where := configName(c)
	if c == nil || c.File == "" {
		where = "the configuration"
	}
	return "", std.fail(exitConfig, `%s names no users file; write users_file = "users.toml" below [auth] (tidegate init makes a configuration)`, where), false
}

// readPassword asks at the terminal, or takes the first line of what is not one.
func readPassword(user string, std stdio) ([]byte, error) {
	f, isFile := std.in.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(io.LimitReader(std.in, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return []byte(strings.TrimRight(line, "\r\n")), nil
	}
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(std.err, prompt)
		defer fmt.Fprintln(std.err)
		return term.ReadPassword(int(f.Fd()))
	}
	first, err := ask("password for " + user + ": ")
	if err != nil {
		return nil, err
	}
	second, err := ask("again: ")
	if err != nil {
		return nil, err
	}
	if string(first) != string(second) {
		return nil, errors.New("the two differ, nothing was changed")
	}
	return first, nil
}
