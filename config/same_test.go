package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleForSame has something of every kind that Same looks at.
const sampleForSame = `version = 1
[auth]
  hide_reasons = false
  [[auth.rule]]
    user    = "*"
    publish = ["a/#"]
[coap]
  listen = ["coap://127.0.0.1:5683"]
[opcua.press]
  endpoint = "opc.tcp://127.0.0.1:4840"
  [[opcua.press.node]]
    id    = "ns=2;s=T"
    topic = "plant/t"
[route.r]
  from = ["plant/#"]
[uplink.cloud]
  servers  = ["mqtt://127.0.0.1:1"]
  username = "u"
  password = { file = "secret" }
`

func TestSame(t *testing.T) {
	dir := t.TempDir()
	load := func(secret, text string) *Config {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Parse(filepath.Join(dir, "tidegate.toml"), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := load("one", sampleForSame)
	if c := load("one", "# a line more\n\n"+sampleForSame); !Same(*old, *c) {
		t.Error("the same text one line below is not the same")
	}
	for name, c := range map[string]*Config{
		"a secret's file": load("two", sampleForSame),
		"a rule":          load("one", strings.Replace(sampleForSame, `"a/#"`, `"b/#"`, 1)),
		"a node":          load("one", strings.Replace(sampleForSame, "s=T", "s=U", 1)),
		"hide_reasons":    load("one", strings.Replace(sampleForSame, "hide_reasons = false", "hide_reasons = true", 1)),
		"no coap":         load("one", strings.Replace(sampleForSame, "[coap]\n  listen = [\"coap://127.0.0.1:5683\"]\n", "", 1)),
		"another route":   load("one", sampleForSame+"[route.s]\n  from = [\"b/#\"]\n"),
		"another server":  load("one", strings.Replace(sampleForSame, "127.0.0.1:1", "127.0.0.1:2", 1)),
	} {
		if Same(*old, *c) {
			t.Errorf("%s changed, and it counts as the same", name)
		}
	}
}
