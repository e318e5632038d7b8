package access

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"tidegate/config"
	"tidegate/message"
)

// TestLockout: whoever fails again and again has to wait, longer each time, and is not looked at meanwhile; the same user at
// another address, and another user at the same one, log in as ever.
func TestLockout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := usersFile(t, "a", cheap(t, "right"), "b", cheap(t, "right"))
		k, err := New(config.Auth{UsersFile: file})
		if err != nil {
			t.Fatal(err)
		}
		here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		login := func(user, password string, from netip.Addr) error {
			_, err := k.Authenticate(Login{User: user, Password: []byte(password), From: from})
			return err
		}
		wrong := func() {
			t.Helper()
			if err := login("a", "wrong", here); !errors.Is(err, message.ErrNotAllowed) || errors.Is(err, ErrLocked) {
				t.Fatalf("a failure: %v", err)
			}
		}
		for range freeFailures {
			wrong()
		}
		for wait := firstWait; wait < longestWait; wait *= 2 {
			for _, password := range []string{"right", "wrong"} {
				if err := login("a", password, here); !errors.Is(err, ErrLocked) || !errors.Is(err, message.ErrBusy) {
					t.Fatalf("%s during a wait of %v: %v", password, wait, err)
				}
			}
			if login("a", "right", there) != nil || login("b", "right", here) != nil {
				t.Fatal("others are locked out")
			}
			time.Sleep(wait - time.Millisecond)
			if err := login("a", "right", here); !errors.Is(err, ErrLocked) {
				t.Fatalf("before the end of %v: %v", wait, err)
			}
			time.Sleep(time.Millisecond)
			wrong()
		}
		time.Sleep(longestWait)
		if err := login("a", "right", here); err != nil {
			t.Fatalf("after the longest wait: %v", err)
		}
		wrong()
		if err := login("a", "right", here); err != nil {
			t.Errorf("a success forgets what was before: %v", err)
		}

		// Another users file is another start.
		for range freeFailures {
			wrong()
		}
		if err := login("a", "right", here); !errors.Is(err, ErrLocked) {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, "a = %q\n", cheap(t, "new")), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Reload(); err != nil {
			t.Fatal(err)
		}
		if err := login("a", "new", here); err != nil {
			t.Errorf("after the password was changed: %v", err)
		}

		// Failures long ago do not add up.
		for range 3 * freeFailures {
			if err := login("a", "wrong", here); errors.Is(err, ErrLocked) {
				t.Fatal(err)
			}
			time.Sleep(forgetAfter + time.Second)
		}
	})
}

// TestLockoutTable: a stream of other names and addresses fills no memory, and does not wash out who failed often.
func TestLockoutTable(t *testing.T) {
	var l lockouts
	now := time.Now()
	often := attempt{netip.MustParseAddr("192.0.2.1"), "a"}
	for range 2 * freeFailures {
		l.failed(often, now)
	}
	for i := range 3 * maxLockouts {
		l.failed(attempt{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "a"}, now)
	}
	if n := len(l.entries); n > maxLockouts {
		t.Errorf("%d entries", n)
	}
	if l.wait(often, now) == 0 {
		t.Error("the worst was forgotten")
	}
	if a := attemptOf(netip.Addr{}, string(make([]byte, 60000))); len(a.user) > maxUser {
		t.Errorf("a name of %d bytes is kept", len(a.user))
	}
}

func TestAffordableCost(t *testing.T) {
	if cost := affordableCost(); cost < hashCost || cost > dearCost {
		t.Errorf("cost %d", cost)
	}
	if cost, err := bcrypt.Cost(unknownHash(dearCost)); err != nil || cost != dearCost {
		t.Errorf("%d, %v", cost, err)
	}
}
