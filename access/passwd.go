package access

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"tidegate/config"
)

const usersHeader = `# Users of Tidegate: NAME = "HASH". Written by "tidegate passwd NAME"; remove a line to remove a user.
`

// SetPassword adds name to the users file at path, or changes its password, and reports whether it was added. The file is
// made when it is not there, and replaced as a whole, so that a reader never sees half of it; comments stay. An existing file
// keeps its owner and group and loses nothing but what others may do with it; a new one is readable by this user alone.
func SetPassword(path, name string, password []byte) (added bool, err error) {
	return setPassword(path, name, password, affordableCost())
}

func setPassword(path, name string, password []byte, cost int) (added bool, err error) {
	if err := config.ValidUser(name); err != nil {
		return false, fmt.Errorf("access: %w", err)
	}
	h, err := hash(password, cost)
	if err != nil {
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
	next, added, err := edit(path, old, name, h)
	if err != nil {
		return false, err
	}
	return added, replaceFile(path, next)
}

// edit sets the line of name in data and makes sure that this changed nothing else.
func edit(path string, data []byte, name, hash string) (next []byte, added bool, err error) {
	before, err := config.ParseUsers(path, data)
	if err != nil {
		return nil, false, fmt.Errorf("access: the users file is damaged, nothing was changed: %w", err)
	}
	line := fmt.Sprintf("%s = %q", strconv.Quote(name), hash)
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	added = true
	for _, u := range before {
		if u.Name == name {
			lines[u.At.Line-1], added = []byte(line), false
		}
	}
	if added {
		lines = append(lines, []byte(line))
	}
	next = append(bytes.Join(lines, []byte("\n")), '\n')
	after, err := config.ParseUsers(path, next)
	if err != nil || !onlyChanged(before, after, name, hash) {
		return nil, false, fmt.Errorf("access: %s is laid out in an unusual way, nothing was changed: put one user on each line", path)
	}
	return next, added, nil
}

// onlyChanged reports whether after is before with name's hash set.
func onlyChanged(before, after []config.User, name, hash string) bool {
	want := map[string]string{name: hash}
	for _, u := range before {
		if u.Name != name {
			want[u.Name] = u.Hash
		}
	}
	for _, u := range after {
		if want[u.Name] != u.Hash {
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
