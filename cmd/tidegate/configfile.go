package main

import "tidegate/config"

// loadConfig finds and loads the configuration for a command. With done, what is wrong was printed and the command ends
// with code.
func loadConfig(std stdio, flag string) (c *config.Config, code int, done bool) {
	c, problems := inspect(flag)
	if problems.Wrong() {
		printProblems(std.err, problems)
		return nil, std.fail(exitConfig, "the configuration is wrong; correct it and look again with tidegate check"), true
	}
	return c, exitOK, false
}
