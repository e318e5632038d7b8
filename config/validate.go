package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxGatewayID bounds gateway.id, which is part of client identifiers, topics and metrics.
const maxGatewayID = 64

// validator checks what the values mean and fills in what an absent key means when that depends on others. It reports
// everything that could be decoded.
type validator struct {
	*decoder
	c *Config
	// whole: every file could be read to its end, so what is not there is really missing.
	whole bool
	// bad are the values that could not even be decoded: what they would mean is no second problem.
	bad map[valueAt]bool
	// endpoints are all addresses to be bound, for conflicts between them.
	endpoints []bound
}

// valueAt is a value of a key; the items of an array have the same key.
type valueAt struct {
	at  Place
	key string
}

// add is reporter.add but for values that are bad already.
func (v *validator) add(s Severity, at Place, key, format string, args ...any) *Problem {
	if v.bad[valueAt{at, key}] {
		return &Problem{}
	}
	return v.decoder.add(s, at, key, format, args...)
}

func (v *validator) validate() {
	v.version()
	v.gateway()
	v.oneOf("log.level", v.c.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", v.c.Log.Format, "text", "json")
	v.broker()
	v.listeners()
	v.coap()
	v.auth()
	v.admin()
	v.addresses()
	v.opcua()
	v.uplinks()
	v.routes()
	v.presetRoutes()
	v.external()
}

// at returns where key stands, or the nearest table above it that stands somewhere.
func (v *validator) at(key string) spot {
	for key != "" {
		if s, ok := v.spots[key]; ok {
			return s
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return spot{key: Place{File: v.c.File}, value: Place{File: v.c.File}}
}

// given reports whether the file has key.
func (v *validator) given(key string) bool {
	_, ok := v.spots[key]
	return ok
}

// empty reports whether key is there, of the right kind, with nothing in it: value is what it was decoded to.
func (v *validator) empty(key string, want kind, length int) bool {
	return length == 0 && v.given(key) && v.spots[key].kind == want
}

// wrong reports an error at the value of key, warn a warning.
func (v *validator) wrong(key, format string, args ...any) *Problem {
	return v.add(Error, v.at(key).value, key, format, args...)
}

func (v *validator) warn(key, format string, args ...any) *Problem {
	return v.add(Warning, v.at(key).value, key, format, args...)
}

// wrongItem reports an error at the i-th item of the array key, warnItem a warning.
func (v *validator) wrongItem(key string, i int, format string, args ...any) *Problem {
	return v.add(Error, v.item(key, i), key, format, args...)
}

func (v *validator) warnItem(key string, i int, format string, args ...any) *Problem {
	return v.add(Warning, v.item(key, i), key, format, args...)
}

func (v *validator) item(key string, i int) Place {
	s := v.at(key)
	if i < len(s.items) {
		return s.items[i]
	}
	return s.value
}

// need reports that key is missing, at the table it belongs to.
func (v *validator) need(key, why string) {
	if v.whole && !v.given(key) {
		v.add(Error, v.at(key).key, key, "is missing: %s", why)
	}
}

func (v *validator) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		quoted := make([]string, len(allowed))
		for i, a := range allowed {
			quoted[i] = fmt.Sprintf("%q", a)
		}
		v.wrong(key, "must be %s, not %q", alternatives(quoted), value).Suggestion = nearest(value, slices.Clone(allowed))
	}
}

func alternatives(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// between checks a number or size that has bounds.
func (v *validator) between(key string, value, low, high int64) {
	if value < low || value > high {
		v.wrong(key, "must be from %d to %d, not %d", low, high, value)
	}
}

func (v *validator) span(key string, value Duration, low, high time.Duration) {
	if value.D() < low || value.D() > high {
		v.wrong(key, "must be from %s to %s", low, high)
	}
}

func (v *validator) version() {
	if v.c.Version != 1 {
		v.wrong("version", "version %d is not known; this build reads version 1", v.c.Version)
	}
}

func (v *validator) gateway() {
	if err := checkGatewayID(v.c.Gateway.ID); err != nil {
		v.wrong("gateway.id", "%s", err)
	}
	if v.c.Gateway.DataDir == "" {
		v.wrong("gateway.data_dir", "is empty; leave the key out for the default")
		return
	}
	v.c.Gateway.DataDir = v.absolute(v.c.Gateway.DataDir)
	if file := fileOnTheWay(v.c.Gateway.DataDir); file != "" {
		v.wrong("gateway.data_dir", "%s is no folder", file)
	}
}

// fileOnTheWay returns what is there of path instead of a folder, path itself or something above it; empty when nothing is.
func fileOnTheWay(path string) string {
	for {
		info, err := os.Stat(path)
		switch {
		case err == nil && !info.IsDir():
			return path
		case err == nil || path == filepath.Dir(path):
			return ""
		}
		path = filepath.Dir(path)
	}
}

func checkGatewayID(id string) error {
	isBad := func(c rune) bool { return c <= ' ' || c == 0x7f || strings.ContainsRune(`/+#{}"\`, c) }
	switch {
	case id == "" || len(id) > maxGatewayID:
		return fmt.Errorf("must have 1 to %d bytes", maxGatewayID)
	case strings.ContainsFunc(id, isBad) || id[0] == '$':
		return fmt.Errorf("%q cannot be part of a topic: no spaces, none of / + # { } \" \\, and no $ in front", id)
	}
	return nil
}

func (v *validator) broker() {
	b := v.c.Broker
	v.oneOf("broker.mode", b.Mode, ModeEmbedded, ModeExternal)
	v.between("broker.max_clients", int64(b.MaxClients), 1, 10_000_000)
	v.between("broker.max_packet", int64(b.MaxPacket), 128, maxPacket)
	v.span("broker.session_expiry", b.SessionExpiry, 0, 100*365*day)
	v.between("broker.session_queue", int64(b.SessionQueue), 1, 1<<50)
	v.between("broker.session_store", int64(b.SessionStore), 1, 1<<50)
	v.encryptionKey("broker.encryption_key", b.EncryptionKey)
	v.span("broker.max_keep_alive", b.MaxKeepAlive, time.Second, maxKeepAlive*time.Second)
	v.between("broker.retained_limit", int64(b.RetainedLimit), 0, 100_000_000)
	v.between("broker.max_clients_per_source", int64(b.MaxClientsPerSource), 0, 10_000_000)
}

// names returns the names of a section in order, so that problems and everything else come out the same every time.
func names[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
