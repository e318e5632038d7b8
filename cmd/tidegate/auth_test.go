package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidegate/access"
	"tidegate/config"
)

// TestPasswd adds users to a configuration whose users file does not exist yet and logs in with what it wrote.
func TestPasswd(t *testing.T) {
	t.Setenv("TIDEGATE_CONFIG", "")
	path := configFile(t, "[auth]\nusers_file = 'users.toml'\n")
	users := filepath.Join(filepath.Dir(path), "users.toml")
	if got, want := runCommand(cmdPasswd, "word\nmore\n", "press-1", "--config", path), (ran{0, "added press-1 in " + users + "\n", ""}); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if got, want := runCommand(cmdPasswd, "new word", "--config", path, "press-1"), (ran{0, "changed the password of press-1 in " + users + "\n", ""}); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if got := runCommand(cmdPasswd, "other word", "--scram", "press-2", "--config", path); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	list, err := config.LoadUsers(users)
	if err != nil || len(list) != 2 || list[0].SCRAM != "" || list[1].SCRAM == "" {
		t.Errorf("%+v, %v", list, err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	k, err := access.New(c.Auth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Authenticate(access.Login{User: "press-1", Password: []byte("new word"), Client: "c"}); err != nil {
		t.Error(err)
	}
	if _, err := k.Authenticate(access.Login{User: "press-1", Password: []byte("word"), Client: "c"}); err == nil {
		t.Error("the old password is still good")
	}
	if info, err := os.Stat(users); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	for _, c := range []struct {
		name, in string
		args     []string
		code     int
		text     string
	}{
		{"no name", "x\n", []string{"--config", path}, 2, "takes one user name"},
		{"two names", "x\n", []string{"a", "b", "--config", path}, 2, "takes one user name"},
		{"a name for a filter", "x\n", []string{"a/#", "--config", path}, 2, "holds one of"},
		{"no password", "\n", []string{"a", "--config", path}, 1, "the password is empty"},
		{"a password for ever", strings.Repeat("x", 73), []string{"a", "--config", path}, 1, "has 73 bytes, at most 72"},
		{"no users file", "x\n", []string{"a", "--config", configFile(t, "")}, 78, `names no users file; write users_file = "users.toml"`},
		{"a broken configuration", "x\n", []string{"a", "--config", configFile(t, "[auth")}, 78, "expected ']'"},
		{"no configuration", "x\n", []string{"a", "--config", path + "x"}, 78, "no such file"},
	} {
		if got := runCommand(cmdPasswd, c.in, c.args...); got.code != c.code || !strings.Contains(got.err, c.text) || got.out != "" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestAuth(t *testing.T) {
	t.Setenv("TIDEGATE_CONFIG", "")
	path := configFile(t, `[[auth.rule]]
user = "hmi"
deny_publish = ["#"]
subscribe = ["#"]
[[auth.rule]]
user = "press-*"
publish = ["plant/{user}/{client}/#"]
[[auth.rule]]
user = "anonymous"
subscribe = ["public/#"]
`)
	note := "tidegate: note: there is no users file, so nobody can log in by a name\n"
	for _, c := range []struct {
		args []string
		want ran
	}{
		{[]string{"test", "hmi", "publish", "a"}, ran{1, "denied: rule 1 (" + path + `:1, user = "hmi") denies publish to #` + "\n", note}},
		{[]string{"test", "hmi", "subscribe", "a/#"}, ran{0, "allowed: rule 1 (" + path + `:1, user = "hmi") allows subscribe to #` + "\n", note}},
		{[]string{"test", "press-1", "publish", "plant/press-1/c7/x", "--client", "c7"}, ran{0, "allowed: rule 2 (" + path + `:5, user = "press-*") allows publish to plant/{user}/{client}/#` + "\n", note}},
		{[]string{"test", "press-1", "publish", "plant/press-2/c7/x", "--client=c7"}, ran{1, "denied: no rule for this user names the topic\n", note}},
		{[]string{"test", "anonymous", "subscribe", "public/#"}, ran{0, "allowed: rule 3 (" + path + `:8, user = "anonymous") allows subscribe to public/#` + "\n", ""}},
		{[]string{"test", "anonymous", "publish", "public/x"}, ran{1, "denied: no rule for this user names the topic\n", ""}},
		{[]string{"test", "hmi", "write", "a"}, ran{2, "", "tidegate: \"write\" is nothing a client does here: write publish or subscribe\n"}},
	} {
		if got := runCommand(cmdAuth, "", append(c.args, "--config", path)...); got != c.want {
			t.Errorf("%v:\n got %+v\nwant %+v", c.args, got, c.want)
		}
	}
	for _, args := range [][]string{{}, {"test"}, {"test", "a", "publish"}, {"best", "a", "publish", "b"}, {"test", "a", "publish", "b", "c"}} {
		if got := runCommand(cmdAuth, "", args...); got.code != 2 || !strings.Contains(got.err, "usage: ") {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := runCommand(cmdAuth, "", "test", "a", "publish", "b", "--config", configFile(t, "x = 1")); got.code != 78 {
		t.Errorf("%+v", got)
	}
}
