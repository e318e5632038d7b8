package session

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"tidegate/buffer"
)

// disk is a file system in memory whose power can be cut: then every use of it fails, and what it was is had from cut.
type disk struct {
	mu    sync.Mutex
	files map[string]*diskFile
	dead  bool
	// broken: it can be read, but takes nothing.
	broken atomic.Bool
}

type diskFile struct {
	d            *disk
	data, synced []byte
}

var (
	errDead   = errors.New("the process is dead")
	errBroken = errors.New("the disk takes nothing")
)

func newDisk() *disk { return &disk{files: map[string]*diskFile{}} }

// cut ends the use of d and returns what is left of it: after a kill everything that was written, after a power cut of the files
// only what was synced.
func (d *disk) cut(power bool) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	out := newDisk()
	for path, f := range d.files {
		b := f.data
		if power {
			b = f.synced
		}
		b = append([]byte(nil), b...)
		out.files[path] = &diskFile{d: out, data: b, synced: append([]byte(nil), b...)}
	}
	return out
}

// do runs f unless the power is off.
func (d *disk) do(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	return f()
}

// change is do for what changes files.
func (d *disk) change(f func() error) error {
	return d.do(func() error {
		if d.broken.Load() {
			return errBroken
		}
		return f()
	})
}

func (d *disk) MkdirAll(string) error { return nil }

func (d *disk) Create(path string) (f buffer.File, err error) {
	return f, d.change(func() error {
		if d.files[path] != nil {
			return fs.ErrExist
		}
		x := &diskFile{d: d}
		d.files[path], f = x, x
		return nil
	})
}

func (d *disk) Open(path string, _ bool) (f buffer.File, err error) {
	return f, d.do(func() error {
		x := d.files[path]
		if x == nil {
			return fs.ErrNotExist
		}
		f = x
		return nil
	})
}

func (d *disk) Rename(from, to string) error {
	return d.do(func() error {
		if d.files[from] == nil {
			return fs.ErrNotExist
		}
		d.files[to] = d.files[from]
		delete(d.files, from)
		return nil
	})
}

func (d *disk) Remove(path string) error {
	return d.do(func() error {
		delete(d.files, path)
		return nil
	})
}

func (d *disk) SyncDir(string) error { return d.do(func() error { return nil }) }

func (d *disk) Free(string) (int64, error) { return 1 << 40, nil }

func (d *disk) List(dir string) (out []buffer.FileInfo, err error) {
	return out, d.do(func() error {
		for path, f := range d.files {
			if filepath.Dir(path) == dir {
				out = append(out, buffer.FileInfo{Name: filepath.Base(path), Size: int64(len(f.data))})
			}
		}
		return nil
	})
}

func (d *disk) Lock(string, bool) (io.Closer, error) { return io.NopCloser(nil), nil }

func (f *diskFile) ReadAt(b []byte, off int64) (n int, err error) {
	return n, f.d.do(func() error {
		if off < int64(len(f.data)) {
			n = copy(b, f.data[off:])
		}
		if n < len(b) {
			return io.EOF
		}
		return nil
	})
}

func (f *diskFile) WriteAt(b []byte, off int64) (n int, err error) {
	return n, f.d.change(func() error {
		if grow := int(off) + len(b) - len(f.data); grow > 0 {
			f.data = append(f.data, make([]byte, grow)...)
		}
		n = copy(f.data[off:], b)
		return nil
	})
}

func (f *diskFile) Sync() error {
	return f.d.change(func() error {
		f.synced = append(f.synced[:0], f.data...)
		return nil
	})
}

func (f *diskFile) Truncate(size int64) error {
	return f.d.do(func() error {
		f.data = append(f.data, make([]byte, max(0, int(size)-len(f.data)))...)[:size]
		return nil
	})
}

func (f *diskFile) Close() error { return nil }
