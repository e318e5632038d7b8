package config

import (
	"fmt"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"250ms": 250 * time.Millisecond, "30s": 30 * time.Second, "5m": 5 * time.Minute, "24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour,
		"1h30m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond, "0s": 0, "1d12h": 36 * time.Hour,
	} {
		if got, err := ParseDuration(text); err != nil || got.D() != want {
			t.Errorf("%s: %s, %v", text, got.D(), err)
		}
	}
	for _, text := range []string{"", "5", "s", "-5s", "5 s", "5y", "1.2.3s", "s5", "5S", "99999999999d", ".s", "5s5", "1e3s", "5s "} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is %s", text, got.D())
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0B": 0, "17B": 17, "64KiB": 64 << 10, "1MiB": 1 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40, "500MB": 500e6, "1kB": 1000, "1KB": 1000,
		"3GB": 3e9, "1TB": 1e12, "1.5KiB": 1536,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "64", "64K", "64k", "-1MiB", "1 MiB", "MiB", "1MiB1", "1mib", "9999999999TB", "1MiB "} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}

func TestParseTemplate(t *testing.T) {
	for text, want := range map[string]string{
		"{topic}":                 "[{ topic}]",
		"sites/{gateway}/{topic}": "[{sites/ } { gateway} {/ } { topic}]",
		"{1}{9}x":                 "[{ 1} { 9} {x }]",
		"plain":                   "[{plain }]",
	} {
		if got, err := ParseTemplate(text); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "{", "}", "{}", "{0}", "{10}", "{Topic}", "a}b", "{topic", "{{topic}}", "{ topic }"} {
		if got, err := ParseTemplate(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestNearest(t *testing.T) {
	candidates := func() []string { return []string{"listen", "anonymous", "qos", "to", "topic", "3.1.1"} }
	for name, want := range map[string]string{
		"lisetn": "listen", "listn": "listen", "Listen": "listen", "anonimus": "anonymous", "q0s": "qos", "ot": "to", "3.1": "3.1.1",
		"completely": "", "": "", "z": "",
	} {
		if got := nearest(name, candidates()); got != want {
			t.Errorf("nearest to %q: %q, want %q", name, got, want)
		}
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]MessageRate{"500/s": 500_000, "30/m": 500, "9/h": 2, "0.5/s": 500} {
		if got, err := ParseMessageRate(text); err != nil || got != want {
			t.Errorf("%q is %d thousandths a second, want %d: %v", text, got, want, err)
		}
	}
	for text, want := range map[string]ByteRate{"64KiB/s": 65_536_000, "6KB/m": 100_000, "1B/h": 1} {
		if got, err := ParseByteRate(text); err != nil || got != want {
			t.Errorf("%q is %d thousandths a second, want %d: %v", text, got, want, err)
		}
	}
	for _, text := range []string{"", "/", "500", "500/", "500/d", "0/s", "-1/s", "x/s", "5/s/s", "NaN/s", "1e99/s", "Inf/s", "0.5/h"} {
		if got, err := ParseMessageRate(text); err == nil {
			t.Errorf("%q is taken for %d messages", text, got)
		}
		if got, err := ParseByteRate(text); err == nil {
			t.Errorf("%q is taken for %d bytes", text, got)
		}
	}
}
