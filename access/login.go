package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net/netip"
	"runtime"
	"sync"
	"time"
)

// Bounds of what logins may cost.
const (
	// maxWaiting bounds how many logins wait for a turn to hash; more are told to come back.
	maxWaiting = 256
	// shareOfOne is the part of maxWaiting that logins from one source address may take: guessers at one do not keep devices at
	// others waiting.
	shareOfOne = 4
	// maxRemembered bounds each of the two memories of logins.
	maxRemembered = 8192
)

// logins hashes passwords, a bounded number at a time, and remembers outcomes, so that neither a storm of reconnects after
// a power cut nor a device that repeats a wrong password for ever takes the machine away from messages.
//
// What is remembered is an HMAC with a key that only this process has, of name, stored hash and password together: a changed
// password is another HMAC, so nothing remembered outlives it.
type logins struct {
	key   [32]byte
	turns chan struct{} // one value for each hash being computed
	limit int           // of waiting

	mu      sync.Mutex         // guards what follows; never held while hashing
	waiting int                // logins that hash or wait for their turn
	from    map[netip.Addr]int // those of each source address that is known
	good    map[tag]struct{}
	refused map[tag]struct{}
}

// tag is the HMAC of one login.
type tag [sha256.Size]byte

// outcome is what is known about a login.
type outcome int

const (
	unknown outcome = iota
	good
	refused
	busy
	locked
)

// newLogins uses up to half of the processors for hashing.
func newLogins() *logins {
	l := &logins{
		turns:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		limit:   maxWaiting,
		from:    map[netip.Addr]int{},
		good:    map[tag]struct{}{},
		refused: map[tag]struct{}{},
	}
	_, _ = rand.Read(l.key[:]) // never fails
	return l
}

// check reports whether the password of g belongs to hash. A refusal takes as long as one by like, a hash of the highest cost. A login that
// is remembered costs no hash; at most limit others wait
// for their turn, beyond that the answer is busy. While wait says that this login has to wait nothing is looked at: not even
// what is remembered, which would tell a guesser at once when a guess is right.
func (l *logins) check(g Login, hash, like []byte, known bool, wait func() time.Duration) outcome {
	if wait() > 0 {
		return locked
	}
	t := l.tag(g.User, hash, g.Password)
	if o := l.recall(t); o != unknown {
		return o
	}
	if !l.enter(g.From) {
		return busy
	}
	defer l.leave(g.From)
	l.turns <- struct{}{}
	defer func() { <-l.turns }()
	if wait() > 0 {
		return locked // others of the same guesser were first
	}
	if o := l.recall(t); o != unknown {
		return o // another client of the same user was first
	}
	o := refused
	if verify(hash, g.Password) && known {
		o = good
	} else {
		for _, cost := range missing(hash, like) {
			verify(unknownHash(cost), g.Password)
		}
	}
	l.remember(t, o)
	return o
}

// enter counts a login in that is going to wait, and reports whether it may.
func (l *logins) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting >= l.limit || from.IsValid() && l.from[from] >= max(1, l.limit/shareOfOne) {
		return false
	}
	l.waiting++
	if from.IsValid() {
		l.from[from]++
	}
	return true
}

func (l *logins) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	if l.from[from]--; l.from[from] <= 0 {
		delete(l.from, from)
	}
}

func (l *logins) tag(user string, hash, password []byte) tag {
	h := hmac.New(sha256.New, l.key[:])
	for _, part := range [][]byte{[]byte(user), hash} {
		n := len(part)
		h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		h.Write(part)
	}
	h.Write(password)
	return tag(h.Sum(nil))
}

func (l *logins) recall(t tag) outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.good[t]; ok {
		return good
	}
	if _, ok := l.refused[t]; ok {
		return refused
	}
	return unknown
}

func (l *logins) remember(t tag, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	memory := l.good
	if o == refused {
		memory = l.refused
	}
	if len(memory) >= maxRemembered {
		for old := range memory { // any one: forgetting costs a hash, not a login
			delete(memory, old)
			break
		}
	}
	memory[t] = struct{}{}
}
