package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"tidegate/config"
)

// cmdInit is `tidegate init [FILE]`: it writes a commented configuration that runs as it stands. It never replaces a file.
func cmdInit(args []string, std stdio) int {
	flags := std.flagSet("init", "[FILE]     (default ./tidegate.toml)")
	rest, code, done := std.parseAround(flags, args)
	if done {
		return code
	}
	path := "tidegate.toml"
	switch len(rest) {
	case 0:
	case 1:
		path = rest[0]
	default:
		return std.fail(exitUsage, "init takes one file, not %d", len(rest))
	}
	err := writeNew(path, config.Sample())
	switch {
	case errors.Is(err, fs.ErrExist):
		return std.fail(exitFailed, "%s is already there and was left alone; name another file, or remove it first", path)
	case err != nil:
		return std.fail(exitFailed, "write a configuration: %v", err)
	}
	fmt.Fprintf(std.out, "wrote %s; next: edit it, then `tidegate check --config %s` and `tidegate run --config %s`\n", path, path, path)
	return exitOK
}

// writeNew writes a file that must not be there yet, and leaves none behind when that fails.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
