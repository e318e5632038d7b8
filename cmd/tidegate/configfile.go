package main

import (
	"slices"
	"strings"

	"tidegate/config"
)

// loadConfig finds and loads the configuration for a command. With done, what is wrong was printed and the command ends
// with code.
func loadConfig(std stdio, flag string) (c *config.Config, code int, done bool) {
	c, problems := inspect(flag)
	if problems.Wrong() {
		return nil, wrongConfig(std, problems), true
	}
	return c, exitOK, false
}

// loadStored is loadConfig for commands that look at what is stored: what is wrong with who may come in, such as a certificate
// that is just being replaced, does not matter to them.
func loadStored(std stdio, flag string) (c *config.Config, code int, done bool) {
	c, problems := inspect(flag)
	mattering := slices.DeleteFunc(slices.Clone(problems), func(p config.Problem) bool {
		section, _, _ := strings.Cut(p.Key, ".")
		return section == "listener" || section == "auth" || section == "admin"
	})
	if mattering.Wrong() {
		return nil, wrongConfig(std, problems), true
	}
	return c, exitOK, false
}

// wrongConfig says what is wrong and returns the exit code for that.
func wrongConfig(std stdio, problems config.Problems) int {
	printProblems(std.err, problems)
	return std.fail(exitConfig, "the configuration is wrong; correct it and look again with tidegate check")
}
