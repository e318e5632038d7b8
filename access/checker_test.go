package access

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"tidegate/config"
	"tidegate/message"
)

// cheap is a hash that tests can afford many of.
func cheap(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// usersFile writes a users file of name and hash pairs.
func usersFile(t testing.TB, pairs ...string) string {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%q = %q\n", pairs[i], pairs[i+1])
	}
	path := filepath.Join(t.TempDir(), "users.toml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAuthenticate(t *testing.T) {
	path := usersFile(t, "a", cheap(t, "one"), "b", cheap(t, "two"))
	k, err := New(config.Auth{UsersFile: path})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from memory
		for _, c := range []struct {
			user, password string
			anonymous, ok  bool
		}{
			{"a", "one", false, true},
			{"a", "one", true, true},
			{"b", "two", false, true},
			{"a", "two", false, false},
			{"a", "", false, false},
			{"a", "one ", false, false},
			{"a", strings.Repeat("x", 73), false, false},
			{"c", "one", false, false},
			{"c", "one", true, false},
			{"anonymous", "one", true, false},
			{"", "", false, false},
			{"", "", true, true},
			{"", "word", true, true},
		} {
			id, err := k.Authenticate(Login{User: c.user, Password: []byte(c.password), Client: "client", Anonymous: c.anonymous})
			switch {
			case c.ok && (err != nil || id != Identity{c.user, "client"}):
				t.Errorf("%+v: %+v %v", c, id, err)
			case !c.ok && (!errors.Is(err, message.ErrNotAllowed) || id != Identity{}):
				t.Errorf("%+v: %+v %v", c, id, err)
			}
		}
	}
	empty, err := New(config.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.Authenticate(Login{User: "a", Password: []byte("one"), Client: "c", Anonymous: true}); !errors.Is(err, message.ErrNotAllowed) {
		t.Errorf("without users: %v", err)
	}
}

// TestSameErrorAndCost: an unknown user is told the same as one with a wrong password, and the same work is done for both.
func TestSameErrorAndCost(t *testing.T) {
	u, err := loadUsers(usersFile(t, "a", cheap(t, "one")))
	if err != nil {
		t.Fatal(err)
	}
	if cost, err := bcrypt.Cost(u.unknown); err != nil || cost != bcrypt.MinCost {
		t.Errorf("an unknown user costs %d, the users %d (%v)", cost, bcrypt.MinCost, err)
	}
	if err := bcrypt.CompareHashAndPassword(u.unknown, []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("the comparison for an unknown user does no work: %v", err)
	}
	k, err := New(config.Auth{UsersFile: usersFile(t, "a", cheap(t, "one"))})
	if err != nil {
		t.Fatal(err)
	}
	_, wrong := k.Authenticate(Login{User: "a", Password: []byte("x"), Client: "c"})
	_, unknown := k.Authenticate(Login{User: "b", Password: []byte("x"), Client: "c"})
	if wrong == nil || unknown == nil || wrong.Error() != unknown.Error() {
		t.Errorf("%v, %v", wrong, unknown)
	}
	if len(k.logins.refused) != 2 {
		t.Errorf("%d of the two were compared", len(k.logins.refused))
	}
}

// TestSameCostOfAllUsers: a wrong password of a user whose hash was made on a slower machine is as much work as that of one who is not there.
func TestSameCostOfAllUsers(t *testing.T) {
	hashAt := func(cost int) string {
		h, err := bcrypt.GenerateFromPassword([]byte("one"), cost)
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	u, err := loadUsers(usersFile(t, "a", hashAt(4), "b", hashAt(7), "c", hashAt(5)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		cost, err := bcrypt.Cost(u.hashes[name])
		if err != nil {
			t.Fatal(err)
		}
		work := 1 << cost
		for _, c := range missing(u.hashes[name], u.unknown) {
			if got, err := bcrypt.Cost(unknownHash(c)); err != nil || got != c {
				t.Fatalf("%d, %v, want cost %d", got, err, c)
			}
			work += 1 << c
		}
		if work != 1<<7 {
			t.Errorf("%s: %d rounds, somebody unknown %d", name, work, 1<<7)
		}
	}
	if more := missing(u.unknown, u.unknown); more != nil {
		t.Errorf("somebody unknown: %v more", more)
	}
}

// TestMemoryOfLogins: what was answered once costs no hash again, and a password that changed is asked for anew.
func TestMemoryOfLogins(t *testing.T) {
	l := newLogins()
	hash := []byte(cheap(t, "one"))
	for _, c := range []struct {
		password string
		want     outcome
	}{{"one", good}, {"two", refused}} {
		if got := l.check(Login{User: "a", Password: []byte(c.password)}, hash, hash, true, noWait); got != c.want {
			t.Errorf("%s: %d", c.password, got)
		}
		if got := l.recall(l.tag("a", hash, []byte(c.password))); got != c.want {
			t.Errorf("%s is remembered as %d", c.password, got)
		}
	}
	for _, other := range []tag{
		l.tag("b", hash, []byte("one")),
		l.tag("a", []byte(cheap(t, "one")), []byte("one")),
		l.tag("a", hash, []byte("one1")),
		newLogins().tag("a", hash, []byte("one")),
	} {
		if l.recall(other) != unknown {
			t.Error("another login has the same tag")
		}
	}
	if got := l.check(Login{User: "a", Password: []byte("three")}, hash, hash, false, noWait); got != refused {
		t.Errorf("an unknown user: %d", got)
	}
	for i := range 3 * maxRemembered {
		l.remember(tag{byte(i), byte(i >> 8), byte(i >> 16)}, refused)
	}
	if n := len(l.refused); n != maxRemembered {
		t.Errorf("%d refusals are remembered", n)
	}
}

// TestTooManyLogins: beyond the bound of waiting logins the answer is busy at once, and remembered logins still pass.
func TestTooManyLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := New(config.Auth{UsersFile: usersFile(t, "a", cheap(t, "one"))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Authenticate(Login{User: "a", Password: []byte("one"), Client: "c"}); err != nil {
			t.Fatal(err)
		}
		const limit = 5
		k.logins.limit = limit
		for range cap(k.logins.turns) {
			k.logins.turns <- struct{}{} // somebody else is hashing
		}
		var waiting sync.WaitGroup
		for i := range limit {
			waiting.Go(func() {
				if _, err := k.Authenticate(Login{User: "a", Password: fmt.Appendf(nil, "wrong %d", i), Client: "c"}); !errors.Is(err, message.ErrNotAllowed) {
					t.Errorf("waited for nothing: %v", err)
				}
			})
		}
		synctest.Wait() // all of them wait for their turn
		if n := k.logins.count(); n != limit {
			t.Fatalf("%d are waiting, want %d", n, limit)
		}
		if _, err := k.Authenticate(Login{User: "a", Password: []byte("one more"), Client: "c"}); !errors.Is(err, message.ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		if _, err := k.Authenticate(Login{User: "a", Password: []byte("one"), Client: "c"}); err != nil {
			t.Errorf("a remembered login: %v", err)
		}
		for range cap(k.logins.turns) {
			<-k.logins.turns
		}
		waiting.Wait()
		if n := k.logins.count(); n != 0 {
			t.Errorf("%d are still waiting", n)
		}
	})
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.toml")
	if _, err := setPassword(path, "a", []byte("one"), bcrypt.MinCost, false); err != nil {
		t.Fatal(err)
	}
	k, err := New(config.Auth{UsersFile: path, Rules: agreed()})
	if err != nil {
		t.Fatal(err)
	}
	login := func(user, password string) bool {
		_, err := k.Authenticate(Login{User: user, Password: []byte(password), Client: "c"})
		return err == nil
	}
	if !login("a", "one") || login("b", "two") || login("a", "three") {
		t.Error("before the change")
	}
	if changed, err := k.Reload(); changed || err != nil {
		t.Errorf("nothing changed: %t %v", changed, err)
	}
	for user, password := range map[string]string{"a": "three", "b": "two"} {
		if _, err := setPassword(path, user, []byte(password), bcrypt.MinCost, false); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := k.Reload(); !changed || err != nil {
		t.Errorf("the file changed: %t %v", changed, err)
	}
	if login("a", "one") || !login("b", "two") || !login("a", "three") {
		t.Error("after the change")
	}
	if k.Allow(Identity{"hmi", "c"}, Publish, "a") {
		t.Error("the rules are lost")
	}

	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Reload(); changed || err == nil || !login("b", "two") {
		t.Errorf("a damaged file: %t %v", changed, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Reload(); changed || err == nil || !login("b", "two") {
		t.Errorf("a missing file: %t %v", changed, err)
	}
	if _, err := New(config.Auth{UsersFile: path}); err == nil {
		t.Error("started without the users file")
	}
}

func TestPrepare(t *testing.T) {
	k, err := New(config.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Prepare(config.Auth{UsersFile: "/nowhere/users.toml"}); err == nil {
		t.Error("prepared without the users file")
	}
	commit, err := k.Prepare(config.Auth{UsersFile: usersFile(t, "a", cheap(t, "one")), Rules: agreed()})
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{"hmi", "c"}
	if !k.Allow(id, Publish, "x") {
		t.Error("prepared rules hold before commit")
	}
	commit()
	if k.Allow(id, Publish, "x") || !k.AllowFilter(id, "#") || k.Explain(id, Publish, "x").Rule != 1 {
		t.Error("rules do not hold after commit")
	}
	if _, err := k.Authenticate(Login{User: "a", Password: []byte("one"), Client: "c"}); err != nil {
		t.Error(err)
	}
	for _, topic := range []string{"", "a/#", "a\x00", "+"} {
		if k.Allow(Identity{"press-1", "c"}, Publish, topic) || k.Allow(Identity{"hmi", "c"}, Deliver, topic) {
			t.Errorf("%q is no topic name", topic)
		}
	}
	for _, filter := range []string{"", "a/#/b", "a+", "$share/g", "$share//a"} {
		if k.AllowFilter(Identity{"hmi", "c"}, filter) {
			t.Errorf("%q is no topic filter", filter)
		}
	}
}

func noWait() time.Duration { return 0 }

func (l *logins) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

// TestOneSourceTakesAShare: logins from one address leave room for those from others.
func TestOneSourceTakesAShare(t *testing.T) {
	l := newLogins()
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	n := 0
	for l.enter(here) {
		n++
	}
	if n != maxWaiting/shareOfOne || !l.enter(there) {
		t.Errorf("one address has %d places", n)
	}
	l.leave(here)
	if !l.enter(here) || l.enter(here) {
		t.Error("a place that became free is not one place")
	}
	for range n {
		l.leave(here)
	}
	l.leave(there)
	if len(l.from) != 0 || l.waiting != 0 {
		t.Errorf("%d addresses and %d logins are left", len(l.from), l.waiting)
	}
}
