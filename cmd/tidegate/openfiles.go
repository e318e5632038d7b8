package main

import (
	"log/slog"
	"syscall"

	"tidegate/config"
)

// ownFiles is what the gateway opens beside the connections of clients: the log, uplinks, listeners.
const ownFiles = 256

// warnOfFewFiles says so when the process may not open as many files as there may be clients. The soft limit was raised to the
// hard one when the process started, as Go does.
func warnOfFewFiles(c *config.Config, log *slog.Logger) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	if need := uint64(c.Broker.MaxClients) + ownFiles; uint64(limit.Cur) < need {
		log.Warn("this process may open too few files for max_clients; raise its hard limit (LimitNOFILE= in a unit, ulimit -Hn in a shell)",
			"limit", limit.Cur, "max_clients", c.Broker.MaxClients, "needed", need)
	}
}
