package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidegate/config"
)

const comparedConfig = `version = 1
[gateway]
id = "g1"
data_dir = "data"
[listener.a]
listen = "mqtt://127.0.0.1:0"
[auth]
[[auth.rule]]
user    = "*"
publish = ["#"]
[coap]
listen = ["coap://127.0.0.1:0"]
[opcua.press]
endpoint = "opc.tcp://127.0.0.1:4840"
[[opcua.press.node]]
id    = "ns=2;s=T"
topic = "plant/t"
[route.r]
from = ["plant/#"]
[uplink.cloud]
servers = ["mqtt://127.0.0.1:1"]
[uplink.cloud.buffer]
max_bytes = "64MiB"
`

// What a change of the file would change in the gateway.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	parse := func(text string) *config.Config {
		t.Helper()
		c, err := config.Parse(filepath.Join(dir, "gw.toml"), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := parse(comparedConfig)
	for _, c := range []struct {
		old, new         string // what is replaced; the new text is appended where old is empty
		changes, restart string
		uplinks, bridges int
	}{
		{old: "version = 1", new: "# a line more\nversion = 1"},
		{new: "[log]\nlevel = \"debug\"\n", changes: "log: changed: level"},
		{new: "[log]\nformat = \"json\"\n", restart: "log.format"},
		{old: `id = "g1"`, new: `id = "g2"`, restart: "gateway.id uplink.cloud"},
		{new: "[broker]\nmax_clients = 5\nmax_packet = \"64KiB\"\n", restart: "broker.max_clients broker.max_packet"},
		{new: "[admin]\nlisten = \"http://127.0.0.1:0\"\n", restart: "admin"},
		{old: `publish = ["#"]`, new: `subscribe = ["#"]`, changes: "auth: changed: rule"},
		{old: "[auth]", new: "[auth]\nhide_reasons = true", changes: "auth: changed: hide_reasons"},
		{old: "[auth]", new: "[auth]\nanonymous = false\nusers_file = \"" + usersOf(t) + "\"", changes: "auth: changed: anonymous, users_file; listener.a: changed: anonymous"},
		{new: "[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"\n", changes: "listener.b: added"},
		{old: "[listener.a]\nlisten = \"mqtt://127.0.0.1:0\"", new: "[listener.b]\nlisten = \"mqtt://127.0.0.1:0\"", changes: "listener.a: removed; listener.b: added"},
		{old: "127.0.0.1:0\"\n[auth]", new: "127.0.0.1:1883\"\n[auth]", changes: "listener.a: changed: listen"},
		{old: "[route.r]", new: "[route.s]", changes: "route.r: removed; route.s: added"},
		{old: `from = ["plant/#"]`, new: "from = [\"plant/#\"]\nqos = 2\nlane = \"urgent\"", changes: "route.r: changed: qos, lane"},
		{old: "mqtt://127.0.0.1:1\"", new: "mqtt://127.0.0.1:2\"", changes: "uplink.cloud: changed: servers", uplinks: 1},
		{old: "mqtt://127.0.0.1:1\"]", new: "mqtt://127.0.0.1:1\"]\nusername = \"u\"\npassword = \"p\"", changes: "uplink.cloud: changed: username, password", uplinks: 1},
		{old: "64MiB", new: "32MiB", changes: "uplink.cloud: changed: buffer.max_bytes"},
		{new: "sync = \"1s\"\nmax_age = \"1h\"\n", changes: "uplink.cloud: changed: buffer.max_age", restart: "uplink.cloud.buffer.sync"},
		{new: "compress = \"off\"\n", restart: "uplink.cloud.buffer.compress"},
		{
			new:     "[uplink.two]\nservers = [\"mqtt://127.0.0.1:1\"]\n",
			changes: "uplink.two: added; route.r: changed: to", uplinks: 1,
		},
		{old: "127.0.0.1:4840", new: "127.0.0.1:4841", changes: "opcua.press: changed: endpoint", bridges: 1},
		{old: "[coap]\nlisten = [\"coap://127.0.0.1:0\"]\n", changes: "coap: removed", bridges: 1},
		{new: "[opcua.two]\nendpoint = \"opc.tcp://127.0.0.1:1\"\n[[opcua.two.node]]\nid = \"i=1\"\ntopic = \"x\"\n", changes: "opcua.two: added", bridges: 1},
	} {
		text := comparedConfig + c.new
		if c.old != "" {
			text = strings.Replace(comparedConfig, c.old, c.new, 1)
		}
		next := parse(text)
		d := compare(old, next)
		var changes []string
		for _, change := range d.changes {
			changes = append(changes, change.String())
		}
		if got := strings.Join(changes, "; "); got != c.changes {
			t.Errorf("%q for %q: %q, want %q", c.new, c.old, got, c.changes)
		}
		if got := strings.Join(d.restart, " "); got != c.restart {
			t.Errorf("%q for %q needs a restart for %q, want %q", c.new, c.old, got, c.restart)
		}
		if len(d.uplinks) != c.uplinks || len(d.bridges) != c.bridges {
			t.Errorf("%q for %q: uplinks %v, %d bridges", c.new, c.old, d.uplinks, len(d.bridges))
		}
		// What needs a restart has not changed in what is to hold, and comparing with that again says so.
		if again := compare(d.next, next); len(again.changes) > 0 || !slices.Equal(again.restart, d.restart) {
			t.Errorf("%q for %q: afterwards %v, %v", c.new, c.old, again.changes, again.restart)
		}
	}
}

// usersOf writes a users file.
func usersOf(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users.toml")
	writeFile(t, file, "u = \"$2a$04$vC43Nkv7iLPfNFP426wC9OXeo1APPB27ene97JM7UycQvjvwMc3kC\"\n")
	return file
}

// A step that fails takes back those before it, in reverse, and lets go of those behind it.
func TestCommitTakesBack(t *testing.T) {
	var got []string
	make := func(name string, err error) step {
		return step{
			name:    name,
			commit:  func() error { got = append(got, "commit "+name); return err },
			undo:    func() error { got = append(got, "undo "+name); return nil },
			discard: func() { got = append(got, "discard "+name) },
		}
	}
	p := prepared{[]step{make("a", nil), make("b", nil), make("c", fmt.Errorf("failed")), make("d", nil)}}
	if err := p.commit(); err == nil || err.Error() != "failed" {
		t.Errorf("got %v", err)
	}
	if want := "commit a, commit b, commit c, discard d, undo b, undo a"; strings.Join(got, ", ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
