package message

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// ID identifies one message for good: given once, on arrival, it survives retries and restarts and travels to the cloud
// as the user property tg-id, so that duplicates can be seen there. IDs of one process rise, whatever the wall clock does;
// across processes they sort by time of arrival.
//
//	0              6          8               14        16
//	+--------------+----------+---------------+---------+
//	| ms since 1970| counter  | of a process, | copy    |   all big endian
//	|              |          | random        |         |
//	+--------------+----------+---------------+---------+
type ID [16]byte

var idText = base32.HexEncoding.WithPadding(base32.NoPadding)

// idSource hands out rising IDs.
type idSource struct {
	mu      sync.Mutex
	process [6]byte
	ms      uint64
	counter uint16
}

var ids = newIDSource()

func newIDSource() *idSource {
	s := &idSource{}
	_, _ = rand.Read(s.process[:]) // never fails: crypto/rand ends the process instead
	return s
}

// NewID returns an ID that no other message has.
func NewID() ID { return NewIDAt(time.Now()) }

// NewIDAt is NewID for a message that arrived at t, for callers that have read the clock already.
func NewIDAt(t time.Time) ID { return ids.next(uint64(t.UnixMilli())) }

// next never goes back when the clock does, and moves a millisecond ahead when 65,536 IDs were given in one.
func (s *idSource) next(now uint64) ID {
	s.mu.Lock()
	switch {
	case now > s.ms:
		s.ms, s.counter = now, 0
	case s.counter == 1<<16-1:
		s.ms, s.counter = s.ms+1, 0
	default:
		s.counter++
	}
	ms, counter := s.ms, s.counter
	s.mu.Unlock()

	var id ID
	binary.BigEndian.PutUint64(id[:8], ms<<16|uint64(counter))
	copy(id[8:14], s.process[:])
	return id
}

// Copy returns the ID of the nth copy of the message. Copy 0 is the message itself; each record that is sent for it
// (one per route, topic and uplink) has a number of its own.
func (id ID) Copy(n uint16) ID {
	binary.BigEndian.PutUint16(id[14:], n)
	return id
}

// IsZero reports whether id was never given.
func (id ID) IsZero() bool { return id == ID{} }

// Time returns the time of arrival that is part of the ID, to the millisecond.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

// String returns 26 characters, 0-9 and a-v, that sort like the ID.
func (id ID) String() string {
	var b [26]byte
	idText.Encode(b[:], id[:])
	for i, c := range b {
		if c >= 'A' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b[:])
}

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 26 {
		return id, fmt.Errorf("message: parse identity %q: want 26 characters, got %d", s, len(s))
	}
	var up [26]byte
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'v' {
			c -= 'a' - 'A'
		}
		up[i] = c
	}
	var out [17]byte
	if n, err := idText.Decode(out[:], up[:]); err != nil || n != len(id) {
		return ID{}, fmt.Errorf("message: parse identity %q: want only 0-9 and a-v", s)
	}
	copy(id[:], out[:])
	if id.String() != s {
		return ID{}, fmt.Errorf("message: parse identity %q: not in its only written form", s)
	}
	return id, nil
}
