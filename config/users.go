package config

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// AnonymousUser is how a rule names clients without a user name.
const AnonymousUser = "anonymous"

// User is one line of the users file: NAME = "HASH", or NAME = { bcrypt = "HASH", scram = "VERIFIER" }.
type User struct {
	Name  string
	Hash  string // bcrypt
	SCRAM string // verifier for SCRAM-SHA-256; empty: none, the user cannot log in by that
	At    Place
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
		if err := ValidUser(user); err != nil {
			r.add(Error, n.key, join("", user), "%s", err)
			continue
		}
		if u, ok := r.user(user, n); ok {
			users = append(users, u)
		}
	}
	if r.problems.Wrong() {
		return nil, r.problems.sorted([]string{name})
	}
	return users, nil
}

// user reads what stands behind a name.
func (r *reporter) user(name string, n *node) (u User, ok bool) {
	u, ok = User{Name: name, At: n.key}, true
	fields := map[string]*node{"bcrypt": n}
	if n.kind == tableKind {
		fields = n.fields
	}
	for key, f := range fields {
		switch {
		case key == "bcrypt" && f.kind == stringKind && isHash(f.text):
			u.Hash = f.text
		case key == "scram" && f.kind == stringKind && isVerifier(f.text):
			u.SCRAM = f.text
		case key == "bcrypt":
			r.add(Error, f.at, join("", name), "must be a bcrypt hash as `tidegate passwd` writes it, of cost %d to %d", minHashCost, maxHashCost)
			ok = false
		case key == "scram":
			r.add(Error, f.at, join("", name), "scram must be a verifier as `tidegate passwd --scram` writes it, SCRAM-SHA-256$ITERATIONS:SALT$KEY:KEY")
			ok = false
		default:
			r.add(Error, f.key, join("", name), "unknown key %q, known here are bcrypt and scram", key)
			ok = false
		}
	}
	if ok && u.Hash == "" {
		r.add(Error, n.at, join("", name), "has no bcrypt hash")
		ok = false
	}
	return u, ok
}

// Verifier is what a server has to know of a password for SCRAM-SHA-256 (RFC 5802, 3): not the password, and nothing that
// would do to log in with.
type Verifier struct {
	Iterations           int
	Salt                 []byte
	StoredKey, ServerKey []byte // 32 bytes each
}

// Bounds of the iterations of a verifier: fewer than RFC 7677 asks for protect little, more keep small devices busy for minutes.
const (
	minIterations = 4096
	maxIterations = 1_000_000
)

// String writes a verifier as the users file keeps it, which is the form that PostgreSQL uses.
func (v Verifier) String() string {
	b := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", v.Iterations, b(v.Salt), b(v.StoredKey), b(v.ServerKey))
}

// ParseVerifier reads what String writes.
func ParseVerifier(text string) (Verifier, bool) {
	rest, ok := strings.CutPrefix(text, "SCRAM-SHA-256$")
	factors, keys, ok2 := strings.Cut(rest, "$")
	iterations, salt, ok3 := strings.Cut(factors, ":")
	stored, server, ok4 := strings.Cut(keys, ":")
	if !ok || !ok2 || !ok3 || !ok4 {
		return Verifier{}, false
	}
	n, err := strconv.Atoi(iterations)
	v := Verifier{Iterations: n}
	for _, f := range []struct {
		text string
		to   *[]byte
	}{{salt, &v.Salt}, {stored, &v.StoredKey}, {server, &v.ServerKey}} {
		b, e := base64.StdEncoding.DecodeString(f.text)
		*f.to, err = b, errors.Join(err, e)
	}
	good := err == nil && n >= minIterations && n <= maxIterations && len(v.Salt) >= 8 && len(v.StoredKey) == sha256.Size && len(v.ServerKey) == sha256.Size
	return v, good
}

func isVerifier(text string) bool {
	_, ok := ParseVerifier(text)
	return ok
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
