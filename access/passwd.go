package access

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"tidegate/config"
)

const usersHeader = `# Users of Tidegate: NAME = "HASH". Written by "tidegate passwd NAME"; remove a line to remove a user.
`

// Method is a way to log in that a password is prepared for, beside the ordinary one.
type Method string

// SCRAM is SCRAM-SHA-256, with which a device proves that it knows the password without sending it.
const SCRAM Method = "scram"

// SetPassword adds name to the users file at path, or changes its password, and reports whether it was added. The password is
// prepared for the methods also, and for those that the user had. The file is made when it is not there, and replaced as a
// whole, so that a reader never sees half of it; comments stay. An existing file keeps its owner and group and loses nothing but
// what others may do with it; a new one is readable by this user alone. One at a time: whoever calls it sees to it that nobody
// else writes the file meanwhile.
func SetPassword(path, name string, password []byte, also ...Method) (added bool, err error) {
	return setPassword(path, name, password, affordableCost(), slices.Contains(also, SCRAM))
}

func setPassword(path, name string, password []byte, cost int, scram bool) (added bool, err error) {
	if err := config.ValidUser(name); err != nil {
		return false, fmt.Errorf("access: %w", err)
	}
	u := config.User{Name: name}
	if u.Hash, err = hash(password, cost); err != nil {
		return false, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // replace the file, not the link to it
	}
	old, err := os.ReadFile(path)
	if isMissing(err) {
		old, err = []byte(usersHeader), nil
	}
	if err != nil {
		return false, fmt.Errorf("access: read users: %w", err)
	}
	before, err := config.ParseUsers(path, old)
	if err != nil {
		return false, fmt.Errorf("access: the users file is damaged, nothing was changed: %w", err)
	}
	had := slices.ContainsFunc(before, func(b config.User) bool { return b.Name == name && b.SCRAM != "" })
	if scram || had {
		if u.SCRAM, err = verifier(name, password); err != nil {
			return false, err
		}
	}
	next, added, err := edit(path, old, before, u)
	if err != nil {
		return false, err
	}
	return added, replaceFile(path, next)
}

// edit sets the line of user in data and makes sure that this changed nothing else.
func edit(path string, data []byte, before []config.User, user config.User) (next []byte, added bool, err error) {
	line := fmt.Sprintf("%s = %q", strconv.Quote(user.Name), user.Hash)
	if user.SCRAM != "" {
		line = fmt.Sprintf("%s = { bcrypt = %q, scram = %q }", strconv.Quote(user.Name), user.Hash, user.SCRAM)
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	added = true
	for _, u := range before {
		if u.Name == user.Name {
			lines[u.At.Line-1], added = []byte(line), false
		}
	}
	if added {
		lines = append(lines, []byte(line))
	}
	next = append(bytes.Join(lines, []byte("\n")), '\n')
	after, err := config.ParseUsers(path, next)
	if err != nil || !onlyChanged(before, after, user) {
		return nil, false, fmt.Errorf("access: %s is laid out in an unusual way, nothing was changed: put one user on each line", path)
	}
	return next, added, nil
}

// onlyChanged reports whether after is before with that user set.
func onlyChanged(before, after []config.User, user config.User) bool {
	want := map[string]config.User{}
	for _, u := range append(slices.Clone(before), user) {
		want[u.Name] = u
	}
	for _, u := range after {
		if w := want[u.Name]; w.Hash != u.Hash || w.SCRAM != u.SCRAM {
			return false
		}
	}
	return len(after) == len(want)
}

// replaceFile writes data beside path and renames it over path once it is on disk.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".users-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("access: write users: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("access: write users: %w", err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = likeOld(f, path)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// likeOld gives f the owner and mode of the file it replaces, but nothing for others.
func likeOld(f *os.File, path string) error {
	info, err := os.Stat(path)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return f.Chmod(info.Mode().Perm()&0o660 | 0o600)
}

// syncFolder makes a rename in the folder durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
