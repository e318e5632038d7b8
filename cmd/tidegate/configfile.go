package main

import "tidegate/config"

// loadConfig finds and loads the configuration for a command. With done, what is wrong was printed and the command ends
// with code.
func loadConfig(std stdio, flag string) (c *config.Config, code int, done bool) {
	c, problems := inspect(flag)
	if problems.Wrong() {
		return nil, wrongConfig(std, problems), true
	}
	return c, exitOK, false
}

// wrongConfig says what is wrong and returns the exit code for that.
func wrongConfig(std stdio, problems config.Problems) int {
	printProblems(std.err, problems)
	return std.fail(exitConfig, "the configuration is wrong; correct it and look again with tidegate check")
}
