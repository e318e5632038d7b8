package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockBeside waits until no other command changes files in the folder of path, and keeps others waiting until unlock. Whoever reads a file
// to write it anew would lose what another one writes meanwhile. Nothing is left behind: the lock is on the folder itself.
func lockBeside(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(target(path)))
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the folder %s: %w", dir.Name(), err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil // which lets go of the lock
}

// target returns where path leads by symbolic links; path itself where that is nowhere.
func target(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// syncFolder makes what was made or renamed in the folder of path durable.
func syncFolder(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
