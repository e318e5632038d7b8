package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

const sector = 512

var errDead = errors.New("the process is dead")

// memFS is a file system in memory that fails when told to, and that can lose power: of what was not synced any writes and any changes of
// names are then there, in any order, and of each write any of its sectors.
type memFS struct {
	mu    sync.Mutex
	names map[string]*memFile
	// ops are changes of names that no SyncDir made durable; durable is what was.
	ops     []nameOp
	durable map[string]*memFile
	locks   map[string]int
	dead    bool
	// changes counts what changes the disk; the one with number dieAt, if that is not 0, is the last: the power goes while it is made.
	changes, dieAt int
	// gate, if set, is passed before each change; it decides whose turn it is.
	gate func(op, path string)

	// fault, if set, is asked before each operation; errShort makes a write stop half-way.
	fault func(op, path string) error
	// room bounds the bytes of all files; 0 is no bound.
	room int64
	// syncs counts File.Sync calls that worked.
	syncs int
}

var errShort = errors.New("short write wanted")

// nameOp is a change of names: made durable by a sync of any of its folders.
type nameOp struct {
	dirs  [2]string
	apply func(names map[string]*memFile)
}

// memFile is an inode.
type memFile struct {
	fs      *memFS
	path    string
	data    []byte
	durable []byte
	// dirty sectors were written since the last Sync; older has what they held in between, where they were written several times.
	dirty map[int]bool
	older map[int][][]byte
}

func newMemFile(m *memFS, path string, data []byte) *memFile {
	return &memFile{
		fs: m, path: path, data: data, durable: append([]byte(nil), data...),
		dirty: map[int]bool{}, older: map[int][][]byte{},
	}
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

// enterChange is enter for what changes the disk. dies says that the power goes at this change: it is made in memory as any other, and
// nobody hears of it.
func (m *memFS) enterChange(op, path string) (dies bool, err error) {
	if err := m.enter(op, path); err != nil {
		return false, err
	}
	m.changes++
	m.dead = m.changes == m.dieAt
	return m.dead, nil
}

// turn waits until the change may be made; it is called without lock.
func (m *memFS) turn(op, path string) {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	if gate != nil {
		gate(op, path)
	}
}

// died is the answer to a change during which the power went.
func died(dies bool) error {
	if dies {
		return errDead
	}
	return nil
}

func (m *memFS) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
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

func (m *memFS) change(from, to string, f func(names map[string]*memFile)) {
	f(m.names)
	m.ops = append(m.ops, nameOp{dirs: [2]string{filepath.Dir(from), filepath.Dir(to)}, apply: f})
}

func (m *memFS) MkdirAll(string) error { return nil }

func (m *memFS) Create(path string) (File, error) {
	m.turn("create", path)
	m.mu.Lock()
	defer m.mu.Unlock()
	dies, err := m.enterChange("create", path)
	if err != nil {
		return nil, err
	}
	if m.names[path] != nil {
		return nil, fs.ErrExist
	}
	f := newMemFile(m, path, nil)
	m.change(path, path, func(names map[string]*memFile) { names[path] = f })
	if dies {
		return nil, errDead
	}
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
	m.turn("rename", from)
	m.mu.Lock()
	defer m.mu.Unlock()
	dies, err := m.enterChange("rename", from)
	if err != nil {
		return err
	}
	if m.names[from] == nil {
		return fs.ErrNotExist
	}
	m.change(from, to, func(names map[string]*memFile) {
		if f := names[from]; f != nil {
			names[to] = f
			delete(names, from)
		}
	})
	return died(dies)
}

func (m *memFS) Remove(path string) error {
	m.turn("remove", path)
	m.mu.Lock()
	defer m.mu.Unlock()
	dies, err := m.enterChange("remove", path)
	if err != nil {
		return err
	}
	if m.names[path] == nil {
		return fs.ErrNotExist
	}
	m.change(path, path, func(names map[string]*memFile) { delete(names, path) })
	return died(dies)
}

func (m *memFS) SyncDir(dir string) error {
	m.turn("syncdir", dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	dies, err := m.enterChange("syncdir", dir)
	if err != nil || dies {
		return errors.Join(err, died(dies))
	}
	m.ops = slices.DeleteFunc(m.ops, func(op nameOp) bool {
		if !slices.Contains(op.dirs[:], dir) {
			return false
		}
		op.apply(m.durable)
		return true
	})
	return nil
}

func (m *memFS) Free(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.room == 0 {
		return math.MaxInt64, nil
	}
	return max(m.room-m.used(), 0), nil
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
	f.fs.turn("write", f.path)
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	dies, err := f.fs.enterChange("write", f.path)
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
	for s := int(off) / sector; len(b) > 0 && s <= (end-1)/sector; s++ {
		if f.dirty[s] {
			f.older[s] = append(f.older[s], bytes.Clone(f.data[s*sector:min((s+1)*sector, len(f.data))]))
		}
		f.dirty[s] = true
	}
	copy(f.data[off:], b)
	if dies {
		return 0, errDead
	}
	return len(b), nil // a short write without an error is what a caller must notice
}

func (f *memFile) Sync() error {
	f.fs.turn("sync", f.path)
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	dies, err := f.fs.enterChange("sync", f.path)
	if dies {
		return errDead // what is unsynced is kept or lost as by any other cut
	}
	if err != nil {
		// As in the kernel: the pages count as clean now, a later sync does not write them.
		clear(f.dirty)
		return err
	}
	f.fs.syncs++
	f.durable = resize(f.durable, len(f.data))
	for s := range f.dirty {
		copySector(f.durable, f.data, s)
		delete(f.older, s)
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
	f.fs.turn("truncate", f.path)
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	dies, err := f.fs.enterChange("truncate", f.path)
	if err != nil {
		return err
	}
	f.data = resize(f.data, int(size))
	return died(dies)
}

func (f *memFile) Close() error { return nil }

// powerCut ends every use of m and gives what is on the disk afterwards. keep is asked for each change that nobody synced, in the order
// in which they were made, whether it reached the disk: each change of a name, each change of a size, and each time a sector was written.
// Whether changes of names reach it one after the other, as through a journal, or in any order, is as keep decides, too.
func (m *memFS) powerCut(keep func() bool) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	journal := keep()
	for _, op := range m.ops {
		if keep() {
			op.apply(m.durable)
		} else if journal {
			break
		}
	}
	out := newMemFS()
	for _, path := range slices.Sorted(maps.Keys(m.durable)) {
		g := newMemFile(out, path, m.durable[path].afterCut(keep))
		out.names[path], out.durable[path] = g, g
	}
	return out
}

// afterCut is what the disk has of f after a power cut.
func (f *memFile) afterCut(keep func() bool) []byte {
	n := len(f.durable)
	if len(f.data) != n && keep() {
		n = len(f.data)
	}
	b := resize(append([]byte(nil), f.durable...), n)
	for s := 0; s*sector < len(f.data); s++ {
		for _, old := range f.older[s] {
			if keep() && s*sector < len(b) {
				copy(b[s*sector:], old)
			}
		}
		if keep() {
			copySector(b, f.data, s)
		}
	}
	return b
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
		g := newMemFile(out, path, append([]byte(nil), f.data...))
		out.names[path], out.durable[path] = g, g
	}
	return out
}
