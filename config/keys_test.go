package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	a, b := bytes.Repeat([]byte{0xa1}, 32), bytes.Repeat([]byte{0xfe}, 32)
	hexA, hexB := hex.EncodeToString(a), hex.EncodeToString(b)
	for name, c := range map[string]struct {
		text string
		want [][]byte
		err  string
	}{
		"none":           {"", nil, ""},
		"hex":            {hexA, [][]byte{a}, ""},
		"upper case":     {strings.ToUpper(hexB), [][]byte{b}, ""},
		"base64":         {base64.StdEncoding.EncodeToString(b), [][]byte{b}, ""},
		"base64 for URL": {base64.RawURLEncoding.EncodeToString(b), [][]byte{b}, ""},
		"as it is":       {string(a), [][]byte{a}, ""},
		"two":            {"# since March\r\n" + hexB + "\r\n\r\n" + hexA + "\n", [][]byte{b, a}, ""},
		"off":            {"off\n" + hexA, [][]byte{nil, a}, ""},
		"off is no key":  {hexA + "\noff", nil, "line 2 of the secret: is no key of 32 bytes"},
		"twice":          {hexA + "\n" + strings.ToUpper(hexA), nil, "line 2 of the secret repeats a key"},
		"short":          {hexA[:62], nil, "line 1 of the secret: is no key of 32 bytes in 64 hexadecimal digits or base64; make one with: openssl rand -hex 32"},
		"words":          {"correct horse battery staple", nil, "line 1"},
		"only comments":  {"# nothing\n", nil, "holds no key"},
	} {
		got, err := Buffer{EncryptionKey: NewSecret(c.text)}.Keys()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%s: %d keys, %v", name, len(got), err)
			continue
		}
		for i := range got {
			if !bytes.Equal(got[i], c.want[i]) {
				t.Errorf("%s: key %d is %x", name, i, got[i])
			}
		}
	}
}

// TestBadKeyIsShownByCheck: the problem stands at the key, and the secret is not in it.
func TestBadKeyIsShownByCheck(t *testing.T) {
	dir := write(t, map[string]string{"buffer.key": "swordfish-swordfish\n", "t.toml": `version = 1
[uplink.cloud]
  servers = ["mqtt://127.0.0.1:1"]
  [uplink.cloud.buffer]
    encryption_key = { file = "buffer.key" }
    compress = "fast"
`})
	_, ps := Check(filepath.Join(dir, "t.toml"))
	text := ps.Error()
	for _, want := range []string{"t.toml:5:22: uplink.cloud.buffer.encryption_key: line 1 of the secret: is no key", `t.toml:6:16: uplink.cloud.buffer.compress: must be "auto" or "off", not "fast"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "swordfish") {
		t.Errorf("the secret is in:\n%s", text)
	}
}
