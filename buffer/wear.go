package buffer

import "sync/atomic"

// pageBytes is what the kernel writes at least.
const pageBytes = 4096

// meter counts what a file system is given to write: whole pages, as a device gets them. A page that is written twice before it is synced
// counts twice, so it is an upper bound where Options.Sync is not 0.
type meter struct {
	FS
	written *atomic.Uint64
}

func newMeter(fs FS) meter { return meter{fs, new(atomic.Uint64)} }

func (m meter) Create(path string) (File, error) { return m.file(m.FS.Create(path)) }

func (m meter) Open(path string, readOnly bool) (File, error) {
	return m.file(m.FS.Open(path, readOnly))
}

func (m meter) file(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return meteredFile{f, m.written}, nil
}

type meteredFile struct {
	File
	written *atomic.Uint64
}

func (f meteredFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	if n > 0 {
		first, last := off/pageBytes, (off+int64(n)-1)/pageBytes
		f.written.Add(uint64(last-first+1) * pageBytes)
	}
	return n, err
}
