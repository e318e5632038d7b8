package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what logins may cost.
const (
	// maxWaiting bounds how many logins wait for a turn to hash; more are told to come back.
	maxWaiting = 256
	// maxRemembered bounds each of the two memories of logins.
	maxRemembered = 8192
)

// logins hashes passwords, a bounded number at a time, and remembers outcomes, so that neither a storm of reconnects after
// a power cut nor a device that repeats a wrong password for ever takes the machine away from messages.
//
// What is remembered is an HMAC with a key that only this process has, of name, stored hash and password together: a changed
// password is another HMAC, so nothing remembered outlives it.
type logins struct {
	key     [32]byte
	turns   chan struct{} // one value for each hash being computed
	waiting atomic.Int64  // logins that hash or wait for their turn
	limit   int64         // of waiting

	mu      sync.Mutex // guards the two memories; never held while hashing
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
		good:    map[tag]struct{}{},
		refused: map[tag]struct{}{},
	}
	_, _ = rand.Read(l.key[:]) // never fails
	return l
}

// check reports whether password belongs to hash. A login that is remembered costs no hash; at most limit others wait
// for their turn, beyond that the answer is busy. While wait says that this login has to wait nothing is looked at: not even
// what is remembered, which would tell a guesser at once when a guess is right.
func (l *logins) check(user string, hash, password []byte, known bool, wait func() time.Duration) outcome {
	if wait() > 0 {
		return locked
	}
	t := l.tag(user, hash, password)
	if o := l.recall(t); o != unknown {
		return o
	}
	if l.waiting.Add(1) > l.limit {
		l.waiting.Add(-1)
		return busy
	}
	l.turns <- struct{}{}
	defer func() { <-l.turns; l.waiting.Add(-1) }()
	if wait() > 0 {
		return locked // others of the same guesser were first
	}
	if o := l.recall(t); o != unknown {
		return o // another client of the same user was first
	}
	o := refused
	if verify(hash, password) && known {
		o = good
	}
	l.remember(t, o)
	return o
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
