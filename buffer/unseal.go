package buffer

import "fmt"

// unsealer gives the records of sections as they were appended, in memory that is used again by the next pass. It belongs to one reader.
type unsealer struct {
	sealer sealer
	// arena holds the plain records of the sections of a pass, size sums them; sealed is for what is decrypted and still compressed.
	arena  []byte
	size   int
	sealed []byte
}

// reset lets the memory be used again. One large record does not keep its memory for ever.
func (u *unsealer) reset() {
	u.size = 0
	if u.arena = u.arena[:0]; cap(u.arena) > 2*frameBytes {
		u.arena = nil
	}
	if cap(u.sealed) > 2*frameBytes {
		u.sealed = nil
	}
}

// buffer gives memory for n bytes that stays until reset.
func (u *unsealer) buffer(n int) []byte {
	if len(u.arena)+n > cap(u.arena) {
		// What was given out before keeps the old memory.
		u.arena = make([]byte, 0, max(n, 64<<10, min(2*cap(u.arena), frameBytes)))
	}
	at := len(u.arena)
	u.arena = u.arena[:at+n]
	u.size += n
	return u.arena[at : at : at+n]
}

// records gives the plain records of a section whose header stands at off of s. Where they are plain already they alias it. Without the
// key it returns a KeyError.
func (u *unsealer) records(d *inflater, sec section, s *segment, off int64, keys keyring, queue string) ([]byte, error) {
	stored, raw := sec.bytes[:sec.stored-sec.index], int(sec.raw-sec.index)
	if sec.cipher == cipherNone && sec.codec == codecNone {
		return stored, nil
	}
	if sec.cipher == cipherNone {
		return d.decompress(u.buffer(raw), stored, sec.codec, raw)
	}
	key, ok := keys.find(sec.key)
	if !ok {
		return nil, &KeyError{Queue: queue, Missing: keyName(sec.key)}
	}
	at := keyPlace{salt: s.salt, index: s.index, cipher: sec.cipher}
	if sec.codec == codecNone {
		return u.sealer.open(u.buffer(raw), key, at, sec, off)
	}
	var err error
	if u.sealed, err = u.sealer.open(u.sealed[:0], key, at, sec, off); err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return d.decompress(u.buffer(raw), u.sealed, sec.codec, raw)
}
