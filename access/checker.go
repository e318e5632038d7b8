package access

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/config"
	"tidegate/message"
)

// Checker answers who may connect and do what. It is safe for concurrent use.
type Checker struct {
	logins   *logins
	lockouts lockouts
	seed     maphash.Seed // of credentials
	state    atomic.Pointer[state]
	mu       sync.Mutex // serializes changes of state
}

// state is what a configuration and the users file say, swapped as a whole.
type state struct {
	users     *users
	usersFile string
	rules     Rules
}

// New returns a Checker for the [auth] section of a valid configuration. It reads the users file.
func New(c config.Auth) (*Checker, error) {
	k := &Checker{logins: newLogins(), seed: maphash.MakeSeed()}
	commit, err := k.Prepare(c)
	if err != nil {
		return nil, err
	}
	commit()
	return k, nil
}

// Prepare reads what a new configuration asks for; commit swaps it in. Without commit nothing changes.
func (k *Checker) Prepare(c config.Auth) (commit func(), err error) {
	u, err := loadUsers(c.UsersFile)
	if err != nil {
		return nil, err
	}
	if old := k.state.Load(); old != nil {
		u.keepSecret(old.users)
	}
	next := &state{users: u, usersFile: c.UsersFile, rules: NewRules(c.Rules)}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.state.Store(next)
		k.lockouts.clear()
	}, nil
}

// Reload reads the users file again when it changed. On an error the users stay as they were. What that means for clients that
// are connected is for those who hold the connections, see Credential.
func (k *Checker) Reload() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.state.Load()
	if old.usersFile == "" {
		return false, nil
	}
	now, err := stampOf(old.usersFile)
	if err != nil {
		return false, fmt.Errorf("access: read users: %w", err)
	}
	if now.equal(old.users.stamp) {
		return false, nil
	}
	u, err := loadUsers(old.usersFile)
	if err != nil {
		return false, err
	}
	u.keepSecret(old.users)
	k.state.Store(&state{users: u, usersFile: old.usersFile, rules: old.rules})
	k.lockouts.clear()
	return true, nil
}

// Credential tells one password of a user from another without telling what it is; 0: there is no such user. Who logged in
// while it was another one, would have to log in again.
func (k *Checker) Credential(user string) uint64 {
	hash, ok := k.state.Load().users.hashes[user]
	if !ok {
		return 0
	}
	return max(maphash.Bytes(k.seed, hash), 1)
}

// Login is how a client says who it is.
type Login struct {
	User     string
	Password []byte
	Client   string     // client identifier
	From     netip.Addr // source address; the zero value where there is none
	// Anonymous says that clients without a user name are admitted where it came in.
	Anonymous bool
}

// Authenticate returns who the client is. An error wraps message.ErrNotAllowed, or message.ErrBusy when the same login may be
// tried later: too many logins wait, or too many of this user and address failed (ErrLocked). It may take as long as hashing a
// password, plus the wait for others, so it is called from the client's own goroutine.
//
// A wrong password, an unknown user and a user without a password take the same time and get the same error, so that names
// cannot be guessed one by one.
func (k *Checker) Authenticate(l Login) (Identity, error) {
	id := Identity{User: l.User, Client: l.Client}
	if l.User == "" {
		if !l.Anonymous {
			return Identity{}, fmt.Errorf("log in without a user name: %w", message.ErrNotAllowed)
		}
		return id, nil
	}
	u := k.state.Load().users
	hash, known := u.hashes[l.User]
	if !known {
		hash = u.unknown
	}
	if len(u.hashes) == 0 {
		return Identity{}, fmt.Errorf("log in: %w", message.ErrNotAllowed) // there is no name to be guessed
	}
	by := attemptOf(l.From, l.User)
	wait := func() time.Duration { return k.lockouts.wait(by, time.Now()) }
	switch k.logins.check(l, hash, u.unknown, known, wait) {
	case good:
		k.lockouts.passed(by)
		return id, nil
	case busy:
		return Identity{}, fmt.Errorf("log in: too many others are waiting: %w", message.ErrBusy)
	case locked:
		return Identity{}, lockedError(wait())
	default:
		k.lockouts.failed(by, time.Now())
		return Identity{}, fmt.Errorf("log in: %w", message.ErrNotAllowed)
	}
}

// Allow reports whether id may publish to, or have delivered, the topic name. An invalid name is never allowed.
func (k *Checker) Allow(id Identity, action Action, topic string) bool {
	if action == Subscribe {
		return k.AllowFilter(id, topic)
	}
	if message.ValidName(topic) != nil {
		return false
	}
	allowed, _, _ := k.state.Load().rules.decide(id, action, topic)
	return allowed
}

// AllowFilter reports whether id may subscribe to filter, which may be a shared subscription. It says nothing about single
// topics below the filter: a rule may deny some of them, so every delivery is asked for with Allow as well.
func (k *Checker) AllowFilter(id Identity, filter string) bool {
	if message.ValidFilter(filter) != nil {
		return false
	}
	allowed, _, _ := k.state.Load().rules.decide(id, Subscribe, filter)
	return allowed
}

// Explain says what the rules decide and why.
func (k *Checker) Explain(id Identity, action Action, topic string) Decision {
	return k.state.Load().rules.Explain(id, action, topic)
}
