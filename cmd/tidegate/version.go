package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set when a release is built: go build -ldflags "-X main.version=1.2.3".
var version string

// buildVersion returns the version of this build: the release's, else the module's, else "dev" with the revision it was
// built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}

// cmdVersion prints what this binary is.
func cmdVersion(args []string, std stdio) int {
	fs := std.flagSet("version", "[--json]")
	asJSON := fs.Bool("json", false, "as one JSON object")
	if code, done := std.parse(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		return std.fail(exitUsage, "version: unexpected argument %q", fs.Arg(0))
	}
	if *asJSON {
		return std.printJSON(struct {
			Version string `json:"version"`
			Go      string `json:"go"`
			OS      string `json:"os"`
			Arch    string `json:"arch"`
		}{buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH})
	}
	fmt.Fprintf(std.out, "tidegate %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}

// printJSON writes v as one line.
func (s stdio) printJSON(v any) int {
	e := json.NewEncoder(s.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return s.fail(exitFailed, "write the output: %v", err)
	}
	return exitOK
}
