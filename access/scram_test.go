package access

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xdg-go/scram"
	"golang.org/x/crypto/bcrypt"

	"tidegate/config"
	"tidegate/message"
)

var someAddress = netip.MustParseAddr("192.0.2.1")

// converse logs in by SCRAM as the library's client does.
func converse(t *testing.T, k *Checker, user, password, authz string) (string, error) {
	t.Helper()
	client, err := scram.SHA256.NewClient(user, password, authz)
	if err != nil {
		t.Fatal(err)
	}
	conv, e := client.NewConversation(), k.Exchange(someAddress)
	answer := []byte{}
	for {
		say, err := conv.Step(string(answer))
		if err != nil {
			t.Fatalf("the client does not believe the server: %v", err)
		}
		var who string
		if answer, who, err = e.Step([]byte(say)); err != nil {
			return "", err
		}
		if who != "" {
			if _, err := conv.Step(string(answer)); err != nil || !conv.Valid() {
				t.Errorf("the server did not prove that it knows the password: %v", err)
			}
			return who, nil
		}
	}
}

func scramUsers(t *testing.T) (*Checker, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.toml")
	for name, also := range map[string]bool{"ann": true, "bob": false} {
		if _, err := setPassword(path, name, []byte("word of "+name), bcrypt.MinCost, also); err != nil {
			t.Fatal(err)
		}
	}
	k, err := New(config.Auth{UsersFile: path})
	if err != nil {
		t.Fatal(err)
	}
	return k, path
}

func TestSCRAM(t *testing.T) {
	k, path := scramUsers(t)
	if user, err := converse(t, k, "ann", "word of ann", ""); user != "ann" || err != nil {
		t.Errorf("%q, %v", user, err)
	}
	if user, err := converse(t, k, "ann", "word of ann", "ann"); user != "ann" || err != nil {
		t.Errorf("as oneself: %q, %v", user, err)
	}
	_, wrong := converse(t, k, "ann", "wrong", "")
	_, without := converse(t, k, "bob", "word of bob", "")
	_, unknown := converse(t, k, "nobody", "word", "")
	for _, err := range []error{wrong, without, unknown} {
		if !errors.Is(err, message.ErrNotAllowed) || err.Error() != wrong.Error() {
			t.Errorf("%v, and %v", err, wrong)
		}
	}
	if _, err := converse(t, k, "ann", "word of ann", "bob"); !errors.Is(err, message.ErrNotAllowed) {
		t.Errorf("as somebody else: %v", err)
	}
	// The ordinary way goes on working, and a changed password changes both.
	if _, err := k.Authenticate(Login{User: "ann", Password: []byte("word of ann")}); err != nil {
		t.Error(err)
	}
	if _, err := setPassword(path, "ann", []byte("new"), bcrypt.MinCost, false); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := converse(t, k, "ann", "word of ann", ""); err == nil {
		t.Error("the old password is still good")
	}
	if user, err := converse(t, k, "ann", "new", ""); user != "ann" || err != nil {
		t.Errorf("the new password: %q, %v", user, err)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "word of") {
		t.Errorf("%s, %v", text, err)
	}
}

// TestSCRAMOfNobody: a name that is not there has a salt like others, the same one each time.
func TestSCRAMOfNobody(t *testing.T) {
	k, path := scramUsers(t)
	salt := func(k *Checker, user string) string {
		t.Helper()
		answer, _, err := k.Exchange(someAddress).Step([]byte("n,,n=" + user + ",r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(answer), ",")
		return rest
	}
	again, err := New(config.Auth{UsersFile: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"ann", "bob", "nobody"} {
		if a, b := salt(k, user), salt(again, user); a != b || len(a) != len(salt(k, "ann")) {
			t.Errorf("%s: %s, %s", user, a, b)
		}
	}
	if salt(k, "nobody") == salt(k, "nobody2") {
		t.Error("two names have one salt")
	}
}

func TestSCRAMLockout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := scramUsers(t)
		for range freeFailures {
			if _, err := converse(t, k, "ann", "wrong", ""); errors.Is(err, ErrLocked) {
				t.Fatal(err)
			}
		}
		if _, err := converse(t, k, "ann", "word of ann", ""); !errors.Is(err, ErrLocked) {
			t.Errorf("after %d failures: %v", freeFailures, err)
		}
		time.Sleep(firstWait)
		if _, err := converse(t, k, "ann", "word of ann", ""); err != nil {
			t.Error(err)
		}
	})
}

// FuzzSCRAM: whatever a stranger sends, nobody comes in without the password.
func FuzzSCRAM(f *testing.F) {
	path := filepath.Join(f.TempDir(), "users.toml")
	if _, err := setPassword(path, "ann", []byte("word"), bcrypt.MinCost, true); err != nil {
		f.Fatal(err)
	}
	k, err := New(config.Auth{UsersFile: path})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("n,,n=ann,r=abc", "c=biws,r=abc,p=AAAA")
	f.Add("y,a=b,n=ann,r=x", "")
	f.Add("p=tls-unique,,n=ann,r=x", "c=,r=,p=")
	f.Fuzz(func(t *testing.T, first, second string) {
		e := k.Exchange(netip.Addr{})
		for _, s := range []string{first, second, second} {
			if _, user, err := e.Step([]byte(s)); user != "" {
				t.Fatalf("%q came in", user)
			} else if err != nil && !errors.Is(err, message.ErrNotAllowed) && !errors.Is(err, message.ErrBusy) {
				t.Fatal(err)
			}
		}
	})
}

// TestSaltsOfNobodyStay: what is told of a user who is not there does not change with the users file, as what is told of a true one does not.
func TestSaltsOfNobodyStay(t *testing.T) {
	k, path := scramUsers(t)
	first := func(user string) string {
		answer, _, err := k.Exchange(someAddress).Step([]byte("n,,n=" + user + ",r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		_, salt, _ := strings.Cut(string(answer), ",")
		return salt
	}
	ann, nobody := first("ann"), first("nobody")
	if _, err := setPassword(path, "carl", []byte("word of carl"), bcrypt.MinCost, true); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if first("ann") != ann || first("nobody") != nobody {
		t.Errorf("somebody: %q, then %q; nobody: %q, then %q", ann, first("ann"), nobody, first("nobody"))
	}
	commit, err := k.Prepare(config.Auth{UsersFile: path})
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if first("nobody") != nobody {
		t.Error("after a reload of the configuration nobody has another salt")
	}
}

// TestSCRAMOverAChange: a login that began before the password was changed does not end with the old one, however long it was held open.
func TestSCRAMOverAChange(t *testing.T) {
	k, path := scramUsers(t)
	client, err := scram.SHA256.NewClient("ann", "word of ann", "")
	if err != nil {
		t.Fatal(err)
	}
	conv, e := client.NewConversation(), k.Exchange(someAddress)
	say, err := conv.Step("")
	if err != nil {
		t.Fatal(err)
	}
	answer, _, err := e.Step([]byte(say))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := setPassword(path, "ann", []byte("another word"), bcrypt.MinCost, true); err != nil {
		t.Fatal(err)
	}
	if changed, err := k.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if say, err = conv.Step(string(answer)); err != nil {
		t.Fatal(err)
	}
	if _, user, err := e.Step([]byte(say)); user != "" || !errors.Is(err, message.ErrNotAllowed) {
		t.Errorf("logged in as %q, %v", user, err)
	}
	if user, err := converse(t, k, "ann", "another word", ""); user != "ann" || err != nil {
		t.Errorf("with the new one: %q, %v", user, err)
	}
}
