package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"tidegate/admin"
	"tidegate/config"
)

// cmdStatus shows the running gateway.
func cmdStatus(args []string, std stdio) int {
	fs := std.flagSet("status", "[--json] [--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	asJSON := fs.Bool("json", false, "as one JSON object")
	if code, done := std.parse(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		return std.fail(exitUsage, "status: unexpected argument %q; name the file with --config", fs.Arg(0))
	}
	var s admin.Status
	if code, done := askGateway(std, "status", *file, http.MethodGet, pathStatus, &s); done {
		return code
	}
	if *asJSON {
		return std.printJSON(s)
	}
	printStatus(std.out, s)
	return exitOK
}

// askGateway asks the gateway that runs with a configuration file and reads its answer into v. The file may be wrong by now: the
// gateway runs with what it was before. With done the command ends with code.
func askGateway(std stdio, command, flag, method, path string, v any) (code int, done bool) {
	c, problems := inspect(flag)
	// Where the file could not be read as far as data_dir, the default would find another gateway.
	if c == nil || problems.Wrong() && c.Gateway.DataDir == config.Default().Gateway.DataDir {
		printProblems(std.err, problems)
		return std.fail(exitConfig, "%s: the configuration is wrong; correct it and look again with tidegate check", command), true
	}
	err := dialGateway(c).call(method, path, nil, v)
	switch {
	case err == nil:
		return exitOK, false
	case problems.Wrong():
		printProblems(std.err, problems)
		return std.fail(exitConfig, "%s: the configuration is wrong, and no gateway is found by it; correct it and look again with tidegate check", command), true
	}
	return gatewayFailed(std, command, c, err), true
}

// gatewayFailed reports why the running gateway could not be asked.
func gatewayFailed(std stdio, command string, c *config.Config, err error) int {
	if errors.Is(err, admin.ErrNoGateway) {
		return std.fail(exitUnavailable, "%s: no gateway runs on %s; start one with tidegate run, or name its file with --config",
			command, c.Gateway.DataDir)
	}
	return std.fail(exitFailed, "%s: %v", command, err)
}

// printStatus writes s for people.
func printStatus(w io.Writer, s admin.Status) {
	state := "ready"
	if !s.Ready {
		state = "NOT READY: " + s.LastError
	}
	fmt.Fprintf(w, "%s: %s, up %v, version %s\n", s.Gateway, state, time.Duration(s.UptimeS)*time.Second, s.Version)
	fmt.Fprintf(w, "%d clients connected, %d sessions\n", s.Clients, s.Sessions)
	fmt.Fprintf(w, "buffer: %s on disk", sizeText(s.Buffer.DiskBytes))
	if s.Buffer.NoSpace {
		fmt.Fprint(w, ", NO SPACE LEFT: old records are evicted or new ones refused")
	}
	if s.Buffer.WrittenPerByte > 0 {
		fmt.Fprintf(w, ", %.1f bytes written per byte of the records", s.Buffer.WrittenPerByte)
	}
	if s.Buffer.Damaged > 0 {
		fmt.Fprintf(w, ", %d records lost to damage", s.Buffer.Damaged)
	}
	fmt.Fprintln(w)
	for _, text := range s.Warnings {
		fmt.Fprintf(w, "warning: %s\n", text)
	}
	if r := s.Reload; r != nil {
		fmt.Fprintf(w, "last reload: %s, %s by %s", r.At.Local().Format(time.DateTime), r.Result, r.By)
		if r.Error != "" {
			fmt.Fprintf(w, ": %s; the earlier configuration is in force", r.Error)
		}
		if len(r.NeedsRestart) > 0 {
			fmt.Fprintf(w, "; needs a restart: %s", strings.Join(r.NeedsRestart, " "))
		}
		fmt.Fprintln(w)
	}
	printUplinks(w, s.Uplinks)
	printBridges(w, s.Bridges)
}

func printUplinks(w io.Writer, uplinks []admin.UplinkStatus) {
	if len(uplinks) == 0 {
		fmt.Fprintln(w, "no uplinks")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nUPLINK\tSTATE\tSERVER\tIN FLIGHT\tRECORDS\tBYTES\tOLDEST\tDELIVERED\tEVICTED\tDEAD")
	for _, u := range uplinks {
		state := "connected"
		if !u.Connected {
			state = "offline"
		}
		flight := fmt.Sprint(u.InFlight)
		if u.Window > 0 {
			flight += fmt.Sprintf(" of %d", u.Window)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%v\t%d\t%d\t%d\n", u.Name, state, u.Server, flight, u.Records,
			sizeText(u.Bytes), ageText(u.OldestS), u.Delivered, u.Evicted, u.Dead)
	}
	_ = t.Flush()
	for _, u := range uplinks {
		if u.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", u.Name, u.Note)
		}
		if u.WindowFull() {
			fmt.Fprintf(w, "%s: %s\n", u.Name, windowText(u))
		}
		if u.LastError != "" {
			fmt.Fprintf(w, "%s: last error: %s\n", u.Name, u.LastError)
		}
	}
}

// windowText says that the window is the limit, and who sets it.
func windowText(u admin.UplinkStatus) string {
	if u.Granted > 0 && u.Granted <= u.Window {
		return fmt.Sprintf("the window is full: the cloud broker grants %d messages in flight (Receive Maximum), so no more than that leave "+
			"in one round trip; let it grant more", u.Window)
	}
	return fmt.Sprintf("the window is full: %d messages in flight, so no more than that leave in one round trip; "+
		"raise max_in_flight of this uplink if the line is long", u.Window)
}

func printBridges(w io.Writer, bridges []admin.BridgeStatus) {
	if len(bridges) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nBRIDGE\tSTATE\tLAST ERROR")
	for _, b := range bridges {
		state := "up"
		if !b.Up {
			state = "DOWN"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", b.Name, state, b.LastError)
	}
	_ = t.Flush()
}

func ageText(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

// sizeText writes a number of bytes with three digits at most before the unit.
func sizeText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1000 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}
