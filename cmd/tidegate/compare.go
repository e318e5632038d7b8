package main

import (
	"maps"
	"slices"

	"tidegate/admin"
	"tidegate/config"
)

// What can happen to a section or table.
const (
	added   = "added"
	removed = "removed"
	changed = "changed"
)

// difference is what a new configuration would change.
type difference struct {
	changes []admin.Change
	restart []string // keys whose new values hold after a restart
	// uplinks that are new, or have to connect anew.
	uplinks []string
	// auth, bridges: something of that kind changed. Routes and listeners find out for themselves.
	auth    bool
	bridges []bridgeChange
	// next is what is to hold: the new configuration, with the old values of what needs a restart.
	next *config.Config
}

// bridgeChange is one bridge to be started, stopped or replaced.
type bridgeChange struct {
	entry bridgeEntry
	name  string
}

// compare finds out what next changes of old.
func compare(old, next *config.Config) *difference {
	d := &difference{}
	d.next, d.restart = config.Keep(old, next, "log", "listener", "auth", "coap", "opcua", "route", "uplink")
	if old.Log.Format != next.Log.Format {
		d.next.Log.Format = old.Log.Format
		d.restart = append(d.restart, "log.format")
	}
	if old.Log.Level != next.Log.Level {
		d.add("log", changed, "level")
	}
	if keys := config.Differ(old.Auth, next.Auth); len(keys) > 0 {
		d.auth = true
		d.add("auth", changed, keys...)
	}
	d.next.Uplinks = maps.Clone(next.Uplinks)
	tables(d, "uplink", old.Uplinks, next.Uplinks, d.uplink)
	tables(d, "route", old.Routes, next.Routes, nil)
	tables(d, "listener", old.Listeners, next.Listeners, nil)
	for _, e := range bridgeTable() {
		d.compareBridges(e, old, next)
	}
	if old.Gateway.ID != next.Gateway.ID {
		return d.postponed(old)
	}
	return d
}

// postponed leaves everything to a restart. The id of the gateway stands in values of other sections, which must not be of two
// gateways.
func (d *difference) postponed(old *config.Config) *difference {
	all := &difference{next: old, restart: d.restart}
	for _, c := range d.changes {
		all.restart = append(all.restart, c.Section)
	}
	return all
}

func (d *difference) add(section, what string, keys ...string) {
	d.changes = append(d.changes, admin.Change{Section: section, Change: what, Keys: keys})
}

// tables compares the tables of one kind by their names. each is told of those that are added or changed, and may change what
// is reported of them by returning other keys; nil: as they are.
func tables[T any](d *difference, section string, old, next map[string]T, each func(name string, before *T, keys []string) []string) {
	for _, name := range bothNames(old, next) {
		before, was := old[name]
		after, is := next[name]
		full := section + "." + name
		switch {
		case !is:
			d.add(full, removed)
		case !was:
			if each != nil {
				each(name, nil, nil)
			}
			d.add(full, added)
		default:
			keys := config.Differ(before, after)
			if len(keys) > 0 && each != nil {
				keys = each(name, &before, keys)
			}
			if len(keys) > 0 {
				d.add(full, changed, keys...)
			}
		}
	}
}

// bothNames returns the names of either, in order.
func bothNames[T any](a, b map[string]T) []string {
	return slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, m := range []map[string]T{a, b} {
			for name := range m {
				if !yield(name) {
					return
				}
			}
		}
	}))
}

// Keys of an uplink that the log of all uplinks was opened with, and those that change without a new connection.
var (
	atTheStart   = []string{"buffer.sync", "buffer.encryption_key", "buffer.compress"}
	withoutALink = []string{"buffer.max_bytes", "buffer.when_full", "buffer.max_age"}
)

// uplink notes whether an uplink has to connect anew, and keeps what needs a restart.
func (d *difference) uplink(name string, before *config.Uplink, keys []string) []string {
	if before == nil {
		d.uplinks = append(d.uplinks, name)
		return nil
	}
	u := d.next.Uplinks[name]
	u.Buffer.Sync, u.Buffer.EncryptionKey, u.Buffer.Compress = before.Buffer.Sync, before.Buffer.EncryptionKey, before.Buffer.Compress
	d.next.Uplinks[name] = u
	var now []string
	connect := false
	for _, key := range keys {
		if slices.Contains(atTheStart, key) {
			d.restart = append(d.restart, "uplink."+name+"."+key)
			continue
		}
		now = append(now, key)
		connect = connect || !slices.Contains(withoutALink, key)
	}
	if connect {
		d.uplinks = append(d.uplinks, name)
	}
	return now
}

// compareBridges compares the bridges of one kind.
func (d *difference) compareBridges(e bridgeEntry, old, next *config.Config) {
	was, is := e.sections(old), e.sections(next)
	for _, name := range bothNames(was, is) {
		what, keys := changed, []string(nil)
		switch before, after := was[name], is[name]; {
		case before == nil:
			what = added
		case after == nil:
			what = removed
		default:
			if keys = config.Differ(before, after); len(keys) == 0 {
				continue
			}
		}
		section := e.kind
		if name != e.kind {
			section += "." + name
		}
		d.bridges = append(d.bridges, bridgeChange{e, name})
		d.add(section, what, keys...)
	}
}
