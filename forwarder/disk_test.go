package forwarder

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/buffer"
)

var errDisk = errors.New("input/output error")

// badDisk is a real folder that can be made to fail.
type badDisk struct {
	failing atomic.Bool
	slow    atomic.Int64 // nanoseconds that a sync takes

	// still is held while the folder is copied, so that the copy is of one moment.
	still sync.RWMutex
}

// snapshot copies the folder as a crash would leave it.
func (d *badDisk) snapshot(t testing.TB, from, to string) {
	t.Helper()
	d.still.Lock()
	defer d.still.Unlock()
	copyDir(t, from, to)
}

// change lets f change the folder, but not while it is copied.
func (d *badDisk) change(f func() error) error {
	d.still.RLock()
	defer d.still.RUnlock()
	if d.failing.Load() {
		return errDisk
	}
	return f()
}

func (d *badDisk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (d *badDisk) Create(path string) (buffer.File, error) {
	var f *os.File
	err := d.change(func() (err error) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return badFile{f, d}, nil
}

func (d *badDisk) Open(path string, readOnly bool) (buffer.File, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	return badFile{f, d}, nil
}

func (d *badDisk) Rename(from, to string) error {
	return d.change(func() error { return os.Rename(from, to) })
}

func (d *badDisk) Remove(path string) error {
	return d.change(func() error { return os.Remove(path) })
}
func (d *badDisk) SyncDir(string) error { return d.change(func() error { return nil }) }

func (d *badDisk) Free(string) (int64, error) { return 1 << 40, nil }

func (d *badDisk) List(dir string) ([]buffer.FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []buffer.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && !e.IsDir() {
			out = append(out, buffer.FileInfo{Name: e.Name(), Size: info.Size()})
		}
	}
	return out, err
}

func (d *badDisk) Lock(path string, _ bool) (io.Closer, error) {
	return os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
}

type badFile struct {
	*os.File
	disk *badDisk
}

func (f badFile) WriteAt(b []byte, off int64) (int, error) {
	n := 0
	err := f.disk.change(func() (err error) {
		n, err = f.File.WriteAt(b, off)
		return err
	})
	return n, err
}

func (f badFile) Truncate(size int64) error {
	return f.disk.change(func() error { return f.File.Truncate(size) })
}

func (f badFile) Sync() error {
	time.Sleep(time.Duration(f.disk.slow.Load()))
	return f.disk.change(func() error { return nil })
}
