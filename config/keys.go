package config

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// EncryptionKeyBytes is the length of an encryption key.
const EncryptionKeyBytes = 32

// howToMakeKey is what to do about a key that is none.
const howToMakeKey = "make one with: openssl rand -hex 32"

// Keys gives the keys of encryption_key, the one for new records first; none means that the buffer is not encrypted.
//
// The secret holds one key in each line, as 64 hexadecimal digits or in base64; lines that are empty or begin with # do not count. A
// first line "off" is given as an empty key: new records are not encrypted, the keys behind it read old ones. A secret of exactly 32
// bytes is one key as it is.
func (b Buffer) Keys() ([][]byte, error) { return keysIn(b.EncryptionKey) }

// Keys gives the keys of the broker's encryption_key, as those of a buffer.
func (b Broker) Keys() ([][]byte, error) { return keysIn(b.EncryptionKey) }

func keysIn(secret Secret) ([][]byte, error) {
	text := secret.Reveal()
	if text == "" {
		return nil, nil
	}
	if len(text) == EncryptionKeyBytes {
		return [][]byte{[]byte(text)}, nil
	}
	var keys [][]byte
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if line == "off" && keys == nil {
			keys = append(keys, nil)
			continue
		}
		key, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("line %d of the secret: %w", n, err)
		}
		if slices.ContainsFunc(keys, func(k []byte) bool { return slices.Equal(k, key) }) {
			return nil, fmt.Errorf("line %d of the secret repeats a key", n)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("the secret holds no key; " + howToMakeKey)
	}
	return keys, nil
}

// parseKey reads one line. It never repeats the line: it may be most of a key.
func parseKey(line string) ([]byte, error) {
	if key, err := hex.DecodeString(line); err == nil && len(key) == EncryptionKeyBytes {
		return key, nil
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if key, err := e.DecodeString(line); err == nil && len(key) == EncryptionKeyBytes {
			return key, nil
		}
	}
	return nil, fmt.Errorf("is no key of %d bytes in 64 hexadecimal digits or base64; %s", EncryptionKeyBytes, howToMakeKey)
}

// printable tells whether text has only characters of a keyboard.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}
