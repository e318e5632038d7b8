package config

import (
	"testing"
	"time"
)

// TestHalfAFile: a file that is just being written, or whose writer found the disk full, ends within a block. What is in front of
// that block is not all that was meant.
func TestHalfAFile(t *testing.T) {
	first, _ := certificate(t, time.Now().Add(time.Hour))
	second, key := certificate(t, time.Now().Add(time.Hour))
	whole := first + second
	for _, n := range []int{len(first) + 12, len(first) + 40, len(whole) - 30, len(whole) - 2} {
		if all, err := ParseAuthorities([]byte(whole[:n])); err == nil {
			t.Errorf("%d of %d bytes are taken as %d certificates", n, len(whole), len(all))
		}
	}
	for what, text := range map[string]string{"comment": "# the end\n", "key": key, "": ""} {
		if all, err := ParseAuthorities([]byte(whole + text)); err != nil || len(all) != 2 {
			t.Errorf("with a %s: %d certificates, %v", what, len(all), err)
		}
	}
}
