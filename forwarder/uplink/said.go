package uplink

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What servers and proxies say of themselves ends up in the log, in status and on the terminal of whoever looks. It is bounded
// and holds nothing that a terminal would obey.

// maxSaid and maxTold bound what is repeated of a peer's words, and an error that may have some in it, in bytes.
const (
	maxSaid = 200
	maxTold = 1000
)

// said quotes the words of a peer.
func said(text string) string {
	if len(text) > maxSaid {
		return strconv.Quote(cut(text, maxSaid)) + "..."
	}
	return strconv.Quote(text)
}

// told is an error of a library that may repeat what a peer said.
type told struct{ err error }

func (t told) Error() string {
	text := t.err.Error()
	if len(text) > maxTold {
		text = cut(text, maxTold) + "..."
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) && c != utf8.RuneError {
			return c
		}
		return '?'
	}, text)
}

func (t told) Unwrap() error { return t.err }

// cut shortens text to at most n bytes, not in the middle of a character.
func cut(text string, n int) string {
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
