package gate

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
)

func TestSplitFrame(t *testing.T) {
	cases := []struct {
		name string
		in   []byte
		typ  byte
		n    int
		ok   bool
	}{
		{"empty", nil, 0, 0, false},
		{"one byte", []byte{0x40}, 0, 0, false},
		{"no body", []byte{0xd0, 0}, 13, 2, true},
		{"body and more", []byte{0x40, 2, 0, 1, 0x40}, typePuback, 4, true},
		{"half a body", []byte{0x40, 2, 0}, typePuback, 4, false},
		{"two bytes of length", append([]byte{0x30, 0x80, 1}, make([]byte, 128)...), 3, 131, true},
		{"half a length", []byte{0x30, 0x80}, 0, 0, false},
		{"largest length", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, 3, 5 + 268435455, false},
		{"five bytes of length", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x7f}, 0, 0, false},
		{"type 0", []byte{0, 0}, 0, 0, false},
	}
	for _, tc := range cases {
		typ, n, ok := splitFrame(tc.in)
		if typ != tc.typ || n != tc.n || ok != tc.ok {
			t.Errorf("%s: %d, %d, %v, want %d, %d, %v", tc.name, typ, n, ok, tc.typ, tc.n, tc.ok)
		}
	}
}

func TestAccepts(t *testing.T) {
	long := append([]byte{0x20, 0x83, 1, 1, 0}, make([]byte, 129)...)
	for _, frame := range [][]byte{{0x20, 2, 0, 0}, {0x20, 2, 1, 0}, {0x20, 3, 0, 0, 0}, long} {
		if !accepts(frame) {
			t.Errorf("%x does not accept", frame)
		}
	}
	for _, frame := range [][]byte{{0x20, 2, 0, 5}, {0x20, 3, 0, 0x87, 0}, {0x20, 0}, {0x20, 1, 0}} {
		if accepts(frame) {
			t.Errorf("%x accepts", frame)
		}
	}
}

func TestScannerLevel(t *testing.T) {
	odd := frameOf(0x10, append([]byte{0, 200}, make([]byte, 300)...))
	for _, tc := range []struct {
		in    []byte
		level byte
	}{
		{connectPacket(3, 0), 3},
		{connectPacket(4, 0), 4},
		{connectPacket(5, 1000), 5},
		{odd, 0},
		{[]byte{0x10, 0}, 0},
		{[]byte{0x10, 3, 0, 4, 'M'}, 0},
	} {
		s := scanner{maxConnect: 1 << 20, maxPacket: 1 << 20}
		if _, err := s.scan(tc.in); err != nil || s.level != tc.level || !s.whole {
			t.Errorf("%.20x: level %d, whole %v, %v, want level %d", tc.in, s.level, s.whole, err, tc.level)
		}
	}
}

func TestScannerBounds(t *testing.T) {
	connect, pk := connectPacket(4, 50), publish(200)
	for _, tc := range []struct {
		maxConnect, maxPacket int
		n                     int
		err                   error
	}{
		{len(connect), len(pk), len(connect) + len(pk), nil},
		{len(connect) - 1, len(pk), 0, ErrConnectTooLarge},
		{len(connect), len(pk) - 1, len(connect), ErrPacketTooLarge},
	} {
		s := scanner{maxConnect: tc.maxConnect, maxPacket: tc.maxPacket}
		if n, err := s.scan(append(connect, pk...)); n != tc.n || !errors.Is(err, tc.err) {
			t.Errorf("bounds %d, %d: %d, %v, want %d, %v", tc.maxConnect, tc.maxPacket, n, err, tc.n, tc.err)
		}
	}
}

// FuzzFrame checks the inbound scanner against whole packets: however the stream is cut, the same bytes are accepted,
// with the same error and the same protocol level.
func FuzzFrame(f *testing.F) {
	f.Add(append(connectPacket(5, 0), publish(300)...), []byte{1, 2, 3})
	f.Add(append(connectPacket(3, 90), puback(1)...), []byte{0})
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f}, []byte{1})
	f.Add(append(connectPacket(4, 0), 0, 0), []byte{5, 1})
	f.Add([]byte{0x10, 2, 0, 200, 0xd0, 0, 0x30, 0xff, 0x7f}, []byte{9})
	f.Fuzz(func(t *testing.T, in, cuts []byte) {
		const maxConnect, maxPacket = 120, 400
		wantN, wantErr := referenceScan(in, maxConnect, maxPacket)

		whole := scanner{maxConnect: maxConnect, maxPacket: maxPacket}
		n, err := whole.scan(in)
		if n != wantN || !errors.Is(err, wantErr) {
			t.Fatalf("in one piece: %d bytes, %v, want %d, %v", n, err, wantN, wantErr)
		}

		pieces := scanner{maxConnect: maxConnect, maxPacket: maxPacket}
		total, rest := 0, in
		for i := 0; len(rest) > 0; i++ {
			size := 1
			if len(cuts) > 0 {
				size += int(cuts[i%len(cuts)])
			}
			size = min(size, len(rest))
			n, err = pieces.scan(rest[:size])
			total += n
			rest = rest[size:]
			if err != nil {
				break
			}
		}
		// The first bytes of a bad header may be out before it is known to be bad.
		if !errors.Is(err, wantErr) || total < wantN || total > wantN+maxLengthBytes {
			t.Fatalf("in pieces: %d bytes, %v, want %d, %v", total, err, wantN, wantErr)
		}
		if pieces.level != whole.level || pieces.whole != whole.whole {
			t.Fatalf("in pieces: level %d, whole %v, want %d, %v", pieces.level, pieces.whole, whole.level, whole.whole)
		}
	})
}

// referenceScan says what a scanner has to accept of in, packet by packet.
func referenceScan(in []byte, maxConnect, maxPacket int) (int, error) {
	for at := 0; at < len(in); {
		p := in[at:]
		if at == 0 && p[0]>>4 != typeConnect {
			return at, ErrNotConnect
		}
		if p[0]>>4 == 0 {
			return at, ErrMalformed
		}
		_, n, whole := splitFrame(p)
		if n == 0 {
			if len(p) > maxLengthBytes {
				return at, ErrMalformed
			}
			return len(in), nil // half a header
		}
		if at == 0 && n > maxConnect {
			return at, ErrConnectTooLarge
		}
		if n > maxPacket {
			return at, ErrPacketTooLarge
		}
		if !whole {
			return len(in), nil
		}
		at += n
	}
	return len(in), nil
}

// FuzzWrite gives arbitrary bytes to Write while a ticket is open: none is lost or made up, acknowledgements do not leave
// before the commit, everything keeps its order within its kind, and nothing follows a DISCONNECT.
func FuzzWrite(f *testing.F) {
	f.Add(bytes.Join([][]byte{puback(1), publish(3), pubrec(2), pingresp(), goodbye(0), puback(3)}, nil), byte(7))
	f.Add(append(puback(1), 0x30, 0xff), byte(0))
	f.Add(publish(500)[:200], byte(3))
	f.Fuzz(func(t *testing.T, in []byte, size byte) {
		held, free := referenceSort(in)
		synctest.Test(t, func(t *testing.T) {
			p := newPair(Options{})
			go p.peer.collect()
			p.c.level.Store(5)
			p.c.Hold(p.disk.at(1))
			for rest := in; len(rest) > 0; {
				n := wholeFrames(rest, int(size)+1)
				if _, err := p.c.Write(rest[:n]); err != nil {
					break
				}
				rest = rest[n:]
			}
			p.wantSent(t, free)
			p.disk.commit(1)
			p.wantSent(t, held)
			p.c.Kill("end of test")
			p.c.Wait()
		})
	})
}

// wholeFrames returns how much of p one Write gets: at least want bytes, ended where a packet ends if there is one.
func wholeFrames(p []byte, want int) int {
	n := 0
	for n < min(want, len(p)) {
		_, size, ok := splitFrame(p[n:])
		if !ok {
			return len(p)
		}
		n += size
	}
	return n
}

// referenceSort says what of in has to wait for the disk and what may leave at once.
func referenceSort(in []byte) (held, free []byte) {
	for len(in) > 0 {
		typ, n, ok := splitFrame(in)
		switch {
		case !ok:
			return append(held, in...), free
		case typ == typeDisconnect && len(held) == 0:
			return nil, append(free, in[:n]...)
		case typ == typeDisconnect:
			return append(held, in[:n]...), free
		case waitsForDisk(typ):
			held = append(held, in[:n]...)
		default:
			free = append(free, in[:n]...)
		}
		in = in[n:]
	}
	return held, free
}
