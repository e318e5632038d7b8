package buffer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FS is what the log needs of a file system. Tests put a failing one in its place.
type FS interface {
	// MkdirAll makes dir and what is missing above it.
	MkdirAll(dir string) error
	// Create makes a file that must not exist yet, for reading and writing.
	Create(path string) (File, error)
	// Open opens an existing file for reading and writing, or only for reading.
	Open(path string, readOnly bool) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	// SyncDir makes created, renamed and removed names of dir durable.
	SyncDir(dir string) error
	// List gives the files of dir in any order; a folder that does not exist has none.
	List(dir string) ([]FileInfo, error)
	// Free tells how many more bytes the file system gives to files in dir, at most: a quota may allow less.
	Free(dir string) (int64, error)
	// Lock takes the lock on path, without waiting, for as long as the Closer is open; ErrLocked if it is taken.
	// A shared lock may be held several times and does not create the file.
	Lock(path string, shared bool) (io.Closer, error)
}

// FileInfo is an entry of List.
type FileInfo struct {
	Name string
	Size int64
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes the written bytes durable, and the size if it changed.
	Sync() error
	Truncate(size int64) error
	Close() error
}

// osFS is the real file system.
type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Open(path string, readOnly bool) (File, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(path string) error     { return os.Remove(path) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) List(dir string) ([]FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // it was removed in between, or it is none of ours
		}
		out = append(out, FileInfo{Name: e.Name(), Size: info.Size()})
	}
	return out, nil
}

func (osFS) Free(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil // of other types on other machines
}

func (osFS) Lock(path string, shared bool) (io.Closer, error) {
	flag, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if shared {
		flag, how = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: %w", filepath.Dir(path), ErrLocked)
	}
	return nil, errors.Join(err, f.Close())
}

type osFile struct{ *os.File }

// Sync uses fdatasync: overwriting bytes of a file that was zero-filled changes no metadata that would have to be written too.
func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// readFull fills b from off. What lies behind the end of the file, or on sectors that cannot be read, is left zero, which
// fails every checksum; the error of the disk is returned beside it, as what cannot be read now may be whole all the same.
func readFull(f File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	clear(b[n:])
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	const page = 4096
	var failed error
	for at := n; at < len(b); {
		// Steps end at page boundaries of the file, so that one bad page costs only itself.
		step := min(len(b)-at, page-int((off+int64(at))%page))
		if n, e := f.ReadAt(b[at:at+step], off+int64(at)); n < step {
			clear(b[at+n : at+step])
			if e != nil && !errors.Is(e, io.EOF) {
				failed = e
			}
		}
		at += step
	}
	return failed
}
