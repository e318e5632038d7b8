package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// day is the largest unit a duration can be written in.
const day = 24 * time.Hour

// ParseDuration reads a span of time: numbers with the units ms, s, m, h and d, such as "250ms", "7d" or "1h30m". It is
// never negative.
func ParseDuration(text string) (Duration, error) {
	total, rest := 0.0, text
	for rest != "" {
		number, unit, after := leadingNumber(rest)
		scale, ok := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": day}[unit]
		value, err := strconv.ParseFloat(number, 64)
		if err != nil || !ok {
			return 0, fmt.Errorf("%q is no duration, write it as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\"", text)
		}
		total += value * float64(scale)
		rest = after
	}
	switch {
	case text == "":
		return 0, fmt.Errorf("\"\" is no duration, write it as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\"")
	case total > math.MaxInt64/2:
		return 0, fmt.Errorf("%q is longer than a century", text)
	}
	return Duration(total), nil
}

// ParseSize reads a number of bytes: one number with the unit B, KiB, MiB, GiB, TiB, KB, MB, GB or TB.
func ParseSize(text string) (Size, error) {
	number, unit, rest := leadingNumber(text)
	scale, ok := map[string]float64{
		"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	}[unit]
	value, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil || !ok || rest != "":
		return 0, fmt.Errorf("%q is no size, write it as \"64KiB\", \"2GiB\" or \"500MB\"", text)
	case value*scale > 1<<60:
		return 0, fmt.Errorf("%q is larger than any disk", text)
	}
	return Size(value * scale), nil
}

// rateUnits are the spans of time that a rate is written for.
var rateUnits = map[string]float64{"s": 1, "m": 60, "h": 3600}

// ParseMessageRate reads a number of messages for a span of time, such as "500/s", "30/m" or "10/h".
func ParseMessageRate(text string) (MessageRate, error) {
	number, unit, _ := strings.Cut(text, "/")
	n, err := strconv.ParseFloat(number, 64)
	span, ok := rateUnits[unit]
	if err != nil || !ok || !(n > 0) || n > 1e9 || n/span < 0.001 {
		return 0, fmt.Errorf("%q is no rate, write it as \"500/s\", \"30/m\" or \"10/h\"", text)
	}
	return MessageRate(n * 1000 / span), nil
}

// ParseByteRate reads a size for a span of time, such as "64KiB/s" or "10MB/h".
func ParseByteRate(text string) (ByteRate, error) {
	size, unit, _ := strings.Cut(text, "/")
	n, err := ParseSize(size)
	span, ok := rateUnits[unit]
	if err != nil || !ok || n <= 0 || n > 1<<40 {
		return 0, fmt.Errorf("%q is no rate, write it as \"64KiB/s\" or \"10MB/h\"", text)
	}
	return ByteRate(max(float64(n)*1000/span, 1)), nil
}

// leadingNumber splits "1h30m" into "1", "h" and "30m".
func leadingNumber(s string) (number, unit, rest string) {
	isDigit := func(c rune) bool { return c >= '0' && c <= '9' || c == '.' }
	n := strings.IndexFunc(s, func(c rune) bool { return !isDigit(c) })
	if n < 0 {
		return s, "", ""
	}
	number, s = s[:n], s[n:]
	if n = strings.IndexFunc(s, isDigit); n < 0 {
		return number, s, ""
	}
	return number, s[:n], s[n:]
}
