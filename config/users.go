package config

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// AnonymousUser is how a rule names clients without a user name.
const AnonymousUser = "anonymous"

// User is one line of the users file: NAME = "HASH".
type User struct {
	Name string
	Hash string // bcrypt
	At   Place
}

// LoadUsers reads a users file, whose lines are in the order of the file. An error is of type Problems.
func LoadUsers(path string) ([]User, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Problems{{File: path, Severity: Error, Message: fileReason(err).Error()}}
	}
	return ParseUsers(path, data)
}

// ParseUsers is LoadUsers for a file's content.
func ParseUsers(name string, data []byte) ([]User, error) {
	r := &reporter{}
	root, _ := parseTree(r, name, data)
	var users []User
	for _, user := range root.names {
		n := root.fields[user]
		switch err := ValidUser(user); {
		case err != nil:
			r.add(Error, n.key, join("", user), "%s", err)
		case n.kind != stringKind || !isHash(n.text):
			r.add(Error, n.at, join("", user), "must be a bcrypt hash as `tidegate passwd` writes it, of cost %d to %d", minHashCost, maxHashCost)
		default:
			users = append(users, User{user, n.text, n.key})
		}
	}
	if r.problems.Wrong() {
		return nil, r.problems.sorted([]string{name})
	}
	return users, nil
}

// Bounds of the cost of a hash, of which each is twice as long as the one before. Beyond them it protects nothing, or a login
// takes seconds.
const (
	minHashCost = 4
	maxHashCost = 14
)

// isHash reports whether text has the form of a bcrypt hash, $2x$COST$ and 53 digits of its own alphabet. What it means is
// for package access.
func isHash(text string) bool {
	if len(text) != 60 || text[:2] != "$2" || text[3] != '$' || text[6] != '$' {
		return false
	}
	cost, err := strconv.Atoi(text[4:6])
	digits := func(c rune) bool { return c != '-' && c != '_' && isBare(c) || c == '.' || c == '/' }
	return err == nil && cost >= minHashCost && cost <= maxHashCost && !strings.ContainsFunc(text[7:], func(c rune) bool { return !digits(c) })
}

// ValidUser reports why name cannot be the name of a user. A name must be a plain part of a topic level, since rules put it
// into filters, and none of the words that rules have for others.
func ValidUser(name string) error {
	switch {
	case name == "" || len(name) > 128 || !utf8.ValidString(name):
		return fmt.Errorf("a user name has 1 to 128 bytes of UTF-8")
	case name == AnonymousUser:
		return fmt.Errorf("%q stands for clients without a name", name)
	case strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f || strings.ContainsRune("/+#*{}", c) }):
		return fmt.Errorf("the user name %q holds one of / + # * { } or a control character", name)
	}
	return nil
}

// MatchUser reports whether pattern, in which * stands for any text, matches the whole name.
func MatchUser(pattern, name string) bool {
	first, rest, glob := strings.Cut(pattern, "*")
	if !glob {
		return pattern == name
	}
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for {
		middle, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, rest)
		}
		i := strings.Index(name, middle)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(middle):], after
	}
}

func matchesAny(pattern string, users []string) bool {
	for _, u := range users {
		if MatchUser(pattern, u) {
			return true
		}
	}
	return strings.Contains(pattern, "*") // users may come later
}
