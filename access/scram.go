package access

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/xdg-go/scram"

	"tidegate/config"
	"tidegate/message"
)

// scramIterations is how often the password is hashed for a verifier. The device has to do it too, which takes a small one
// about a second; a verifier is easier to guess from than a bcrypt hash, so only users who ask for it have one.
const scramIterations = 10_000

// saltBytes is the length of a salt.
const saltBytes = 16

// verifier prepares a password for SCRAM-SHA-256.
func verifier(name string, password []byte) (string, error) {
	client, err := scram.SHA256.NewClient(name, string(password), "")
	if err != nil {
		return "", fmt.Errorf("access: this password cannot be used with SCRAM: %w", err)
	}
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	c, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: scramIterations})
	if err != nil {
		return "", fmt.Errorf("access: prepare the password for SCRAM: %w", err)
	}
	return config.Verifier{Iterations: c.Iters, Salt: salt, StoredKey: c.StoredKey, ServerKey: c.ServerKey}.String(), nil
}

// Exchange is one login by SCRAM-SHA-256 (RFC 5802, RFC 7677): the client shows that it knows the password, and is shown that
// the server knows it too, and nobody who listens learns it. It is for one goroutine.
type Exchange struct {
	k     *Checker
	from  netip.Addr
	users *users
	conv  *scram.ServerConversation
	known bool
}

// Exchange begins a login of a client at that source address.
func (k *Checker) Exchange(from netip.Addr) *Exchange {
	e := &Exchange{k: k, from: from, users: k.state.Load().users}
	// The only error of NewServer is one that it does not have.
	server, _ := scram.SHA256.NewServer(e.lookUp)
	e.conv = server.NewConversation()
	return e
}

// errExchange says that what the client sent is no part of this exchange.
var errExchange = errors.New("what the client sent does not belong there")

// Step takes what the client sent and returns the answer. user is empty until the client has proved who it is; the answer then
// is the proof for the client. An error ends the exchange; it wraps message.ErrNotAllowed, or message.ErrBusy with ErrLocked. A
// user who is not there, one without a verifier and one with another password look the same.
func (e *Exchange) Step(data []byte) (answer []byte, user string, err error) {
	if e.conv.Done() {
		return nil, "", fmt.Errorf("log in: %w: %w", errExchange, message.ErrNotAllowed)
	}
	text, err := e.conv.Step(string(data))
	name := e.conv.Username()
	by := attemptOf(e.from, name)
	if wait := e.k.lockouts.wait(by, time.Now()); wait > 0 {
		return nil, "", lockedError(wait)
	}
	if z := e.conv.AuthzID(); err == nil && z != "" && z != name {
		err = errors.New("one user cannot act for another")
	}
	switch {
	case err != nil && !e.conv.Done(), err != nil && name == "":
		return nil, "", fmt.Errorf("log in: %w: %w", errExchange, message.ErrNotAllowed)
	case err != nil || e.conv.Done() && !(e.conv.Valid() && e.known && e.current(name)):
		e.k.lockouts.failed(by, time.Now())
		return nil, "", fmt.Errorf("log in: %w", message.ErrNotAllowed)
	case !e.conv.Done():
		return []byte(text), "", nil
	}
	e.k.lockouts.passed(by)
	return []byte(text), name, nil
}

// current reports whether the user is the same as when the exchange began: a password that was changed meanwhile, or taken away, is
// good no more.
func (e *Exchange) current(name string) bool {
	now := e.k.state.Load().users
	return now == e.users || bytes.Equal(now.hashes[name], e.users.hashes[name]) && now.verifiers[name].String() == e.users.verifiers[name].String()
}

// lookUp returns what is stored of a user; for one who is not there something that looks the same every time and fits no
// password.
func (e *Exchange) lookUp(name string) (scram.StoredCredentials, error) {
	v, ok := e.users.verifiers[name]
	if e.known = ok; !ok {
		v = e.users.unknownVerifier(name)
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(v.Salt), Iters: v.Iterations}, StoredKey: v.StoredKey, ServerKey: v.ServerKey,
	}, nil
}

// unknownVerifier makes up a verifier. Its salt hangs on the name and on what only the users file has, so that it is the same
// after a restart, as a true one is.
func (u *users) unknownVerifier(name string) config.Verifier {
	h := hmac.New(sha256.New, u.secret)
	h.Write([]byte(name))
	return config.Verifier{
		Iterations: scramIterations, Salt: h.Sum(nil)[:saltBytes], StoredKey: make([]byte, sha256.Size), ServerKey: make([]byte, sha256.Size),
	}
}

// keepSecret makes the salts of users who are not there the same as before: whoever sees one change with the users file would know that
// its user is not in it. Without users there was no secret.
func (u *users) keepSecret(before *users) {
	if len(before.hashes) > 0 {
		u.secret = before.secret
	}
}

// secretOf returns a key that only who can read the users knows.
func secretOf(list []config.User) []byte {
	var all []string
	for _, u := range list {
		all = append(all, u.Hash+u.SCRAM)
	}
	slices.Sort(all)
	h := sha256.New()
	for _, s := range all {
		h.Write([]byte(s))
	}
	return h.Sum(nil)
}
