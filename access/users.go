package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/crypto/bcrypt"

	"tidegate/config"
)

// Passwords are hashed with bcrypt. Its 4 KiB of working memory keep the gateway small while devices log in; argon2id at its
// recommended least, 7 MiB for each login, would make the resident memory of an idle gateway a third larger. Cost 10 takes
// about 70 ms on a current core and a few hundred on a Raspberry Pi 3; each step doubles that. How dear a new password is
// depends on the machine it is made on, see affordableCost.
const (
	hashCost = 10 // the least
	dearCost = 12 // the most
	// hashTime is how long one hash may take where that allows more than the least: after a restart every device's is computed.
	hashTime = 100 * time.Millisecond
	// maxPassword is what bcrypt looks at; it is refused rather than cut.
	maxPassword = 72
	// maxUsersFile bounds what is read.
	maxUsersFile = 16 << 20
)

// users is one state of the users file.
type users struct {
	hashes    map[string][]byte
	verifiers map[string]config.Verifier // for SCRAM
	secret    []byte                     // see secretOf
	// unknown is compared for a name that is not there, so that it takes as long as a wrong password.
	unknown []byte
	stamp   stamp
}

// stamp tells one state of a file from another without reading it.
type stamp struct {
	size     int64
	modified time.Time
	file     os.FileInfo
}

func (s stamp) equal(o stamp) bool {
	return s.size == o.size && s.modified.Equal(o.modified) && (s.file == nil) == (o.file == nil) &&
		(s.file == nil || os.SameFile(s.file, o.file))
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.Size(), info.ModTime(), info}, nil
}

// loadUsers reads the users file; an empty path stands for no users.
func loadUsers(path string) (*users, error) {
	u := &users{hashes: map[string][]byte{}, verifiers: map[string]config.Verifier{}}
	if path == "" {
		return u, nil
	}
	var err error
	if u.stamp, err = stampOf(path); err != nil {
		return nil, fmt.Errorf("access: read users: %w", err)
	}
	if u.stamp.size > maxUsersFile {
		return nil, fmt.Errorf("access: read users: %s has %d bytes, at most %d are read", path, u.stamp.size, maxUsersFile)
	}
	list, err := config.LoadUsers(path)
	if err != nil {
		return nil, fmt.Errorf("access: read users: %w", err)
	}
	dearest := hashCost
	for i, user := range list {
		cost, err := bcrypt.Cost([]byte(user.Hash))
		if err != nil {
			return nil, fmt.Errorf("access: read users: %s: %s: %w", user.At, user.Name, err)
		}
		if i == 0 || cost > dearest {
			dearest = cost
		}
		u.hashes[user.Name] = []byte(user.Hash)
		if v, ok := config.ParseVerifier(user.SCRAM); ok {
			u.verifiers[user.Name] = v
		}
	}
	u.secret = secretOf(list)
	u.unknown = unknownHash(dearest)
	return u, nil
}

// unknownHash returns a well-formed hash of the given cost that nobody knows a password for: salt and sum are the digits of
// no computation at all.
func unknownHash(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, "TidegateUnknownUserXO.TidegateHasNoPasswordForThisNam")
}

// hash returns the password as the users file keeps it.
func hash(password []byte, cost int) (string, error) {
	switch {
	case len(password) == 0:
		return "", errors.New("access: the password is empty")
	case len(password) > maxPassword:
		return "", fmt.Errorf("access: the password has %d bytes, at most %d count", len(password), maxPassword)
	}
	h, err := bcrypt.GenerateFromPassword(password, cost)
	if err != nil {
		return "", fmt.Errorf("access: hash the password: %w", err)
	}
	return string(h), nil
}

// affordableCost returns the highest cost at which a hash takes no longer than hashTime here.
func affordableCost() int {
	const probe = 7 // an eighth of the least: quick also where that is slow
	begin := time.Now()
	_, _ = bcrypt.GenerateFromPassword([]byte("how fast is this machine"), probe)
	took := time.Since(begin) << (hashCost - probe)
	cost := hashCost
	for ; cost < dearCost && 2*took <= hashTime; cost++ {
		took *= 2
	}
	return cost
}

// verify reports whether password belongs to hash. It takes the time of one hash whatever the password.
func verify(hash, password []byte) bool {
	if len(password) > maxPassword {
		_ = bcrypt.CompareHashAndPassword(hash, password[:maxPassword])
		return false
	}
	return bcrypt.CompareHashAndPassword(hash, password) == nil
}

// missing returns the costs at which to hash once more, so that it all takes as long as one hash at the cost of like: each step doubles it.
// Passwords that were set on different machines have different costs, which must not tell who is there.
func missing(hash, like []byte) (costs []int) {
	from, err := bcrypt.Cost(hash)
	to, e := bcrypt.Cost(like)
	if err != nil || e != nil {
		return nil
	}
	for ; from < to; from++ {
		costs = append(costs, from)
	}
	return costs
}

// isMissing reports whether err says that a file is not there.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
