package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"tidegate/admin"
	"tidegate/buffer"
	"tidegate/config"
	"tidegate/forwarder"
)

// bufferCommand is one word behind `tidegate buffer`.
type bufferCommand struct {
	name, synopsis string
	run            func(args []string, std stdio, synopsis string) int
}

func bufferCommands() []bufferCommand {
	return []bufferCommand{
		{"ls", "[--json] [--config FILE]", bufferList},
		{"verify", "[--json] [--config FILE]", bufferVerify},
		{"export", "[--uplink NAME] [--lane LANE] [--config FILE]", bufferExport},
		{"purge", "--yes [--uplink NAME] [--lane LANE] | --yes --sessions [--config FILE]", bufferPurge},
		{"dead", "ls [--uplink NAME] | resend [--uplink NAME] [--id ID] [--seq SEQ] | discard --yes [--uplink NAME] [--id ID] [--seq SEQ] [--config FILE]", bufferDead},
	}
}

// cmdBuffer looks at the stored backlog and changes it, beside a running gateway or on the files of a stopped one.
func cmdBuffer(args []string, std stdio) int {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	for _, c := range bufferCommands() {
		if c.name == word {
			return c.run(args[1:], std, c.synopsis)
		}
	}
	var synopses []string
	for _, c := range bufferCommands() {
		synopses = append(synopses, c.name+" "+c.synopsis)
	}
	return std.otherWord("buffer", word, synopses)
}

// bufferFlags are the flags of one of them.
type bufferFlags struct {
	file   string
	asJSON bool
	yes    bool
	sel    selection
}

// parseBuffer reads the flags that synopsis names and loads the configuration.
func parseBuffer(std stdio, name, synopsis string, args []string, has ...string) (f bufferFlags, c *config.Config, code int, done bool) {
	fs := std.flagSet("buffer "+name, synopsis)
	fs.StringVar(&f.file, "config", "", "configuration `FILE`")
	for _, h := range has {
		switch h {
		case "json":
			fs.BoolVar(&f.asJSON, h, false, "as JSON")
		case "yes":
			fs.BoolVar(&f.yes, h, false, "really do it")
		case "uplink":
			fs.StringVar(&f.sel.uplink, h, "", "only this uplink's; `NAME` may be of an earlier configuration")
		case "lane":
			fs.StringVar(&f.sel.lane, h, "", "only this `LANE`: normal or urgent")
		case "sessions":
			fs.BoolVar(&f.sel.sessions, h, false, "what is stored of MQTT sessions and retained messages, instead of the uplinks' records; on a stopped gateway")
		case "id":
			fs.StringVar(&f.sel.letters.ID, h, "", "only the one of the message `ID`, its tg-id")
		case "seq":
			fs.StringVar(&f.sel.letters.Seq, h, "", "only the one with the sequence `SEQ`, as buffer dead ls shows it")
		}
	}
	if code, done := std.parse(fs, args); done {
		return f, nil, code, true
	}
	if fs.NArg() > 0 {
		return f, nil, std.fail(exitUsage, "buffer %s: unexpected argument %q", name, fs.Arg(0)), true
	}
	if l := f.sel.lane; l != "" && l != "normal" && l != "urgent" {
		return f, nil, std.fail(exitUsage, "buffer %s: --lane %s: want normal or urgent", name, l), true
	}
	c, code, done = loadStored(std, f.file)
	return f, c, code, done
}

// backlogOf asks the running gateway with ask or, when none runs, opens the stopped one's log and calls look.
func backlogOf(c *config.Config, write bool, ask func(remote) error, look func(*buffer.Log) error) error {
	err := ask(dialGateway(c))
	if !errors.Is(err, admin.ErrNoGateway) {
		return err
	}
	dir := logDir(c)
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	open, o := buffer.OpenReadOnly, buffer.Options{Keys: keysOf(c)}
	if write {
		// Who gives up what is stored may have lost its key.
		open, o.Keys = buffer.Open, spareKeys(o.Keys)
	}
	l, err := open(dir, o)
	if err != nil {
		return err
	}
	return errors.Join(look(l), l.Close())
}

// spareKeys gives the same keys and lets the log open where they do not suffice.
func spareKeys(keys func(string) ([]buffer.Key, bool)) func(string) ([]buffer.Key, bool) {
	return func(queue string) ([]buffer.Key, bool) {
		k, _ := keys(queue)
		return k, false
	}
}

// backlogFailed reports why the backlog could not be looked at.
func backlogFailed(std stdio, name string, c *config.Config, err error) int {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return std.fail(exitUnavailable, "buffer %s: there is no buffer in %s; name the gateway's file with --config, or start it once",
			name, c.Gateway.DataDir)
	case errors.Is(err, buffer.ErrLocked):
		return std.fail(exitUnavailable, "buffer %s: a gateway is starting, stopping or stuck on %s and does not answer; try again",
			name, c.Gateway.DataDir)
	}
	if missing := (*buffer.KeyError)(nil); errors.As(err, &missing) {
		return std.fail(exitConfig, "buffer %s: %v; give the key as a further line of encryption_key of that uplink", name, err)
	}
	return std.fail(exitFailed, "buffer %s: %v", name, err)
}

func bufferList(args []string, std stdio, synopsis string) int {
	f, c, code, done := parseBuffer(std, "ls", synopsis, args, "json")
	if done {
		return code
	}
	var rows []queueRow
	err := backlogOf(c, false,
		func(r remote) error { return r.call(http.MethodGet, pathList, nil, &rows) },
		func(l *buffer.Log) error { rows = listQueues(l, c.Uplinks); return nil })
	if err != nil {
		return backlogFailed(std, "ls", c, err)
	}
	if f.asJSON {
		return std.printJSON(rows)
	}
	printQueues(std.out, rows)
	return exitOK
}

func printQueues(w io.Writer, rows []queueRow) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPLINK\tLANE\tRECORDS\tBYTES\tFIRST\tLAST\tOLDEST\tNEWEST\tSEGMENTS\tDAMAGED")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%d\t%s\t%s\t%d\t%d\n", r.Uplink, r.Lane, r.Records, sizeText(r.Bytes), r.FirstSeq, r.LastSeq,
			timeText(r.Oldest), timeText(r.Newest), r.Segments, r.Damaged)
	}
	_ = t.Flush()
	for _, r := range rows {
		for _, key := range slices.Sorted(maps.Keys(r.Keys)) {
			fmt.Fprintf(w, "%s %s: %d of %d records are encrypted with key %s\n", r.Uplink, r.Lane, r.Keys[key], r.Records, key)
		}
		for _, key := range slices.Sorted(maps.Keys(r.DeadKeys)) {
			fmt.Fprintf(w, "%s: %d dead letters are encrypted with key %s\n", r.Uplink, r.DeadKeys[key], key)
		}
		for _, key := range slices.Sorted(maps.Keys(r.CommandKeys)) {
			fmt.Fprintf(w, "%s: %d identities of commands are encrypted with key %s\n", r.Uplink, r.CommandKeys[key], key)
		}
	}
}

func timeText(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

func bufferVerify(args []string, std stdio, synopsis string) int {
	f, c, code, done := parseBuffer(std, "verify", synopsis, args, "json")
	if done {
		return code
	}
	var v verifyReport
	err := backlogOf(c, false,
		func(r remote) error { return r.call(http.MethodGet, pathVerify, nil, &v) },
		func(l *buffer.Log) (err error) { v, err = verifyLog(l); return err })
	if err != nil {
		return backlogFailed(std, "verify", c, err)
	}
	if f.asJSON {
		if code := std.printJSON(v); code != exitOK {
			return code
		}
	} else {
		fmt.Fprintf(std.out, "%d segments, %d frames, %d records, %s\n", v.Segments, v.Frames, v.Records, sizeText(v.Bytes))
		if v.Locked > 0 {
			fmt.Fprintf(std.out, "%d records are encrypted with a key that is not configured: only their checksums were checked\n", v.Locked)
		}
		for _, d := range v.Damage {
			fmt.Fprintln(std.out, d)
		}
	}
	if n := len(v.Damage); n > 0 {
		return std.fail(exitFailed, "buffer verify: %d damaged regions; every other record is readable, and the gateway goes on beside them", n)
	}
	return exitOK
}

// String is a damaged region for people.
func (d damageRow) String() string {
	switch {
	case d.Queue != "" && d.Segment == "":
		return fmt.Sprintf("damaged: %d records of %s: %s", d.Records, d.Queue, d.Error)
	case d.Records > 0:
		return fmt.Sprintf("damaged: %s at byte %d, %d bytes, %d records: %s", d.Segment, d.Offset, d.Bytes, d.Records, d.Error)
	}
	return fmt.Sprintf("damaged: %s at byte %d, %d bytes: %s", d.Segment, d.Offset, d.Bytes, d.Error)
}

func bufferExport(args []string, std stdio, synopsis string) int {
	f, c, code, done := parseBuffer(std, "export", synopsis, args, "uplink", "lane")
	if done {
		return code
	}
	return export(std, "export", c, f.sel)
}

func export(std stdio, name string, c *config.Config, s selection) int {
	err := backlogOf(c, false,
		func(r remote) error { return r.call(http.MethodGet, pathExport, s.values(), std.out) },
		func(l *buffer.Log) error {
			w := bufio.NewWriter(std.out)
			return errors.Join(exportRecords(l, s, w), w.Flush())
		})
	if err != nil {
		return backlogFailed(std, name, c, err)
	}
	return exitOK
}

func bufferPurge(args []string, std stdio, synopsis string) int {
	f, c, code, done := parseBuffer(std, "purge", synopsis, args, "yes", "uplink", "lane", "sessions")
	if done {
		return code
	}
	if f.sel.sessions && (f.sel.uplink != "" || f.sel.lane != "") {
		return std.fail(exitUsage, "buffer purge: --sessions is not for one uplink or lane; leave --uplink and --lane out")
	}
	if !f.yes {
		return std.fail(exitUsage, "buffer purge: this gives up records for good; say --yes, and look first with tidegate buffer ls")
	}
	var rows []purgedRow
	err := backlogOf(c, true,
		func(r remote) error {
			if f.sel.sessions {
				var running []queueRow
				if err := r.call(http.MethodGet, pathList, nil, &running); err != nil {
					return err
				}
				return errors.New("the gateway is running and knows its sessions; stop it first")
			}
			return r.call(http.MethodPost, pathPurge, f.sel.values(), &rows)
		},
		func(l *buffer.Log) (err error) {
			rows, err = purgeQueues(l, f.sel, func(q *buffer.Queue) (uint64, error) { return forwarder.Purge(context.Background(), l, q) })
			return errors.Join(err, purgeLocked(std.out, l, f.sel))
		})
	for _, r := range rows { // also where another failed
		fmt.Fprintf(std.out, "%s %s: %d records purged\n", r.Uplink, r.Lane, r.Records)
	}
	if err != nil {
		return backlogFailed(std, "purge", c, err)
	}
	return exitOK
}
