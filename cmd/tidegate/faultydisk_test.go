package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"tidegate/buffer"
)

// faultyDisk is the real file system; while it is broken no file can be written or synced, while it is full there is no
// room for a spare segment.
type faultyDisk struct{ broken, full atomic.Bool }

func (d *faultyDisk) err() error {
	if d.broken.Load() {
		return syscall.EIO
	}
	return nil
}

func (d *faultyDisk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (d *faultyDisk) Create(path string) (buffer.File, error) {
	if d.full.Load() && strings.Contains(filepath.Base(path), ".spare") {
		return nil, &fs.PathError{Op: "create", Path: path, Err: syscall.ENOSPC}
	}
	return d.open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (d *faultyDisk) Open(path string, readOnly bool) (buffer.File, error) {
	if readOnly {
		return d.open(path, os.O_RDONLY)
	}
	return d.open(path, os.O_RDWR)
}

func (d *faultyDisk) open(path string, flag int) (buffer.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return faultyFile{f, d}, nil
}

func (d *faultyDisk) Rename(from, to string) error { return errors.Join(d.err(), os.Rename(from, to)) }
func (d *faultyDisk) Remove(path string) error     { return os.Remove(path) }
func (d *faultyDisk) SyncDir(string) error         { return d.err() }

func (d *faultyDisk) Free(string) (int64, error) { return 1 << 40, nil }

func (d *faultyDisk) List(dir string) ([]buffer.FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []buffer.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			list = append(list, buffer.FileInfo{Name: e.Name(), Size: info.Size()})
		}
	}
	return list, nil
}

// Lock takes no lock: the test's folder is its own.
func (d *faultyDisk) Lock(string, bool) (io.Closer, error) { return io.NopCloser(nil), nil }

type faultyFile struct {
	*os.File
	disk *faultyDisk
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.err(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) Sync() error { return errors.Join(f.disk.err(), f.File.Sync()) }
