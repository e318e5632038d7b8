package session

import (
	"encoding/binary"

	"tidegate/buffer"
	"tidegate/message"
)

// storedQueue is the Queue of a session that is kept on disk. It remembers an entry as a token of a few bytes, and holds the
// message in memory only where there is no other copy (QoS 0), or for a connected client that keeps up. Everything else is
// read from the store when it is sent, so that very much can wait for very many.
//
// A token is
//
//	+-------+--------------+------------------------------+
//	| flags | size uvarint | sequence less the one before |
//	| 1     |              | zigzag varint, with tokenSeq |   with tokenWhole less 0
//	+-------+--------------+------------------------------+
//
// in chunks of memory; it is never on disk.
type storedQueue struct {
	chunks      [][]byte
	at          int        // where the oldest token begins in the first chunk
	first, last buffer.Seq // the sequences before the oldest token's and of the newest token
	n           int
	bytes       int64
	held        ring[Entry] // of the tokens with tokenHeld, in order
	heldBytes   int64
	bare        int // tokens of messages that are not held
	seat        seat
	// hold says that messages may be held for the connected client.
	hold bool

	head  Entry // what Peek gives for a token that is not held
	width int   // bytes of the oldest token where it was decoded into token already, else 0
	token token
}

type token struct {
	flags byte
	size  int64
	seq   buffer.Seq
}

const (
	tokenQoS    = 3 // two bits
	tokenRetain = 1 << 2
	tokenHeld   = 1 << 3
	tokenShared = 1 << 4
	tokenDup    = 1 << 5
	tokenSeq    = 1 << 6
	tokenWhole  = 1 << 7

	chunkBytes = 1 << 10
	// smallChunk is the largest chunk whose memory is kept when it is empty.
	smallChunk = 64
	// holdBytes bounds the stored messages that are held for a connected client.
	holdBytes = 64 << 10
)

func (q *storedQueue) Append(e Entry) {
	q.leave()
	t := token{flags: flagsOf(e.QoS, e.Retain, e.shared), size: e.Size(), seq: e.seq}
	if e.dup {
		t.flags |= tokenDup
	}
	if e.Msg != nil && (e.seq == 0 || q.hold && q.bare == 0 && q.heldBytes+t.size <= holdBytes) {
		t.flags |= tokenHeld
		e.size = t.size
		q.held.push(e)
		if e.seq != 0 {
			q.heldBytes += t.size
		}
	} else {
		q.bare++
	}
	q.push(t)
}

// add is Append for a message in the store that is not held.
func (q *storedQueue) add(qos message.QoS, retain, shared bool, seq buffer.Seq, size int64) {
	q.leave()
	q.bare++
	q.push(token{flags: flagsOf(qos, retain, shared), size: size, seq: seq})
}

func flagsOf(qos message.QoS, retain, shared bool) byte {
	flags := byte(qos) & tokenQoS
	if retain {
		flags |= tokenRetain
	}
	if shared {
		flags |= tokenShared
	}
	return flags
}

func (q *storedQueue) push(t token) {
	if t.seq != 0 {
		t.flags |= tokenSeq
	}
	last := len(q.chunks) - 1
	if last < 0 || len(q.chunks[last]) > chunkBytes-2*binary.MaxVarintLen64 {
		q.chunks = append(q.chunks, nil)
		last++
	}
	q.chunks[last] = appendToken(q.chunks[last], t, q.last)
	if t.seq != 0 {
		q.last = t.seq
	}
	q.n++
	q.bytes += t.size
}

// appendToken appends t, which follows one with the sequence before.
func appendToken(b []byte, t token, before buffer.Seq) []byte {
	b = binary.AppendUvarint(append(b, t.flags), uint64(t.size))
	if t.flags&tokenWhole != 0 {
		before = 0
	}
	if t.seq != 0 {
		b = binary.AppendVarint(b, int64(t.seq-before))
	}
	return b
}

// decodeToken reads the token at the start of b, which follows one with the sequence before.
func decodeToken(b []byte, before buffer.Seq) (t token, width int) {
	t.flags, t.seq = b[0]&^tokenWhole, 0
	if b[0]&tokenWhole != 0 {
		before = 0
	}
	size, n := binary.Uvarint(b[1:])
	t.size, width = int64(size), 1+n
	if t.flags&tokenSeq != 0 {
		delta, n := binary.Varint(b[width:])
		t.seq = before + buffer.Seq(delta)
		width += n
	}
	return t, width
}

func (q *storedQueue) decode() {
	if q.width == 0 && q.n > 0 {
		q.token, q.width = decodeToken(q.chunks[0][q.at:], q.first)
	}
}

func (q *storedQueue) Peek() *Entry {
	q.catchUp()
	if q.n == 0 {
		return nil
	}
	q.decode()
	if q.token.flags&tokenHeld != 0 {
		return q.held.at(0)
	}
	q.head = q.token.entry()
	return &q.head
}

// entry is the entry that a token stands for, without its message.
func (t token) entry() Entry {
	return Entry{
		QoS: message.QoS(t.flags & tokenQoS), Retain: t.flags&tokenRetain != 0, seq: t.seq, size: t.size,
		dup: t.flags&tokenDup != 0, shared: t.flags&tokenShared != 0,
	}
}

func (q *storedQueue) Pop() Entry {
	q.catchUp()
	q.decode()
	t := q.token
	q.at += q.width
	q.width = 0
	if t.flags&tokenSeq != 0 {
		q.first = t.seq
	}
	if q.at == len(q.chunks[0]) {
		q.at = 0
		if len(q.chunks) > 1 {
			q.chunks[0] = nil
			q.chunks = q.chunks[1:]
		} else if cap(q.chunks[0]) > smallChunk {
			q.chunks = nil
		} else {
			q.chunks[0] = q.chunks[0][:0]
		}
	}
	q.n--
	q.bytes -= t.size
	if t.flags&tokenHeld == 0 {
		q.bare--
		return t.entry()
	}
	e := q.held.pop()
	if e.seq != 0 {
		q.heldBytes -= t.size
	}
	return e
}

func (q *storedQueue) Len() int {
	q.catchUp()
	return q.n
}

func (q *storedQueue) Bytes() int64 {
	q.catchUp()
	return q.bytes
}

// each calls f with the tokens, the oldest first, until f returns false.
func (q *storedQueue) each(f func(token) bool) {
	q.catchUp()
	before, at := q.first, q.at
	for _, c := range q.chunks {
		for at < len(c) {
			t, width := decodeToken(c[at:], before)
			if t.flags&tokenSeq != 0 {
				before = t.seq
			}
			if !f(t) {
				return
			}
			at += width
		}
		at = 0
	}
}

// next returns the sequence of the oldest entry that is stored; 0: there is none.
func (q *storedQueue) next() (seq buffer.Seq) {
	q.each(func(t token) bool {
		seq = t.seq
		return seq == 0
	})
	return seq
}

// strip lets go of the messages that can be read again: the client is away.
func (q *storedQueue) strip() {
	q.hold = false
	if q.heldBytes == 0 {
		return
	}
	q.leave()
	var fresh storedQueue
	q.each(func(t token) bool {
		if t.flags&tokenHeld != 0 {
			if e := q.held.pop(); e.seq == 0 {
				fresh.held.push(e)
			} else {
				t.flags &^= tokenHeld
			}
		}
		if t.flags&tokenHeld == 0 {
			fresh.bare++
		}
		fresh.push(t)
		return true
	})
	*q = fresh
}

// suspect marks the oldest entries with QoS 1, n of them, as possibly sent before.
func (q *storedQueue) suspect(n int) {
	q.leave()
	fresh := storedQueue{hold: q.hold}
	q.each(func(t token) bool {
		if t.flags&tokenQoS == 1 && n > 0 {
			n--
			t.flags |= tokenDup
		}
		fresh.bare++
		fresh.push(t)
		return true
	})
	*q = fresh
}
