package config

import (
	"log/slog"
	"time"
)

// Duration is a span of time written "250ms", "30s", "5m", "24h" or "7d".
type Duration time.Duration

// D returns d as the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Size is a number of bytes written "64KiB", "2GiB" or "500MB".
type Size int64

// InFlight is a number of messages, or 0 for "auto".
type InFlight int

// SyncInterval is 0 for "always", else how long records may be at risk.
type SyncInterval time.Duration

// Age is 0 for "off", else how long something is worth keeping.
type Age time.Duration

// D returns a as the standard library's type; 0 is without end.
func (a Age) D() time.Duration { return time.Duration(a) }

// MessageRate is a number of messages per second, in thousandths; written "500/s", "30/m" or "10/h". 0 is no limit.
type MessageRate int64

// PerSecond returns the rate in messages per second.
func (r MessageRate) PerSecond() float64 { return float64(r) / 1000 }

// ByteRate is a number of bytes per second, in thousandths; written "64KiB/s" or "10MB/h". 0 is no limit.
type ByteRate int64

// PerSecond returns the rate in bytes per second.
func (r ByteRate) PerSecond() float64 { return float64(r) / 1000 }

// Secret is a password or key: { env = }, { file = }, { credential = } or a plain string. It prints as ***.
type Secret struct{ value string }

// NewSecret returns a secret that holds value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the secret itself, to be handed to the peer and to nobody else.
func (s Secret) Reveal() string { return s.value }

// IsSet reports whether there is a secret.
func (s Secret) IsSet() bool { return s.value != "" }

// String hides the secret from formatted output.
func (s Secret) String() string { return "***" }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return "***" }

// LogValue hides the secret from logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue("***") }

// ConnectRate is a number of connections per second, in thousandths; written "50/s" or "30/m". 0 is "off".
type ConnectRate int64

// PerSecond returns the rate in connections per second.
func (r ConnectRate) PerSecond() float64 { return float64(r) / 1000 }

// Paths are files; one may be written without an array.
type Paths []string
