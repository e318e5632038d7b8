package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"tidegate/config"
)

// How long each part may take to stop. What is longer than a service manager waits would not help.
const (
	edgePatience      = 10 * time.Second // acknowledgements leave, clients are told
	bridgesPatience   = 5 * time.Second  // what was taken becomes durable and is acknowledged, sessions are closed
	forwarderPatience = 8 * time.Second  // acknowledgements of the cloud come in, uplinks say goodbye
	adminPatience     = 3 * time.Second
	reloadPatience    = 10 * time.Second // the uplinks that are being replaced say goodbye
)

// cmdRun runs the gateway until SIGTERM or SIGINT.
func cmdRun(args []string, std stdio) int {
	fs := std.flagSet("run", "[--config FILE]")
	file := fs.String("config", "", "configuration `FILE`")
	if code, done := std.parse(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		return std.fail(exitUsage, "run: unexpected argument %q; name the file with --config", fs.Arg(0))
	}
	c, code, done := loadConfig(std, *file)
	if done {
		return code
	}
	return run(std, c, seams{})
}

// run builds a gateway from a valid configuration and runs it.
func run(std stdio, c *config.Config, s seams) int {
	log, level := newLogger(c.Log, std.err)
	ctx, hurry, hangUp, stop := signals(log)
	defer stop()
	for _, w := range c.Warnings {
		log.Warn("configuration", "problem", w.String())
	}
	warnOfFewFiles(c, log)
	g, err := build(ctx, c, log, s)
	if err != nil && ctx.Err() != nil {
		return exitOK // it was told to stop while it waited, and had taken nothing in
	}
	if err != nil {
		var start *startError
		if errors.As(err, &start) {
			return std.fail(start.code, "%v", err)
		}
		return std.fail(exitFailed, "%v", err)
	}
	g.level, g.reload.hangUp = level, hangUp
	if err := g.run(ctx, hurry); err != nil {
		return std.fail(exitFailed, "%v; the log above says more", err)
	}
	return exitOK
}

// signals returns a context that ends with the first SIGTERM or SIGINT, a channel that is closed by the second, and one that
// gets what SIGHUP asks for; several of them while nobody looks are one.
func signals(log *slog.Logger) (ctx context.Context, hurry, hangUp <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	faster, again := make(chan struct{}), make(chan struct{}, 1)
	caught := make(chan os.Signal, 4)
	done := make(chan struct{})
	signal.Notify(caught, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() { // ends with stop, which closes caught
		defer close(done)
		asked := 0
		for s := range caught {
			if s == syscall.SIGHUP {
				select {
				case again <- struct{}{}:
				default:
				}
				continue
			}
			switch asked++; asked {
			case 1:
				log.Info("stopping", "signal", s.String())
				cancel()
			case 2:
				log.Warn("stopping at once", "signal", s.String())
				close(faster)
			}
		}
	}()
	return ctx, faster, again, func() {
		signal.Stop(caught)
		close(caught)
		<-done
		cancel()
	}
}

// run starts every part, says so, and works until ctx ends. Whatever happens, the log is closed last.
func (g *gateway) run(ctx context.Context, hurry <-chan struct{}) error {
	parts := []part{{"socket", g.socket.Run, adminPatience}}
	if g.admin != nil {
		parts = append(parts, part{"admin", g.admin.Run, adminPatience})
	}
	parts = append(parts,
		part{"memory", keepSmall, adminPatience},
		part{"files", func(ctx context.Context) error {
			return watched{g.users, g.certificates(), g.broker.RejudgeUsers}.watch(ctx, g.log)
		}, adminPatience},
		part{"forwarder", func(ctx context.Context) error { return g.forwarder.Run(ctx, g.deliver) }, forwarderPatience},
		part{"edge", g.broker.Run, edgePatience},
	)
	if g.external.attached() {
		parts = append(parts, part{"broker", g.external.Run, bridgesPatience})
	}
	parts = append(parts,
		part{"bridges", g.runBridges, bridgesPatience},
		part{"reload", g.followReloads, reloadPatience}, // stops first: no change is half done when the others do
	)
	err := supervise(ctx, parts, g.ready, hurry, g.log)
	g.up.Store(false)
	if e := g.buffer.Close(); e != nil {
		err = errors.Join(err, fmt.Errorf("close the log: %w", e))
	}
	if err == nil {
		g.log.Info("stopped")
	}
	return err
}

// ready says on one line that every listener is up, and where.
func (g *gateway) ready() {
	g.up.Store(true)
	g.announce("online")
	g.log.Info("ready", g.bound()...)
	g.auditRules(g.config.Auth)
}

// bound are the addresses that are listened on, by their names.
func (g *gateway) bound() []any {
	var bound []any
	addrs := g.broker.Addrs()
	for _, name := range slices.Sorted(maps.Keys(addrs)) {
		bound = append(bound, "listener."+name, addrs[name].String())
	}
	bound = append(bound, g.bridgeAddrs()...)
	if g.admin != nil {
		bound = append(bound, "admin", g.admin.Addr().String())
	}
	return bound
}
