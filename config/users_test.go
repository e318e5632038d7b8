package config

import (
	"path/filepath"
	"strings"
	"testing"
)

const someHash = "$2a$10$abcdefghijklmnopqrstuvABCDEFGHIJKLMNOPQRSTUVWXYZ./012"

func TestUsersFile(t *testing.T) {
	dir := write(t, map[string]string{
		"users.toml": "# people\n\"press-1\" = \"" + someHash + "\"\n\nhmi = '" + someHash + "' # panel\n",
		"wrong.toml": "hmi = 'plain'\nanonymous = '" + someHash + "'\n\"a/b\" = '" + someHash + "'\nbad = 5\nhmi = '" + someHash + "'\n",
		"tidegate.toml": `[auth]
users_file = "users.toml"
[[auth.rule]]
user = "hnmi"
publish = ["a"]
[[auth.rule]]
user = "press-*"
publish = ["a"]
[[auth.rule]]
user = "pump-*"
publish = ["a"]
`,
	})
	users, err := LoadUsers(filepath.Join(dir, "users.toml"))
	if err != nil || len(users) != 2 || users[0].Name != "press-1" || users[1].Hash != someHash || users[1].At.Line != 4 {
		t.Errorf("%+v %v", users, err)
	}
	const want = "wrong.toml:1:7: hmi: must be a bcrypt hash as `tidegate passwd` writes it, of cost 4 to 14\n" +
		"wrong.toml:2:1: anonymous: \"anonymous\" stands for clients without a name\n" +
		"wrong.toml:3:1: \"a/b\": the user name \"a/b\" holds one of / + # * { } or a control character\n" +
		"wrong.toml:4:7: bad: must be a bcrypt hash as `tidegate passwd` writes it, of cost 4 to 14\n" +
		"wrong.toml:5:1: hmi: was set at wrong.toml:1:1 already"
	if _, err := LoadUsers(filepath.Join(dir, "wrong.toml")); relative(dir, err.(Problems)) != want {
		t.Errorf("got\n%s\nwant\n%s", relative(dir, err.(Problems)), want)
	}
	if _, err := LoadUsers(filepath.Join(dir, "missing.toml")); relative(dir, err.(Problems)) != "missing.toml: no such file" {
		t.Error(err)
	}
	_, ps := Check(filepath.Join(dir, "tidegate.toml"))
	if got := relative(dir, ps); got != `tidegate.toml:4:8: auth.rule[1].user: warning: the users file has nobody of that name; did you mean "hmi"?` {
		t.Error(got)
	}
}

func TestIsHash(t *testing.T) {
	if !isHash(someHash) || !isHash("$2y$05"+someHash[6:]) {
		t.Error("a hash is refused")
	}
	for _, text := range []string{"", "$", someHash[1:], someHash + "x", "$2a$03" + someHash[6:], "$2a$15" + someHash[6:], "$2a$1x" + someHash[6:], "$1a" + someHash[3:], someHash[:59] + "-", someHash[:59] + "\n"} {
		if isHash(text) {
			t.Errorf("%q is taken for a hash", text)
		}
	}
}

func TestMatchUser(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "ab", false},
		{"*", "", true},
		{"*", "x", true},
		{"press-*", "press-1", true},
		{"press-*", "press-", true},
		{"press-*", "pres", false},
		{"*-1", "press-1", true},
		{"*-1", "press-12", false},
		{"a*b*c", "a1b2c", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"a**a", "aa", true},
		{"*a*", "xax", true},
	} {
		if got := MatchUser(c.pattern, c.name); got != c.want {
			t.Errorf("MatchUser(%q, %q) = %t", c.pattern, c.name, got)
		}
	}
}

// TestUsersWithVerifiers: the longer form of a line, and what is wrong with others.
func TestUsersWithVerifiers(t *testing.T) {
	const hash = "$2a$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
	v := Verifier{Iterations: 4096, Salt: []byte("salt salt"), StoredKey: make([]byte, 32), ServerKey: make([]byte, 32)}
	good := v.String()
	if got, ok := ParseVerifier(good); !ok || got.String() != good {
		t.Errorf("%s became %+v", good, got)
	}
	users, err := ParseUsers("u", []byte("ann = { bcrypt = '"+hash+"', scram = '"+good+"' }\nbob = '"+hash+"'\n"))
	if err != nil || len(users) != 2 || users[0].SCRAM != good || users[0].Hash != hash || users[1].SCRAM != "" {
		t.Errorf("%+v, %v", users, err)
	}
	for line, want := range map[string]string{
		"ann = { scram = '" + good + "' }":               "u:1:7: ann: has no bcrypt hash",
		"ann = { bcrypt = '" + hash + "', scram = 'x' }": "u:1:90: ann: scram must be a verifier as `tidegate passwd --scram` writes it, SCRAM-SHA-256$ITERATIONS:SALT$KEY:KEY",
		"ann = { bcrypt = '" + hash + "', sha = 'x' }":   "u:1:82: ann: unknown key \"sha\", known here are bcrypt and scram",
		"ann = { bcrypt = 'x' }":                         "u:1:18: ann: must be a bcrypt hash as `tidegate passwd` writes it, of cost 4 to 14",
		"ann = 3":                                        "u:1:7: ann: must be a bcrypt hash as `tidegate passwd` writes it, of cost 4 to 14",
	} {
		if _, err := ParseUsers("u", []byte(line)); err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", line, err, want)
		}
	}
	for _, bad := range []string{
		"", "SCRAM-SHA-1" + good[len("SCRAM-SHA-256"):], strings.Replace(good, "4096", "4095", 1), strings.Replace(good, "4096", "9999999", 1),
		strings.Replace(good, "4096", "x", 1), good[:len(good)-4], good + "A", strings.ReplaceAll(good, ":", ";"),
		(Verifier{4096, []byte("short"), v.StoredKey, v.ServerKey}).String(), (Verifier{4096, v.Salt, nil, v.ServerKey}).String(),
	} {
		if got, ok := ParseVerifier(bad); ok {
			t.Errorf("%q was taken: %+v", bad, got)
		}
	}
}
