package forwarder

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"tidegate/config"
	"tidegate/forwarder/pipeline"
)

// plan is what routes and uplinks make of a message. It is replaced as a whole, so that one message meets one plan.
type plan struct {
	chain *pipeline.Chain
	outs  []*output // by their places in chain
	cells [][]*cell // by route and place of the uplink
}

func newPlan(chain *pipeline.Chain, outs []*output, l *ledger) *plan {
	p := &plan{chain: chain, outs: slices.Clone(outs)}
	for _, r := range chain.Routes() {
		row := make([]*cell, len(outs))
		for _, up := range r.Targets() {
			row[up] = l.cell([]byte(r.Name), outs[up].index, r.Lane)
		}
		p.cells = append(p.cells, row)
	}
	return p
}

// Change is a new set of routes and uplinks that was checked. It ends with Commit, or with nothing.
type Change struct {
	f     *Forwarder
	chain *pipeline.Chain
	names []string
	c     map[string]config.Uplink
	links map[string]Uplink
}

// Prepare checks the routes and uplinks of c, and changes nothing. links has a connection, which Run has not been called
// of, for each uplink that is new or takes the place of the one there is under that name. Of the other ones only the bounds of
// their buffers may have changed.
func (f *Forwarder) Prepare(c *config.Config, links map[string]Uplink) (*Change, error) {
	n := &Change{f: f, names: slices.Sorted(maps.Keys(c.Uplinks)), c: c.Uplinks, links: links}
	var err error
	if n.chain, err = pipeline.Compile(f.gateway, c.Routes, n.names); err != nil {
		return nil, fmt.Errorf("forwarder: %w", err)
	}
	for _, name := range n.names {
		if links[name] == nil && f.output(name) == nil {
			return nil, fmt.Errorf("forwarder: uplink %s has no connection", name)
		}
		_, err := compileCommands(f.gateway, name, c.Uplinks[name].Protocol, c.Uplinks[name].Commands)
		if err == nil {
			_, err = newBatching(f.gateway, name, c.Uplinks[name].Batch, f.metrics)
		}
		if err != nil {
			return nil, fmt.Errorf("forwarder: uplink %s: %w", name, err)
		}
	}
	return n, nil
}

// Commit makes it so. What comes in from then on meets the new routes and uplinks. What is on disk stays as it is: an uplink
// that takes the place of another one sends what that left, and what an uplink that is gone left stays on disk until the uplink
// is back or it is purged. Uplinks that leave have a short time to finish what is in flight and to say goodbye; they are waited
// for. An error means that the log takes no more: nothing has changed then but bounds.
func (n *Change) Commit() error {
	f := n.f
	f.changing.Lock()
	defer f.changing.Unlock()
	before := map[string]*output{}
	for _, o := range f.outputs() {
		before[o.name] = o
	}
	var outs, fresh []*output
	for _, name := range n.names {
		o := before[name]
		var err error
		switch {
		case n.links[name] == nil:
			err = o.setBounds(n.c[name].Buffer)
		case o != nil:
			o, err = f.newOutput(name, n.c[name], n.links[name], o)
			fresh = append(fresh, o)
		default:
			o, err = f.newOutput(name, n.c[name], n.links[name], f.parked[name])
			fresh = append(fresh, o)
		}
		if err != nil {
			return fmt.Errorf("forwarder: uplink %s: %w", name, err)
		}
		outs = append(outs, o)
	}
	f.mu.Lock()
	f.outs = outs
	f.mu.Unlock()
	f.plan.Store(newPlan(n.chain, outs, f.ledger))
	for name, o := range before {
		if !slices.Contains(n.names, name) {
			f.parked[name] = o
			_ = o.setMaxAge(0) // it stays until the uplink is back or somebody purges it; the log takes no more if this fails
		}
	}
	f.relay(outs, fresh)
	return nil
}

// relay ends the connections of uplinks that are not among outs, each in order, and starts those that are fresh. The caller
// holds changing.
func (f *Forwarder) relay(outs, fresh []*output) {
	for _, o := range fresh {
		delete(f.parked, o.name)
	}
	w := f.work
	if w == nil {
		return // Run starts them all, or has ended
	}
	var leaving sync.WaitGroup
	w.uplinks = slices.DeleteFunc(w.uplinks, func(u *atWork) bool {
		if slices.Contains(outs, u.out) {
			return false
		}
		leaving.Go(u.leave) // ends within the times of a stop
		return true
	})
	leaving.Wait()
	for _, o := range fresh {
		w.keep(o.gaps)
		w.start(f, o)
	}
}
