package buffer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// Encryption at rest. The records of a section are sealed as a whole when their frame is written; the index beside them stays readable, so
// that a log is recovered, listed and verified without any key, and so do the names and floors of the queues. What the index and the
// header of the section say is authenticated with the records.
//
// # Keys and nonces
//
// A Key never seals anything itself. Each segment has a key of its own, derived from it by HKDF-SHA-256 (RFC 5869) with the segment's salt
// and index; inside a segment the nonce is the offset of the section in the file. An offset of a segment is written once: a log that is
// opened begins a new segment, with a new salt, whatever the end of the last one looks like, and so does one whose write or fsync failed.
// So what stands behind a torn end is never written again under the same key and nonce, nor is a folder that was restored from a copy.
//
// A section that was moved, replaced or taken from an older life of the file does not open: salt, index and offset are in the key and nonce.
const (
	// KeyBytes is the length of a Key.
	KeyBytes = 32

	// The values of a section's key slot.
	cipherNone   = 0
	cipherAES    = 1 // AES-256-GCM (NIST SP 800-38D)
	cipherChaCha = 2 // ChaCha20-Poly1305 (RFC 8439)

	// tagBytes is what sealing adds; it is the same for both.
	tagBytes = 16
)

// Key encrypts the records of a queue. The zero Key stands for none: as the first of several it leaves new records plain.
type Key struct {
	master [KeyBytes]byte
	id     uint32
	// cipher is what seals new records.
	cipher uint16
}

// NewKey makes a key of KeyBytes secret bytes.
func NewKey(secret []byte) (Key, error) {
	k := Key{cipher: preferred()}
	if len(secret) != KeyBytes {
		return k, fmt.Errorf("a key of %d bytes: want %d", len(secret), KeyBytes)
	}
	copy(k.master[:], secret)
	id, err := hkdf.Key(sha256.New, secret, nil, "tidegate buffer key id", 4)
	if err != nil {
		return k, fmt.Errorf("derive the name of a key: %w", err)
	}
	k.id = binary.LittleEndian.Uint32(id)
	if k.id == 0 {
		k.id = 1 // 0 stands for no key
	}
	return k, nil
}

// ID names the key without telling it.
func (k Key) ID() string { return keyName(k.id) }

func keyName(id uint32) string { return fmt.Sprintf("%08x", id) }

// KeyError says that records are encrypted with a key that was not given. Nothing is wrong with them.
type KeyError struct {
	Queue string
	// Missing is the ID of the key.
	Missing string
	// Records counts those under it, 0 if that was not asked.
	Records uint64
}

// Error names the queue and the key.
func (e *KeyError) Error() string {
	if e.Records == 0 {
		return fmt.Sprintf("records of %s are encrypted with key %s, which was not given", e.Queue, e.Missing)
	}
	return fmt.Sprintf("%d records of %s are encrypted with key %s, which was not given", e.Records, e.Queue, e.Missing)
}

// errBadSeal says that a section with good checksums was not sealed with its key, or not for its place.
var errBadSeal = errors.New("the records were not sealed by their key for this place")

// preferred is the cipher for new sections: AES where the processor has instructions for it, as without them Go's AES is several times
// slower than ChaCha20.
func preferred() uint16 {
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || runtime.GOARCH == "s390x" {
		return cipherAES
	}
	return cipherChaCha
}

// keyPlace names a derived key.
type keyPlace struct {
	salt, index uint64
	cipher      uint16
	id          uint32
}

// sealer keeps the last few derived keys, as frames of a segment follow each other. The zero value is ready. It is not safe for concurrent use.
type sealer struct {
	cached [4]struct {
		at   keyPlace
		aead cipher.AEAD
	}
	next int
}

// aead gives the cipher of a segment.
func (s *sealer) aead(k Key, p keyPlace) (cipher.AEAD, error) {
	p.id = k.id
	for i := range s.cached {
		if c := &s.cached[i]; c.aead != nil && c.at == p {
			return c.aead, nil
		}
	}
	a, err := deriveAEAD(k, p)
	if err != nil {
		return nil, err
	}
	c := &s.cached[s.next]
	c.at, c.aead = p, a
	s.next = (s.next + 1) % len(s.cached)
	return a, nil
}

func deriveAEAD(k Key, p keyPlace) (cipher.AEAD, error) {
	var salt [16]byte
	binary.LittleEndian.PutUint64(salt[:8], p.salt)
	binary.LittleEndian.PutUint64(salt[8:], p.index)
	switch p.cipher {
	case cipherAES:
		key, err := hkdf.Key(sha256.New, k.master[:], salt[:], "tidegate buffer segment aes-256-gcm", 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	case cipherChaCha:
		key, err := hkdf.Key(sha256.New, k.master[:], salt[:], "tidegate buffer segment chacha20-poly1305", 32)
		if err != nil {
			return nil, err
		}
		return chacha20poly1305.New(key)
	}
	return nil, fmt.Errorf("cipher %d: %w", p.cipher, errBadContent)
}

// sectionNonce is the nonce of the section whose header stands at off.
func sectionNonce(off int64) [12]byte {
	var n [12]byte
	binary.LittleEndian.PutUint64(n[:], uint64(off))
	return n
}

// seal encrypts the records of the section that begins, with its header, at b, in place. b[sectionHeaderLen:][:n] are the records, the
// tag takes the tagBytes behind them, the index is the rest. off is where the section will stand.
func (s *sealer) seal(k Key, p keyPlace, b []byte, n int, off int64) error {
	a, err := s.aead(k, p)
	if err != nil {
		return err
	}
	nonce := sectionNonce(off)
	records := b[sectionHeaderLen:][:n]
	a.Seal(records[:0], nonce[:], records, sealedBeside(b[:sectionHeaderLen], b[sectionHeaderLen+n+tagBytes:]))
	return nil
}

// open appends the decrypted records of a section to dst. off is where its header stands.
func (s *sealer) open(dst []byte, k Key, p keyPlace, sec section, off int64) ([]byte, error) {
	a, err := s.aead(k, p)
	if err != nil {
		return dst, err
	}
	nonce := sectionNonce(off)
	dst, err = a.Open(dst, nonce[:], sec.bytes[:sec.stored-sec.index], sealedBeside(sec.head, sec.bytes[sec.stored-sec.index:]))
	if err != nil {
		return dst, errBadSeal
	}
	return dst, nil
}

// sealedBeside is what is authenticated with the records: the header of the section and its index.
func sealedBeside(head, index []byte) []byte {
	return append(append(make([]byte, 0, len(head)+len(index)), head...), index...)
}

// vault seals the frames of the committer, which alone uses it.
type vault struct {
	sealer sealer
	out    []byte
}

// seal gives a copy of f, for off in s, in which the records are sealed. It is valid until the next one.
func (v *vault) seal(f *frameBuilder, s *segment, off int64) ([]byte, error) {
	b := append(v.out[:0], f.buf...)
	for _, w := range f.seals {
		at := keyPlace{salt: s.salt, index: s.index, cipher: w.key.cipher}
		end := w.at + sectionHeaderLen + int(binary.LittleEndian.Uint32(b[w.at+12:]))
		if err := v.sealer.seal(w.key, at, b[w.at:end], w.n, off+int64(w.at)); err != nil {
			return nil, fmt.Errorf("encrypt records: %w", err)
		}
	}
	return b, nil
}

// trim lets go of the memory of a large frame once it is written.
func (v *vault) trim() {
	if cap(v.out) > 2*frameBytes {
		v.out = nil
	}
}

// keyring holds the keys of one queue, the one for new records first.
type keyring []Key

func (r keyring) find(id uint32) (Key, bool) {
	for _, k := range r {
		if k.id == id {
			return k, true
		}
	}
	return Key{}, false
}

// keysOf gives the keys of a queue, false if nobody uses it.
func (l *Log) keysOf(queue string) (keyring, bool) {
	if l.o.Keys == nil {
		return nil, false
	}
	keys, ok := l.o.Keys(queue)
	return keys, ok
}

// checkKeys makes sure that what is stored in used queues can be read.
func (l *Log) checkKeys() error {
	if l.readOnly {
		return nil
	}
	var errs []error
	for _, q := range l.order {
		keys, used := l.keysOf(q.name)
		if !used {
			continue
		}
		for id, n := range q.keyIDs() {
			if _, ok := keys.find(id); id != 0 && !ok {
				errs = append(errs, &KeyError{Queue: q.name, Missing: keyName(id), Records: n})
			}
		}
	}
	return errors.Join(errs...)
}

// seals tells whether any queue has its records sealed. Log.mu is held, or nobody else has the log yet.
func (l *Log) seals() bool {
	return slices.ContainsFunc(l.order, func(q *Queue) bool {
		_, ok := q.keys.first()
		return ok
	})
}

// dropPlainSpares removes, where records are sealed, files kept for reuse: records from before that may still stand in them as they came.
func (l *Log) dropPlainSpares() {
	if l.readOnly || !l.seals() {
		return
	}
	for _, s := range l.spares {
		l.afterwards(func() error { return l.fs.Remove(filepath.Join(l.dir, s.name)) })
	}
	l.spares = nil
}

// plainInside tells whether records stand in s as they came. Log.mu is held.
func (s *segment) plainInside() bool {
	return slices.ContainsFunc(s.extents, func(e *extent) bool { return e.key == 0 })
}

// keyIDs counts the stored records by the name of their key. Log.mu is held, or nobody else has the log yet.
func (q *Queue) keyIDs() map[uint32]uint64 {
	ids := map[uint32]uint64{}
	for _, e := range q.extents {
		if e.live > 0 {
			ids[e.key] += e.live
		}
	}
	return ids
}

// first is the key for new records, false if they are not encrypted.
func (r keyring) first() (Key, bool) {
	if len(r) == 0 || r[0].id == 0 {
		return Key{}, false
	}
	return r[0], true
}
