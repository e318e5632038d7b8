package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"tidegate/config"
)

func TestSetPassword(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users.toml")
	set := func(name, password string) (bool, error) {
		return setPassword(path, name, []byte(password), bcrypt.MinCost, false)
	}

	if added, err := set("press-1", "one"); !added || err != nil {
		t.Fatal(added, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if added, err := set("hmi", "two"); !added || err != nil {
		t.Fatal(added, err)
	}

	// A person's comments and order stay.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(text), `"press-1"`, "\n# hall 3\n\"press-1\"", 1)
	if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if added, err := set("press-1", "three"); added || err != nil {
		t.Fatal(added, err)
	}
	if info, err = os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(after), "\n\n# hall 3\n\"press-1\" = ") || !strings.HasPrefix(string(after), "# Users") {
		t.Errorf("%s %v", after, err)
	}

	users, err := config.LoadUsers(path)
	if err != nil || len(users) != 2 || users[0].Name != "press-1" {
		t.Fatal(users, err)
	}
	for i, password := range []string{"three", "two"} {
		if !verify([]byte(users[i].Hash), []byte(password)) || verify([]byte(users[i].Hash), []byte("one")) {
			t.Errorf("password of %s", users[i].Name)
		}
	}
	if strings.Contains(string(after), "three") {
		t.Error("the file holds a password")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestSetPasswordRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, password, file, want string }{
		{"", "x", "", "1 to 128 bytes"},
		{"anonymous", "x", "", "clients without a name"},
		{"a/b", "x", "", "holds one of"},
		{"a+", "x", "", "holds one of"},
		{"a*", "x", "", "holds one of"},
		{"a\n", "x", "", "holds one of"},
		{"a", "", "", "the password is empty"},
		{"a", strings.Repeat("x", 73), "", "has 73 bytes, at most 72"},
		{"a", "x", "damaged", "nothing was changed"},
		{"a", "x", "[section]\n", "nothing was changed"},
		{"a", "x", "b = '''" + cheap(t, "x") + "'''; c = 1", "nothing was changed"},
		{"b", "x", "b = '''\n" + cheap(t, "x") + "'''\n", "laid out in an unusual way"},
	} {
		write(c.file)
		_, err := setPassword(path, c.name, []byte(c.password), bcrypt.MinCost, false)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in %q: %v", c.name, c.file, err)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != c.file {
			t.Errorf("%q in %q: the file is now %q", c.name, c.file, after)
		}
	}
	if _, err := setPassword(filepath.Join(dir, "missing", "users.toml"), "a", []byte("x"), bcrypt.MinCost, false); err == nil {
		t.Error("wrote into a folder that is not there")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestSetPasswordOddFiles: names that want quotes, a file that does not end with a line, and one behind a link.
func TestSetPasswordOddFiles(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "real.toml"), filepath.Join(dir, "users.toml")
	if err := os.WriteFile(path, []byte("hmi = \""+cheap(t, "x")+"\""), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Jörg Meier", `quote"d`, "dot.ted", `back\slash`, "hmi"} {
		if _, err := setPassword(link, name, []byte("word"), bcrypt.MinCost, false); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	users, err := config.LoadUsers(path)
	if err != nil || len(users) != 5 || users[1].Name != "Jörg Meier" || users[4].Name != `back\slash` {
		t.Errorf("%+v %v", users, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced by a file")
	}
}

// FuzzEdit: whatever the users file looks like, setting a password either changes nothing or that one user alone.
func FuzzEdit(f *testing.F) {
	hash := cheap(f, "x")
	scram, err := verifier("x", []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a = { bcrypt = '"+hash+"', scram = '"+scram+"' }\nb.bcrypt = '"+hash+"'", "b")
	for _, text := range []string{"", "a = '" + hash + "'", "# c\n\"b\" = \"" + hash + "\"\n\n", "a = '''\n" + hash + "'''\n", "[t]\n", "a.b = 1"} {
		f.Add(text, "a")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		if config.ValidUser(name) != nil {
			return
		}
		before, err := config.ParseUsers("f", []byte(text))
		if err != nil {
			return
		}
		user := config.User{Name: name, Hash: hash}
		if len(name)%2 == 0 {
			user.SCRAM = scram
		}
		next, added, err := edit("f", []byte(text), before, user)
		if err != nil {
			return
		}
		after, err := config.ParseUsers("f", next)
		if err != nil || added != (len(after) == len(before)+1) || !onlyChanged(before, after, user) {
			t.Errorf("%q became %q: %v", text, next, err)
		}
	})
}
