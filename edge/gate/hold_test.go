package gate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAckWaitsForCommit(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		time.Sleep(time.Hour)
		p.wantSent(t)
		if p.c.Held() != 4 || p.c.Queued() != 0 {
			t.Errorf("held %d, queued %d, want 4, 0", p.c.Held(), p.c.Queued())
		}
		p.disk.commit(1)
		p.wantSent(t, puback(1))
		if p.c.Held() != 0 || p.c.Queued() != 0 || p.c.BytesWritten() != 4 {
			t.Errorf("held %d, queued %d, written %d, want 0, 0, 4", p.c.Held(), p.c.Queued(), p.c.BytesWritten())
		}
	})
}

func TestDurableTicketWritesThrough(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.disk.commit(7)
		for _, tk := range []Ticket{nil, p.disk.at(0), p.disk.at(7)} {
			p.c.Hold(tk)
			p.write(t, puback(1))
			p.wantSent(t, puback(1))
		}
		p.c.Hold(p.disk.at(8))
		p.disk.commit(8) // between Hold and Write
		p.write(t, puback(2))
		p.wantSent(t, puback(2))
		if p.disk.calls != 0 {
			t.Errorf("Done called %d times", p.disk.calls)
		}
	})
}

// The broker may still have an acknowledgement in its own buffer when it holds for the next one.
func TestDurableTicketDoesNotFreeAnOlderOne(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		p.c.Hold(p.disk.at(0))
		p.c.Hold(nil)
		p.write(t, append(puback(1), puback(2)...))
		p.wantSent(t)
		p.disk.commit(1)
		p.wantSent(t, puback(1), puback(2))
	})
}

func TestOneWriteAndOneDonePerCommit(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		var want []byte
		for i := range uint16(500) {
			p.c.Hold(p.disk.at(uint64(i) + 1))
			p.write(t, puback(i))
			want = append(want, puback(i)...)
		}
		p.disk.commit(300)
		p.wantSent(t, want[:1200])
		if n := p.m.writes.Load(); n != 1 {
			t.Errorf("first commit: %d writes, want 1", n)
		}
		p.disk.commit(500)
		p.wantSent(t, want[1200:])
		if n := p.m.writes.Load(); n != 2 {
			t.Errorf("after two commits: %d writes, want 2", n)
		}
		if p.disk.calls != 2 || p.disk.mostOpen != 1 {
			t.Errorf("Done called %d times, %d at once, want 2, 1", p.disk.calls, p.disk.mostOpen)
		}
	})
}

func TestOthersOvertakeAcks(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		// One Write with several packets, as the broker flushes its buffer.
		p.write(t, bytes.Join([][]byte{publish(5), puback(1), pubrel(9), pubrec(2), pingresp(), pubcomp(3), publish(300), pubrel(8)}, nil))
		p.wantSent(t, publish(5), pubrel(9), pingresp(), publish(300), pubrel(8))
		p.disk.commit(1)
		p.wantSent(t, puback(1), pubrec(2), pubcomp(3))
	})
}

func TestAckWithoutHoldKeepsItsPlace(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		p.c.Hold(p.disk.at(2)) // of an ack that comes late
		p.disk.mu.Lock()
		p.disk.durable = 2 // durable, but the callback has not come yet
		p.disk.mu.Unlock()
		p.write(t, puback(2))
		p.wantSent(t)
		p.disk.commit(2)
		p.wantSent(t, puback(1), puback(2))
	})
}

func TestDisconnectLeavesLast(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 5)
		p.wantSent(t, connack(5))
		p.c.Hold(p.disk.at(1))
		p.write(t, bytes.Join([][]byte{puback(1), publish(1), goodbye(0x8b), publish(2)}, nil))
		p.wantSent(t, publish(1))
		if _, err := p.c.Write(pingresp()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after disconnect: %v", err)
		}
		p.disk.commit(1)
		p.wantSent(t, puback(1), goodbye(0x8b))
	})
}

func TestNoDisconnectForOldClients(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.connect(t, 4)
		p.write(t, []byte{0xe0, 0})
		p.wantSent(t, connack(4))
	})
}

func TestBytesThatAreNoPacketsKeepTheirOrder(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		big := publish(100)
		p.write(t, big[:50])
		p.write(t, big[50:])
		p.write(t, pingresp())
		p.wantSent(t)
		p.disk.commit(1)
		p.wantSent(t, puback(1), big, pingresp())
	})
}

func TestFailedDiskReleasesNothing(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		p.c.Hold(p.disk.at(2))
		p.write(t, append(puback(2), pingresp()...))
		p.disk.fail(errDisk)
		p.c.Wait()
		p.wantSent(t, pingresp())
		p.disk.commit(2)
		p.wantSent(t)
		p.end.want(t, ReasonDisk)
		if _, err := p.c.Cause(); !errors.Is(err, errDisk) {
			t.Errorf("cause %v", err)
		}
		if _, err := p.c.Write(puback(3)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if _, err := p.c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
}

// Half of the tickets are durable when the disk fails: those acknowledgements are true and leave.
func TestFailedDiskAfterCommit(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		go p.peer.collect()
		for i := range uint16(4) {
			p.c.Hold(p.disk.at(uint64(i) + 1))
			p.write(t, puback(i))
		}
		p.disk.commit(2)
		p.disk.fail(errDisk)
		p.wantSent(t, puback(0), puback(1))
		p.end.want(t, ReasonDisk)
	})
}

// Random acknowledgements, deliveries and commits: acknowledgements arrive in order and none before its commit.
func TestAcksNeverLeaveEarly(t *testing.T) {
	for seed := range uint64(20) {
		bubble(t, Options{}, func(t *testing.T, p *pair) {
			go p.peer.collect()
			rnd := rand.New(rand.NewPCG(seed, 1))
			var pos, durable uint64
			var acks []uint64 // the position each written ack waits for
			seen := 0
			for range 2000 {
				switch rnd.IntN(5) {
				case 0, 1:
					pos++
					p.c.Hold(p.disk.at(pos))
					p.write(t, puback(uint16(len(acks))))
					acks = append(acks, pos)
				case 2:
					p.write(t, append(pingresp(), pubcomp(uint16(len(acks)))...))
					acks = append(acks, pos)
				case 3:
					p.write(t, publish(rnd.IntN(200)))
				case 4:
					durable += rnd.Uint64N(pos - durable + 1)
					p.disk.commit(durable)
				}
				synctest.Wait()
				seen = checkAcks(t, p.peer.take(), acks, seen, durable)
			}
			p.disk.commit(pos)
			synctest.Wait()
			if seen = checkAcks(t, p.peer.take(), acks, seen, pos); seen != len(acks) {
				t.Errorf("seed %d: %d of %d acknowledgements arrived", seed, seen, len(acks))
			}
		})
	}
}

// checkAcks goes through packets that arrived, after seen acknowledgements, and returns the new number of those.
func checkAcks(t *testing.T, got []byte, acks []uint64, seen int, durable uint64) int {
	t.Helper()
	for len(got) > 0 {
		typ, n, ok := splitFrame(got)
		if !ok {
			t.Fatalf("broken packet %x", got)
		}
		if waitsForDisk(typ) {
			id := int(got[2])<<8 | int(got[3])
			if id != seen {
				t.Fatalf("acknowledgement %d arrived in place of %d", id, seen)
			}
			if acks[id] > durable {
				t.Fatalf("acknowledgement for position %d left at %d", acks[id], durable)
			}
			seen++
		}
		got = got[n:]
	}
	return seen
}

// In the bubble a Write that waited for the peer would be a deadlock.
func TestWriteNeverBlocks(t *testing.T) {
	bubble(t, Options{MaxQueued: 100 << 10}, func(t *testing.T, p *pair) {
		begin := time.Now()
		for range 1000 {
			p.write(t, publish(200))
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("1000 writes to a stuck peer took %v", d)
		}
		if want := 1000 * len(publish(200)); p.c.Queued() != want || !p.c.Full() {
			t.Errorf("queued %d, full %v, want %d, true", p.c.Queued(), p.c.Full(), want)
		}
	})
}

func TestHardBoundEndsTheConnection(t *testing.T) {
	bubble(t, Options{HardQueued: 1000}, func(t *testing.T, p *pair) {
		p.write(t, publish(5000)) // one packet is always taken
		if _, err := p.c.Write(publish(1)); !errors.Is(err, ErrQueueFull) {
			t.Fatalf("write above the bound: %v", err)
		}
		p.c.Wait()
		p.end.want(t, ReasonQueue)
		if !p.m.closed.Load() {
			t.Error("socket not closed")
		}
	})
}

func TestWriteTimeout(t *testing.T) {
	bubble(t, Options{WriteTimeout: 7 * time.Second}, func(t *testing.T, p *pair) {
		begin := time.Now()
		p.write(t, publish(1))
		p.c.Wait()
		if d := time.Since(begin); d != 7*time.Second {
			t.Errorf("cut off after %v, want 7s", d)
		}
		p.end.want(t, ReasonWriteTimeout)
	})
}

func TestSlowPeerIsServed(t *testing.T) {
	bubble(t, Options{WriteTimeout: 7 * time.Second}, func(t *testing.T, p *pair) {
		want := publish(100)
		p.write(t, want)
		var got []byte
		for range want {
			time.Sleep(6 * time.Second)
			b := make([]byte, 1)
			if _, err := p.peer.Read(b); err != nil {
				t.Fatalf("after %d bytes: %v", len(got), err)
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes arrived")
		}
	})
}

func TestCutPeer(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		p.c.Hold(p.disk.at(1))
		p.write(t, puback(1))
		_ = p.peer.Close()
		p.disk.commit(1)
		p.c.Wait()
		p.end.want(t, ReasonWriteError)
	})
}

func TestWaitBelow(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		if err := p.c.WaitBelow(t.Context(), 0); err != nil {
			t.Fatalf("nothing queued: %v", err)
		}
		p.write(t, publish(1000))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.c.WaitBelow(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("stuck peer: %v", err)
		}
		go p.peer.collect()
		if err := p.c.WaitBelow(t.Context(), 100); err != nil {
			t.Fatalf("peer took it: %v", err)
		}
	})
}

func TestWaitBelowEndsWithTheConnection(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		p.write(t, publish(1000))
		begin := time.Now()
		time.AfterFunc(time.Second, func() { _ = p.c.Close() })
		if err := p.c.WaitBelow(t.Context(), 100); !errors.Is(err, net.ErrClosed) || time.Since(begin) != time.Second {
			t.Errorf("closed after 1 s: %v after %v", err, time.Since(begin))
		}
	})
}

// An idle connection keeps neither goroutines nor large buffers.
func TestIdleCostsLittle(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, p *pair) {
		for i := range uint16(1000) {
			p.c.Hold(p.disk.at(uint64(i) + 1))
			p.write(t, append(puback(i), publish(1000)...))
			if i%250 == 0 {
				synctest.Wait() // the writer has taken what there was and is stuck
			}
		}
		go p.peer.collect()
		p.disk.commit(1000)
		synctest.Wait()
		p.c.mu.Lock()
		defer p.c.mu.Unlock()
		if p.c.writing || p.c.refs != 1 {
			t.Errorf("writing %v, refs %d", p.c.writing, p.c.refs)
		}
		if n := cap(p.c.out) + cap(p.c.spare) + cap(p.c.held); n > 2*keepBytes || cap(p.c.marks) > keepMarks {
			t.Errorf("idle connection keeps %d bytes and %d marks", n, cap(p.c.marks))
		}
	})
}

// A session's sender paces itself by WaitBelow: a slow client gets everything in order, and little memory is taken.
func TestSlowPeerOverTCP(t *testing.T) {
	sv, cl := tcpPair(t)
	c := Wrap(sv, Options{MaxQueued: 64 << 10})
	var d disk
	const n = 2000
	var sender sync.WaitGroup
	most := 0
	sender.Go(func() {
		for i := range uint16(n) {
			if err := c.WaitBelow(t.Context(), 64<<10); err != nil {
				t.Error(err)
				return
			}
			c.Hold(d.at(uint64(i) + 1))
			pk := publish(1000)
			copy(pk[10:], puback(i)) // numbers the payload
			if _, err := c.Write(append(pk, puback(i)...)); err != nil {
				t.Error(err)
				return
			}
			most = max(most, c.Queued())
			if i%10 == 9 {
				d.commit(uint64(i) + 1)
			}
		}
	})
	r := bufio.NewReaderSize(cl, 4096)
	publishes, acks := uint16(0), uint16(0)
	for publishes < n || acks < n {
		head, err := r.Peek(3)
		if err != nil {
			t.Fatal(err)
		}
		_, size, _ := splitFrame(head)
		pk := make([]byte, size)
		if _, err := io.ReadFull(r, pk); err != nil {
			t.Fatal(err)
		}
		switch {
		case len(pk) == 4 && bytes.Equal(pk, puback(acks)):
			acks++
		case len(pk) > 1000 && bytes.Equal(pk[10:14], puback(publishes)):
			publishes++
		default:
			t.Fatalf("after %d publishes and %d acknowledgements: %.20x", publishes, acks, pk)
		}
		if publishes%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	sender.Wait()
	if most > 64<<10+20<<10 {
		t.Errorf("%d bytes were queued", most)
	}
	c.Kill("end of test")
	c.Wait()
}
