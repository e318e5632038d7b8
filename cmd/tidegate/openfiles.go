package main

import (
	"log/slog"
	"math"
	"syscall"

	"tidegate/config"
)

const (
	// ownFiles is what the gateway opens beside the connections of clients: the log, uplinks, bridges, listeners.
	ownFiles = 256
	// fewestConns are let in however few files may be open.
	fewestConns = 16
)

// maxConns returns how many connections of clients leave enough files for everything else: a flood of them must not keep the
// log from its next segment, nor an uplink from the cloud. The soft limit was raised to the hard one when the process started,
// as Go does.
func maxConns() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Cur) > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(int(limit.Cur)-ownFiles, fewestConns)
}

// warnOfFewFiles says so when the process may not open as many files as there may be clients.
func warnOfFewFiles(c *config.Config, log *slog.Logger) {
	if n := maxConns(); n < c.Broker.MaxClients {
		log.Warn("this process may open too few files for max_clients; raise its hard limit (LimitNOFILE= in a unit, ulimit -Hn in a shell)",
			"max_clients", c.Broker.MaxClients, "possible", n)
	}
}
