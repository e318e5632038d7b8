package gate

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// groupLog commits what was appended every syncTime, as a log with one flush per group does.
type groupLog struct {
	head, durable atomic.Uint64
	mu            sync.Mutex
	waiting       []waitingFor
}

type waitingFor struct {
	pos uint64
	f   func(error)
}

const syncTime = 1400 * time.Microsecond

type groupTicket struct {
	l   *groupLog
	pos uint64
}

func (t groupTicket) Durable() bool { return t.l.durable.Load() >= t.pos }

func (t groupTicket) Done(f func(error)) {
	t.l.mu.Lock()
	if t.Durable() {
		t.l.mu.Unlock()
		f(nil)
		return
	}
	t.l.waiting = append(t.l.waiting, waitingFor{t.pos, f})
	t.l.mu.Unlock()
}

func (l *groupLog) commit() {
	pos := l.head.Load()
	time.Sleep(syncTime)
	l.mu.Lock()
	l.durable.Store(pos)
	var due []func(error)
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		if w.pos <= pos {
			due = append(due, w.f)
		} else {
			kept = append(kept, w)
		}
	}
	l.waiting = kept
	l.mu.Unlock()
	for _, f := range due {
		f(nil)
	}
}

// BenchmarkAcks has one client publish 256 bytes with at most 500 unacknowledged, and a server that reads packet by
// packet as the broker does. bare: no gate. gate: nothing waits. held: every acknowledgement waits for a group commit.
func BenchmarkAcks(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		sv, cl := tcpPair(b)
		benchAcks(b, sv, cl, 500, func() {})
	})
	b.Run("gate", func(b *testing.B) {
		sv, cl := tcpPair(b)
		benchAcks(b, Wrap(sv, Options{}), cl, 500, func() {})
	})
	b.Run("held", func(b *testing.B) {
		sv, cl := tcpPair(b)
		c := Wrap(sv, Options{})
		l := &groupLog{}
		stop := make(chan struct{})
		var committer sync.WaitGroup
		committer.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					l.commit()
				}
			}
		})
		benchAcks(b, c, cl, 500, func() { c.Hold(groupTicket{l, l.head.Add(1)}) })
		close(stop)
		committer.Wait()
	})
}

// BenchmarkRoundTrip has one message in flight: what the gate's writer costs in latency.
func BenchmarkRoundTrip(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		sv, cl := tcpPair(b)
		benchAcks(b, sv, cl, 1, func() {})
	})
	b.Run("gate", func(b *testing.B) {
		sv, cl := tcpPair(b)
		benchAcks(b, Wrap(sv, Options{}), cl, 1, func() {})
	})
}

func benchAcks(b *testing.B, sv, cl net.Conn, window int, hold func()) {
	var work sync.WaitGroup
	work.Go(func() { serveAcks(sv, hold) })
	slots := make(chan struct{}, window)
	_, _ = cl.Write(connectPacket(4, 0))
	_, _ = io.ReadFull(cl, make([]byte, 4))
	b.ReportAllocs()
	b.ResetTimer()
	work.Go(func() {
		pk := publish(256)
		buf := make([]byte, 0, 16*len(pk))
		for n := 0; n < b.N; {
			slots <- struct{}{}
			buf = append(buf[:0], pk...)
			for n++; n < b.N && len(buf) < cap(buf) && len(slots) < window; n++ {
				slots <- struct{}{}
				buf = append(buf, pk...)
			}
			if _, err := cl.Write(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	acks := make([]byte, 4096)
	for got := 0; got < 4*b.N; {
		n, err := cl.Read(acks)
		if err != nil {
			b.Fatal(err)
		}
		for range (got+n)/4 - got/4 {
			<-slots
		}
		got += n
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "acks/s")
	_ = cl.Close()
	_ = sv.Close()
	work.Wait()
	if c, ok := sv.(*Conn); ok {
		c.Wait()
	}
}

// serveAcks answers every packet, the CONNECT included, with four bytes.
func serveAcks(sv net.Conn, hold func()) {
	r := bufio.NewReaderSize(sv, 1024)
	ack := connack(4)
	for {
		_ = sv.SetDeadline(time.Now().Add(time.Minute))
		length, shift := 0, 0
		if _, err := r.ReadByte(); err != nil {
			return
		}
		for {
			x, err := r.ReadByte()
			if err != nil {
				return
			}
			length |= int(x&0x7f) << shift
			shift += 7
			if x&0x80 == 0 {
				break
			}
		}
		if _, err := io.ReadFull(r, make([]byte, length)); err != nil {
			return
		}
		if ack[0] != 0x20 {
			hold()
		}
		if _, err := sv.Write(ack); err != nil {
			return
		}
		ack = puback(1)
	}
}

func BenchmarkScan(b *testing.B) {
	in := bytes.Repeat(publish(256), 1000)
	s := scanner{maxConnect: 1 << 10, maxPacket: 1 << 20}
	if _, err := s.scan(connectPacket(5, 0)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := s.scan(in); err != nil {
			b.Fatal(err)
		}
	}
}
