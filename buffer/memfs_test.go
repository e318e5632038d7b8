package buffer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
)

const sector = 512

var errDead = errors.New("the process is dead")

// memFS is a file system in memory that fails when told to, and that can lose power: what was not synced is then dropped, kept or
// mixed sector by sector.
type memFS struct {
	mu    sync.Mutex
	names map[string]*memFile
	// ops are changes of names that no SyncDir made durable; durable is what was.
	ops     []func(names map[string]*memFile)
	durable map[string]*memFile
	locks   map[string]int
	dead    bool

	// fault, if set, is asked before each operation; errShort makes a write stop half-way.
	fault func(op, path string) error
	// room bounds the bytes of all files; 0 is no bound.
	room int64
	// syncs counts File.Sync calls that worked.
	syncs int
}

var errShort = errors.New("short write wanted")

// memFile is an inode.
type memFile struct {
	fs      *memFS
	path    string
	data    []byte
	durable []byte
	// dirty sectors were written since the last Sync.
	dirty map[int]bool
}

func newMemFS() *memFS {
	return &memFS{names: map[string]*memFile{}, durable: map[string]*memFile{}, locks: map[string]int{}}
}

// enter checks for faults; m.mu is held.
func (m *memFS) enter(op, path string) error {
	if m.dead {
		return errDead
	}
	if m.fault != nil {
		if err := m.fault(op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	return nil
}

func (m *memFS) setFault(f func(op, path string) error) {
	m.mu.Lock()
	m.fault = f
	m.mu.Unlock()
}

func (m *memFS) setRoom(n int64) {
	m.mu.Lock()
	m.room = n
	m.mu.Unlock()
}

func (m *memFS) syncCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncs
}

func (m *memFS) used() int64 {
	var n int64
	for _, f := range m.names {
		n += int64(len(f.data))
	}
	return n
}

func (m *memFS) change(f func(names map[string]*memFile)) {
	f(m.names)
	m.ops = append(m.ops, f)
}

func (m *memFS) MkdirAll(string) error { return nil }

func (m *memFS) Create(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("create", path); err != nil {
		return nil, err
	}
	if m.names[path] != nil {
		return nil, fs.ErrExist
	}
	f := &memFile{fs: m, path: path, dirty: map[int]bool{}}
	m.change(func(names map[string]*memFile) { names[path] = f })
	return f, nil
}

func (m *memFS) Open(path string, _ bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("open", path); err != nil {
		return nil, err
	}
	f := m.names[path]
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return f, nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("rename", from); err != nil {
		return err
	}
	if m.names[from] == nil {
		return fs.ErrNotExist
	}
	m.change(func(names map[string]*memFile) {
		if f := names[from]; f != nil {
			names[to] = f
			delete(names, from)
		}
	})
	return nil
}

func (m *memFS) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("remove", path); err != nil {
		return err
	}
	if m.names[path] == nil {
		return fs.ErrNotExist
	}
	m.change(func(names map[string]*memFile) { delete(names, path) })
	return nil
}

func (m *memFS) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("syncdir", dir); err != nil {
		return err
	}
	for _, op := range m.ops {
		op(m.durable)
	}
	m.ops = nil
	return nil
}

func (m *memFS) List(dir string) ([]FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("list", dir); err != nil {
		return nil, err
	}
	var out []FileInfo
	for path, f := range m.names {
		if filepath.Dir(path) == dir {
			out = append(out, FileInfo{Name: filepath.Base(path), Size: int64(len(f.data))})
		}
	}
	return out, nil
}

type closer func() error

func (c closer) Close() error { return c() }

func (m *memFS) Lock(path string, shared bool) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("lock", path); err != nil {
		return nil, err
	}
	if held := m.locks[path]; held < 0 || held > 0 && !shared {
		return nil, fmt.Errorf("%s: %w", filepath.Dir(path), ErrLocked)
	}
	change := -1
	if shared {
		change = 1
	}
	m.locks[path] += change
	return closer(func() error {
		m.mu.Lock()
		m.locks[path] -= change
		m.mu.Unlock()
		return nil
	}), nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("read", f.path); err != nil {
		return 0, err
	}
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.enter("write", f.path)
	if err != nil {
		if !errors.Is(err, errShort) {
			return 0, err
		}
		b = b[:len(b)/2]
	}
	end := int(off) + len(b)
	if grow := end - len(f.data); grow > 0 {
		if f.fs.room > 0 && f.fs.used()+int64(grow) > f.fs.room {
			return 0, &fs.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
		}
		f.data = append(f.data, make([]byte, grow)...)
	}
	copy(f.data[off:], b)
	for s := int(off) / sector; len(b) > 0 && s <= (end-1)/sector; s++ {
		f.dirty[s] = true
	}
	return len(b), nil // a short write without an error is what a caller must notice
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("sync", f.path); err != nil {
		// As in the kernel: the pages count as clean now, a later sync does not write them.
		clear(f.dirty)
		return err
	}
	f.fs.syncs++
	f.durable = resize(f.durable, len(f.data))
	for s := range f.dirty {
		copySector(f.durable, f.data, s)
	}
	clear(f.dirty)
	return nil
}

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

func copySector(dst, src []byte, s int) {
	if s*sector < len(src) && s*sector < len(dst) {
		copy(dst[s*sector:min((s+1)*sector, len(dst))], src[s*sector:min((s+1)*sector, len(src))])
	}
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("truncate", f.path); err != nil {
		return err
	}
	f.data = resize(f.data, int(size))
	return nil
}

func (f *memFile) Close() error { return nil }

// powerCut ends every use of m and gives what is on the disk afterwards. keep decides for each sector, and for the changes of names in
// their order, whether it came through though nobody synced it.
func (m *memFS) powerCut(keep func() bool) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	for _, op := range m.ops {
		if !keep() {
			break
		}
		op(m.durable)
	}
	out := newMemFS()
	for path, f := range m.durable {
		n := len(f.durable)
		if len(f.data) != n && keep() {
			n = len(f.data)
		}
		b := resize(append([]byte(nil), f.durable...), n)
		for s := 0; s*sector < len(f.data); s++ {
			if keep() {
				copySector(b, f.data, s)
			}
		}
		g := &memFile{fs: out, path: path, data: b, durable: append([]byte(nil), b...), dirty: map[int]bool{}}
		out.names[path], out.durable[path] = g, g
	}
	return out
}

// kill ends every use of m, as SIGKILL does: everything written is still there.
func (m *memFS) kill() *memFS { return m.powerCut(func() bool { return true }) }

// cutRandom drops and keeps at random.
func cutRandom(r *rand.Rand) func() bool {
	p := []float64{0, 0.5, 0.9, 0.1}[r.IntN(4)]
	return func() bool { return r.Float64() < p }
}

// copyFS copies the files as they are.
func (m *memFS) copyFS() *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := newMemFS()
	for path, f := range m.names {
		g := &memFile{fs: out, path: path, data: append([]byte(nil), f.data...), durable: append([]byte(nil), f.data...), dirty: map[int]bool{}}
		out.names[path], out.durable[path] = g, g
	}
	return out
}
