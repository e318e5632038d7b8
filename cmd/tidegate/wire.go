package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/admin"
	"tidegate/admin/metrics"
	"tidegate/buffer"
	"tidegate/config"
	"tidegate/edge"
	"tidegate/edge/session"
	"tidegate/forwarder"
	"tidegate/message"
)

// gateway is everything a running gateway is made of. build makes it, run (run.go) runs it, close frees what build bound.
type gateway struct {
	// config is the one it was started with. What a reload can change is in current.
	config    *config.Config
	current   atomic.Pointer[config.Config]
	reg       *prometheus.Registry
	log       *slog.Logger
	level     *slog.LevelVar // of log
	started   time.Time
	users     *access.Checker
	buffer    *buffer.Log
	forwarder *forwarder.Forwarder
	sessions  *session.Store
	broker    *edge.Broker
	uplinks   uplinks
	bridges   spans
	external  home          // the broker of the user's own
	admin     *admin.Server // nil: off
	socket    *admin.Socket
	// up says that every listener accepts.
	up     atomic.Bool
	keys   keyrings
	reload reloading
}

// logDir is the folder of the log in the data folder.
func logDir(c *config.Config) string { return filepath.Join(c.Gateway.DataDir, "log") }

// startError is an error of starting with the exit code it means and what to do about it.
type startError struct {
	code   int
	advice string
	err    error
}

func (e *startError) Error() string { return e.err.Error() + "; " + e.advice }
func (e *startError) Unwrap() error { return e.err }

// seams are what a test puts in place of the machine.
type seams struct {
	fs       buffer.FS     // nil: the operating system's
	patience time.Duration // with a lock or address that is taken; 0: handoverPatience
}

// build makes every part and binds every address; it starts nothing but the log's committer. What it bound is freed again
// on an error. When ctx ends it waits for nobody any longer.
func build(ctx context.Context, c *config.Config, log *slog.Logger, s seams) (_ *gateway, err error) {
	g := &gateway{config: c, log: log, started: time.Now(), reg: metrics.NewRegistry()}
	g.current.Store(c)
	g.reload.metrics = newReloadMetrics(g.reg)
	if s.patience == 0 {
		s.patience = handoverPatience
	}
	defer func() {
		if err != nil {
			_ = g.close()
		}
	}()
	if g.users, err = access.New(c.Auth); err != nil {
		return nil, &startError{exitConfig, "correct the users file, or write it with tidegate passwd", err}
	}
	if err := g.openBuffer(ctx, g.reg, s); err != nil {
		return nil, err
	}
	if err := g.wireForwarder(); err != nil {
		return nil, err
	}
	if err := g.openBroker(ctx, g.reg, s); err != nil {
		return nil, &startError{exitFailed, "choose another address in [listener], or stop what uses it", err}
	}
	if err := g.openHome(ctx, s); err != nil {
		return nil, err
	}
	if err := g.openBridges(ctx, s); err != nil {
		return nil, err
	}
	g.reg.MustRegister(bridgeMetrics{g.everyBridge})
	return g, g.openAdmin(ctx, s)
}

// auditRules writes which rules decide from now on, so that a change of them can be found in the log.
func (g *gateway) auditRules(c config.Auth) {
	h := sha256.New()
	for _, r := range c.Rules {
		fmt.Fprintf(h, "%q %q %q %q %q\n", r.User, r.Publish, r.Subscribe, r.DenyPublish, r.DenySubscribe)
	}
	g.log.Info("access rules in use", "audit", true, "rules", len(c.Rules), "digest", hex.EncodeToString(h.Sum(nil))[:12],
		"users_file", c.UsersFile)
}

// openBroker makes the broker and binds its listeners. Each try registers its metrics in a registry of its own, of which
// only the last one is shown.
func (g *gateway) openBroker(ctx context.Context, reg *prometheus.Registry, s seams) error {
	var own *prometheus.Registry
	var err error
	if g.sessions, err = session.OpenStore(g.buffer, int64(g.config.Broker.SessionStore), g.log.With("part", "edge")); err != nil {
		return err
	}
	ingest := func(m message.Message, with session.Riders) (message.Ticket, error) {
		return g.forwarder.IngestWith(m, forwarder.Riders(with))
	}
	err = handOver(ctx, s.patience, g.log, "the addresses of the listeners", func() (err error) {
		own = prometheus.NewRegistry()
		g.broker, err = edge.New(edge.Options{
			Listeners: g.config.Listeners, Broker: g.config.Broker, Ingest: g.forwarder.Ingest, ACL: g.users,
			HideReasons: g.config.Auth.HideReasons, OwnIdentifiers: g.config.Auth.ClientID == config.ClientIDUser, MaxConns: maxConns(),
			IngestWith: ingest, Store: g.sessions, Log: g.log.With("part", "edge"), Metrics: own,
		})
		return err
	})
	if err != nil {
		return err
	}
	return reg.Register(own)
}

// openBuffer opens the log, and with it takes the data folder's lock.
func (g *gateway) openBuffer(ctx context.Context, reg prometheus.Registerer, s seams) error {
	watch := metrics.NewBuffer(reg)
	g.keys.open(g.config)
	dir := g.config.Gateway.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &startError{exitFailed, "make the folder, or name another as data_dir in [gateway]", fmt.Errorf("make the data folder: %w", err)}
	}
	err := handOver(ctx, s.patience, g.log, "the data folder", func() (err error) {
		g.buffer, err = buffer.Open(logDir(g.config), buffer.Options{
			SegmentBytes: segmentBytes(g.config), Bounds: forwarder.Bounds(g.config) + int64(g.config.Broker.SessionStore),
			Sync: strictestSync(g.config.Uplinks), Keys: g.keys.of, Compress: compresses(g.config.Uplinks), OnSync: watch.OnSync, FS: s.fs, Logger: g.log.With("part", "buffer"),
		})
		return err
	})
	switch {
	case errors.Is(err, buffer.ErrLocked):
		return &startError{exitFailed, "stop the other one, or give this one a data_dir of its own", fmt.Errorf("another gateway runs on %s: %w", dir, err)}
	case errors.As(err, new(*buffer.KeyError)):
		return &startError{exitConfig, "give that key back as a further line of encryption_key in [uplink.NAME.buffer], or in [broker] for session/…: nothing was changed on disk; " +
			"or give the records up with tidegate buffer purge --yes --uplink NAME, and dead letters (dead/NAME) with tidegate buffer dead discard --yes --uplink NAME, and sessions (session/…) with tidegate buffer purge --yes --sessions", err}
	case err != nil:
		return &startError{exitFailed, "check the disk and who may write to the folder", err}
	}
	watch.Watch(g.buffer)
	return nil
}

// segmentBytes is the size of the log's files: a thirty-second of what the uplinks may take, so that these keep to their bounds
// within one file, whatever sessions are allowed. Without uplinks sessions decide, and a little is enough.
func segmentBytes(c *config.Config) int64 {
	const least, most, local = 256 << 10, 16 << 20, 1 << 20
	if len(c.Uplinks) == 0 {
		return min(max(int64(c.Broker.SessionStore)/32, least), local)
	}
	var all int64
	for _, u := range c.Uplinks {
		all += int64(u.Buffer.MaxBytes)
	}
	return min(max(all/32, least), most)
}

// compresses says whether records are compressed: no uplink forbids it for the one log of all.
func compresses(uplinks map[string]config.Uplink) bool {
	for _, u := range uplinks {
		if u.Buffer.Compress == "off" {
			return false
		}
	}
	return true
}

// keysOf gives the keys of the queues of uplinks and sessions; those of uplinks that are not configured are nobody's.
func keysOf(c *config.Config) func(queue string) ([]buffer.Key, bool) {
	rings := make(map[string][]buffer.Key, len(c.Uplinks))
	for name, u := range c.Uplinks {
		secrets, _ := u.Buffer.Keys() // check has looked at them
		rings[name] = ringOf(secrets)
	}
	secrets, _ := c.Broker.Keys()
	sessions := ringOf(secrets)
	return func(queue string) ([]buffer.Key, bool) {
		if slices.Contains(session.Queues(), queue) {
			return sessions, true
		}
		uplink, _, _ := metrics.SplitQueue(queue)
		keys, ok := rings[uplink]
		return keys, ok
	}
}

// ringOf makes the keys of their secrets.
func ringOf(secrets [][]byte) (keys []buffer.Key) {
	for _, s := range secrets {
		if len(s) == 0 {
			keys = append(keys, buffer.Key{}) // new records stay plain
		} else if k, err := buffer.NewKey(s); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// strictestSync returns what holds for the one log of all uplinks: the shortest time at risk that any of them allows, and
// none at all (0) when one of them says "always".
func strictestSync(uplinks map[string]config.Uplink) time.Duration {
	var strictest time.Duration
	first := true
	for _, u := range uplinks {
		if d := time.Duration(u.Buffer.Sync); first || d < strictest {
			strictest, first = d, false
		}
	}
	return strictest
}

// wireForwarder makes the uplinks and the forwarder in front of them.
func (g *gateway) wireForwarder() error {
	const advice = "correct it, and look again with tidegate check"
	clients, ports, err := g.newUplinks(g.config, slices.Sorted(maps.Keys(g.config.Uplinks)))
	if err != nil {
		return &startError{exitConfig, advice, err}
	}
	g.uplinks.set(clients, g.config.Uplinks)
	if g.forwarder, err = forwarder.New(g.config, g.buffer, ports, g.log, g.reg); err != nil {
		return &startError{exitConfig, advice, err}
	}
	return nil
}

// openAdmin binds the [admin] address and the socket in the data folder.
func (g *gateway) openAdmin(ctx context.Context, s seams) (err error) {
	log := g.log.With("part", "admin")
	if g.config.Admin != nil {
		err = handOver(ctx, s.patience, g.log, "the address of the admin surface", func() (err error) {
			g.admin, err = admin.New(*g.config.Admin, g, g.reg, log)
			return err
		})
		if err != nil {
			return &startError{exitFailed, "choose another address in [admin], or stop what uses it", err}
		}
	}
	if g.socket, err = admin.NewSocket(g.config.Gateway.DataDir, g.socketHandler(), log); err != nil {
		return &startError{exitFailed, "check who may write to the data folder", err}
	}
	return nil
}

// close frees what build bound and closes the log.
func (g *gateway) close() error {
	var errs []error
	if g.socket != nil {
		errs = append(errs, g.socket.Close())
	}
	if g.admin != nil {
		errs = append(errs, g.admin.Close())
	}
	errs = append(errs, g.closeBridges())
	if g.broker != nil {
		errs = append(errs, g.broker.Close())
	}
	if g.buffer != nil {
		errs = append(errs, g.buffer.Close())
	}
	return errors.Join(errs...)
}
