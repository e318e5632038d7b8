package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"tidegate/admin"
	"tidegate/admin/metrics"
	"tidegate/config"
	"tidegate/forwarder"
	"tidegate/forwarder/uplink"
)

// reloading is what a gateway needs to read its configuration again.
type reloading struct {
	hangUp  <-chan struct{} // gets what SIGHUP asks for; nil: nothing does
	metrics *reloadMetrics

	// mu is held while a reload is under way, and guards ended.
	mu    sync.Mutex
	ended bool // the gateway stops

	look sync.Mutex
	last *admin.Reload // guarded by look; nil: none yet
}

// followReloads reloads on SIGHUP until ctx ends. Nobody else reloads either after that.
func (g *gateway) followReloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			g.reload.mu.Lock()
			defer g.reload.mu.Unlock()
			g.reload.ended = true
			return nil
		case <-g.reload.hangUp:
			if g.awaitReady(ctx) {
				g.Reload("SIGHUP")
			}
		}
	}
}

// awaitReady waits until the gateway is ready, as a signal may have come before that. It returns false when ctx ends first.
func (g *gateway) awaitReady(ctx context.Context) bool {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !g.up.Load() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// lastReload returns how the last reload ended; nil: there was none.
func (g *gateway) lastReload() *admin.Reload {
	g.reload.look.Lock()
	defer g.reload.look.Unlock()
	return g.reload.last
}

// Reload reads the configuration again and makes it hold, as a whole or not at all, but for what needs a restart. by says who
// asked for it.
func (g *gateway) Reload(by string) admin.Reload {
	g.reload.mu.Lock()
	defer g.reload.mu.Unlock()
	r := admin.Reload{At: time.Now().UTC(), By: by, File: g.config.File}
	settled := settle(g.config.File)
	switch next, problems := config.Check(g.config.File); {
	case g.reload.ended || !g.up.Load():
		r.Fail(errors.New("the gateway is starting or stopping; ask again when it is ready"))
	case settled != nil:
		r.Fail(settled)
	case problems.Wrong():
		r.Refuse(problems)
	default:
		r.Problems = problems
		g.follow(next, &r)
	}
	g.reload.look.Lock()
	g.reload.last = &r
	g.reload.look.Unlock()
	g.reload.metrics.count(r)
	logReload(g.log, r)
	return r
}

// follow makes next hold and reports what that changed.
func (g *gateway) follow(next *config.Config, r *admin.Reload) {
	old := g.current.Load()
	d := compare(old, next)
	r.NeedsRestart = d.restart
	p, err := g.prepare(old, d)
	if err == nil {
		err = p.commit()
	}
	if err != nil {
		r.Fail(err)
		return
	}
	g.countLeft(d.changes)
	r.Changed = append(d.changes, g.readFiles(d.auth)...)
	r.Result = admin.ReloadUnchanged
	if len(r.Changed) > 0 {
		r.Result = admin.ReloadApplied
	}
	g.current.Store(d.next)
	if !config.Same(old.Listeners, d.next.Listeners) || len(d.bridges) > 0 {
		g.log.Info("listening", g.bound()...)
	}
}

// countLeft notes what uplinks that were removed left on disk: nobody sends it, and no look at the uplinks shows it any more.
func (g *gateway) countLeft(changes []admin.Change) {
	for i := range changes {
		c := &changes[i]
		name, is := strings.CutPrefix(c.Section, "uplink.")
		if !is || c.Change != removed {
			continue
		}
		g.settle()
		for _, q := range g.buffer.Queues() {
			if uplink, _, kind := metrics.SplitQueue(q.Name); uplink == name && kind == metrics.Lane {
				c.Left += q.Records
			}
		}
	}
}

// settle waits for what was appended to become durable, as only that is counted; not for long, as a disk can hang.
func (g *gateway) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = g.buffer.WaitAll(ctx)
}

// prepared is a change that was checked. Its steps are made in their order.
type prepared struct{ steps []step }

// step is one part of a change.
type step struct {
	name   string
	commit func() error
	// undo takes back a step that was made, because a later one failed.
	undo func() error
	// discard lets go of what was prepared, in place of commit; it may be nil.
	discard func()
}

// prepare checks everything, binds and reads what is new, and changes nothing. The order of the steps: what comes in finds its
// routes; what can fail late comes before what cannot be taken back; who loses a right loses it last, as disconnecting clients
// cannot be taken back.
func (g *gateway) prepare(old *config.Config, d *difference) (*prepared, error) {
	p := &prepared{}
	for _, add := range []func(*prepared, *config.Config, *difference) error{
		g.prepareUplinks, g.prepareListeners, g.prepareBridges, g.prepareAuth, g.prepareLog,
	} {
		if err := add(p, old, d); err != nil {
			p.discard(0)
			return nil, err
		}
	}
	return p, nil
}

func (p *prepared) discard(from int) {
	for _, s := range p.steps[from:] {
		if s.discard != nil {
			s.discard()
		}
	}
}

// commit makes the steps. When one fails, those before it are taken back.
func (p *prepared) commit() error {
	for i, s := range p.steps {
		err := s.commit()
		if err == nil {
			continue
		}
		p.discard(i + 1)
		for i--; i >= 0; i-- {
			if e := p.steps[i].undo(); e != nil {
				err = errors.Join(err, fmt.Errorf("and %s cannot be taken back: %w", p.steps[i].name, e))
			}
		}
		return err
	}
	return nil
}

// prepareUplinks is about routes and uplinks.
func (g *gateway) prepareUplinks(p *prepared, old *config.Config, d *difference) error {
	if config.Same(old.Routes, d.next.Routes) && config.Same(old.Uplinks, d.next.Uplinks) {
		return nil
	}
	for _, name := range d.uplinks {
		if _, was := old.Uplinks[name]; !was {
			if err := g.keys.mayAdd(g.buffer, name, d.next.Uplinks[name]); err != nil {
				return fmt.Errorf("%w: restart the gateway to add this uplink; nothing else was changed either", err)
			}
		}
	}
	change, clients, err := g.changeUplinks(d.next, d.uplinks)
	if err != nil {
		return err
	}
	commit := func(change *forwarder.Change, clients map[string]*uplink.Client, c *config.Config) error {
		for _, name := range d.uplinks {
			if u, ok := c.Uplinks[name]; ok {
				g.keys.add(name, u)
			}
		}
		if err := change.Commit(); err != nil {
			return err
		}
		g.uplinks.set(clients, c.Uplinks)
		return nil
	}
	p.steps = append(p.steps, step{
		name:   "uplinks and routes",
		commit: func() error { return commit(change, clients, d.next) },
		undo: func() error {
			back := compare(d.next, old)
			change, clients, err := g.changeUplinks(old, back.uplinks)
			if err != nil {
				return err
			}
			return commit(change, clients, old)
		},
	})
	return nil
}

// changeUplinks prepares the routes and uplinks of c, of which the named ones connect anew.
func (g *gateway) changeUplinks(c *config.Config, names []string) (*forwarder.Change, map[string]*uplink.Client, error) {
	clients, ports, err := g.newUplinks(c, names)
	if err != nil {
		return nil, nil, err
	}
	change, err := g.forwarder.Prepare(c, ports)
	return change, clients, err
}

func (g *gateway) prepareListeners(p *prepared, old *config.Config, d *difference) error {
	if config.Same(old.Listeners, d.next.Listeners) {
		return nil
	}
	change, err := g.broker.PrepareListeners(d.next.Listeners)
	if err != nil {
		return err
	}
	p.steps = append(p.steps, step{
		name: "listeners", commit: change.Commit, discard: change.Discard,
		undo: func() error {
			change, err := g.broker.PrepareListeners(old.Listeners)
			if err != nil {
				return err
			}
			return change.Commit()
		},
	})
	return nil
}

func (g *gateway) prepareBridges(p *prepared, old *config.Config, d *difference) error {
	for _, b := range d.bridges {
		if _, wanted := b.entry.sections(d.next)[b.name]; wanted {
			if err := b.entry.try(g, old, d.next, b.name); err != nil {
				return err
			}
		}
		p.steps = append(p.steps, step{
			name:   "bridge " + b.name,
			commit: func() error { return g.swapBridge(b.entry, old, d.next, b.name) },
			undo:   func() error { return g.swapBridge(b.entry, d.next, old, b.name) },
		})
	}
	return nil
}

// prepareAuth is about who is let in and what they may do.
func (g *gateway) prepareAuth(p *prepared, old *config.Config, d *difference) error {
	if !d.auth && config.Same(old.Listeners, d.next.Listeners) {
		return nil
	}
	swap, err := g.users.Prepare(d.next.Auth)
	if err != nil {
		return err
	}
	p.steps = append(p.steps, step{name: "users and rules", commit: func() error {
		if d.auth {
			swap()
			g.broker.RulesChanged()
			g.auditRules(d.next.Auth)
		}
		anonymous := map[string]bool{}
		for name, l := range d.next.Listeners {
			anonymous[name] = l.Anonymous == nil || *l.Anonymous
		}
		for _, b := range g.bridges.all() {
			if a, ok := b.bridge.(interface{ SetAnonymous(bool) }); ok {
				a.SetAnonymous(*d.next.Auth.Anonymous)
			}
		}
		g.broker.Rejudge(d.next.Auth.HideReasons, d.next.Auth.ClientID == config.ClientIDUser, anonymous)
		return nil
	}, undo: func() error { return nil }}) // nothing behind it fails
	return nil
}

func (g *gateway) prepareLog(p *prepared, _ *config.Config, d *difference) error {
	p.steps = append(p.steps, step{name: "log", commit: func() error {
		if g.level != nil {
			g.level.Set(levelOf(d.next.Log))
		}
		return nil
	}, undo: func() error { return nil }})
	return nil
}

// readFiles reads the users file and the certificates again if they changed, which would happen anyway a moment later.
func (g *gateway) readFiles(users bool) []admin.Change {
	var changes []admin.Change
	if again, err := g.users.Reload(); err == nil && again && !users {
		g.broker.RejudgeUsers()
		changes = append(changes, admin.Change{Section: "auth", Change: changed, Keys: []string{"users_file (its content)"}})
	}
	files, _ := g.broker.ReloadCertificates() // what is wrong stays in use, and is logged as it is found
	for _, file := range files {
		i := strings.LastIndexByte(file, '.') // LISTENER.KEY
		name, key := file[:i], file[i+1:]
		changes = append(changes, admin.Change{Section: "listener." + name, Change: changed, Keys: []string{key + " (its content)"}})
	}
	return changes
}

// logReload writes how a reload ended: what changed for the audit, and what somebody has to look at.
func logReload(log *slog.Logger, r admin.Reload) {
	audit := log.With("audit", true)
	args := []any{"by", r.By, "result", r.Result}
	if len(r.Changed) > 0 {
		texts := make([]string, 0, len(r.Changed))
		for _, c := range r.Changed {
			texts = append(texts, c.String())
		}
		args = append(args, "changed", strings.Join(texts, "; "))
	}
	if len(r.NeedsRestart) > 0 {
		args = append(args, "needs_restart", strings.Join(r.NeedsRestart, " "))
	}
	if r.Error != "" {
		args = append(args, "error", r.Error)
		audit.Warn("configuration not reloaded; nothing changed", args...)
	} else {
		audit.Info("configuration reloaded", args...)
	}
	for _, p := range r.Problems {
		log.Warn("configuration", "problem", p.String())
	}
}
