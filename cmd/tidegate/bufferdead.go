package main

import (
	"fmt"
	"net/http"
	"strings"

	"tidegate/buffer"
	"tidegate/forwarder"
)

// bufferDead lists the dead letters, with the reason of each, sends them again or gives them up.
func bufferDead(args []string, std stdio, synopsis string) int {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	switch word {
	case "ls":
		return deadList(args[1:], std)
	case "resend":
		return deadResend(args[1:], std)
	case "discard":
		return deadDiscard(args[1:], std)
	}
	return std.otherWord("buffer dead", word, strings.Split(synopsis, " | "))
}

func deadList(args []string, std stdio) int {
	f, c, code, done := parseBuffer(std, "dead ls", "[--uplink NAME] [--config FILE]", args, "uplink")
	if done {
		return code
	}
	f.sel.dead = true
	return export(std, "dead ls", c, f.sel)
}

// deadResend appends dead letters to the queues they came from.
func deadResend(args []string, std stdio) int {
	f, c, code, done := parseBuffer(std, "dead resend", "[--uplink NAME] [--id ID] [--seq SEQ] [--config FILE]", args, "uplink", "id", "seq")
	if done {
		return code
	}
	f.sel.dead = true
	var rows []deadRow
	err := backlogOf(c, true,
		func(r remote) error { return r.call(http.MethodPost, pathResend, f.sel.values(), &rows) },
		func(l *buffer.Log) (err error) {
			ctx, stop := interruptible()
			defer stop()
			rows, err = eachDead(l, f.sel, func(uplink string, _ *buffer.Queue) (forwarder.DeadResult, error) {
				return forwarder.ResendDead(ctx, l, c, uplink, f.sel.letters)
			})
			return err
		})
	code = printDead(std, rows, "resent")
	if err != nil {
		return backlogFailed(std, "dead resend", c, err)
	}
	return code
}

// deadDiscard gives dead letters up.
func deadDiscard(args []string, std stdio) int {
	f, c, code, done := parseBuffer(std, "dead discard", "--yes [--uplink NAME] [--id ID] [--seq SEQ] [--config FILE]", args, "yes", "uplink", "id", "seq")
	if done {
		return code
	}
	if !f.yes {
		return std.fail(exitUsage, "buffer dead discard: this gives dead letters up for good; say --yes, and look first with tidegate buffer dead ls")
	}
	f.sel.dead = true
	var rows []deadRow
	err := backlogOf(c, true,
		func(r remote) error { return r.call(http.MethodPost, pathDiscard, f.sel.values(), &rows) },
		func(l *buffer.Log) (err error) {
			rows, err = eachDead(l, f.sel, func(_ string, q *buffer.Queue) (forwarder.DeadResult, error) {
				return forwarder.DiscardDead(q, f.sel.letters)
			})
			return err
		})
	code = printDead(std, rows, "discarded")
	if err != nil {
		return backlogFailed(std, "dead discard", c, err)
	}
	return code
}

// printDead says what was done; what had to stay makes it a failure.
func printDead(std stdio, rows []deadRow, what string) int {
	code := exitOK
	for _, r := range rows {
		fmt.Fprintf(std.out, "%s: %d dead letters %s\n", r.Uplink, r.Letters, what)
		if r.Kept > 0 {
			code = std.fail(exitFailed, "%s: %d dead letters cannot be sent and stay: %s; tidegate buffer dead discard --yes gives them up", r.Uplink, r.Kept, r.Why)
		}
	}
	return code
}
