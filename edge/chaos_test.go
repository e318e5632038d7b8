package edge

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Publishers and a subscriber whose connections break at random moments. Everything published with QoS 1 or 2 arrives, in
// order per publisher; with QoS 2 it is taken in exactly once.
func TestBrokenConnections(t *testing.T) {
	b := startBroker(t, nil)
	const publishers, each = 4, 1000
	subscriber := rawOptions{ID: "sub", V: 5, Expiry: 60, RM: 50}
	s := connect(t, b.addr, subscriber)
	subscribe(t, s, "x/#", 2)
	var wg sync.WaitGroup
	errs := make(chan error, publishers)
	for i := range publishers {
		wg.Go(func() {
			f := fragile{addr: b.addr, o: rawOptions{ID: fmt.Sprintf("p%d", i), V: byte(4 + i%2), Expiry: 60}, qos: byte(1 + i/2), each: each}
			if f.o.V == 4 {
				f.o.Expiry = 0
			}
			errs <- f.run(uint64(i))
		})
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	next := make([]int, publishers)
	total := func() (n int) {
		for _, k := range next {
			n += k
		}
		return n
	}
	for end := time.Now().Add(30 * time.Second); total() < publishers*each; {
		if time.Now().After(end) {
			t.Fatalf("arrived %v", next)
		}
		pk, err := s.Recv(time.Second)
		if err != nil || rnd.IntN(500) == 0 {
			_ = s.Close()
			s = connect(t, b.addr, subscriber)
			if !s.Connack.SessionPresent {
				t.Fatal("session lost")
			}
			continue
		}
		switch pk.FixedHeader.Type {
		case packets.Pubrel:
			_ = s.Ack(packets.Pubcomp, pk.PacketID)
		case packets.Publish:
			who, i := int(pk.TopicName[2]-'0'), numberOf(pk)
			if i > next[who] {
				t.Fatalf("publisher %d: %d came before %d", who, i, next[who])
			}
			next[who] = max(next[who], i+1)
			_ = s.Ack(map[byte]byte{1: packets.Puback, 2: packets.Pubrec}[pk.FixedHeader.Qos], pk.PacketID)
		}
	}
	wg.Wait()
	for range publishers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	taken := map[string]int{}
	for _, m := range b.disk.messages() {
		taken[m.Topic]++
	}
	for i := publishers / 2; i < publishers; i++ {
		if n := taken[fmt.Sprintf("x/%d", i)]; n != each {
			t.Errorf("QoS 2 publisher %d: %d taken in, want %d", i, n, each)
		}
	}
}

// fragile publishes each messages with a window of ten over connections that break, and repeats what is open as the
// specification says.
type fragile struct {
	addr string
	o    rawOptions
	qos  byte
	each int

	c    *rawClient
	open []uint16        // identifiers in the order of sending
	num  map[uint16]int  // their messages
	rel  map[uint16]bool // PUBREC came
	next int
}

func (f *fragile) run(seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 9))
	f.num, f.rel = map[uint16]int{}, map[uint16]bool{}
	for f.next < f.each || len(f.open) > 0 {
		if f.c == nil || rnd.IntN(300) == 0 {
			if err := f.reconnect(); err != nil {
				return err
			}
		}
		for f.next < f.each && len(f.open) < 10 {
			id := uint16(f.next%1000 + 1)
			f.open, f.num[id] = append(f.open, id), f.next
			f.next++
			if f.send(id, false) != nil {
				break // the next Recv says so
			}
		}
		pk, err := f.c.Recv(5 * time.Second)
		if err != nil {
			f.c = nil
			continue
		}
		// A PUBREL that is repeated because its PUBCOMP was lost finds nothing any more, which is not an error.
		lost := pk.FixedHeader.Type == packets.Pubcomp && pk.ReasonCode == codeUnknownPacketID
		if pk.ReasonCode != 0 && !lost {
			return fmt.Errorf("packet type %d, reason code %#x", pk.FixedHeader.Type, pk.ReasonCode)
		}
		switch pk.FixedHeader.Type {
		case packets.Puback, packets.Pubcomp:
			f.done(pk.PacketID)
		case packets.Pubrec:
			f.rel[pk.PacketID] = true
			_ = f.c.Ack(packets.Pubrel, pk.PacketID)
		}
	}
	return f.c.Close()
}

func (f *fragile) reconnect() error {
	if f.c != nil {
		_ = f.c.Close()
	}
	c, err := rawDial(f.addr, f.o)
	if err != nil {
		return err
	}
	f.c = c
	for _, id := range f.open {
		if f.rel[id] {
			_ = c.Ack(packets.Pubrel, id)
		} else {
			_ = f.send(id, true)
		}
	}
	return nil
}

func (f *fragile) send(id uint16, dup bool) error {
	return f.c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: f.qos, Dup: dup}, PacketID: id,
		TopicName: "x/" + f.o.ID[1:], Payload: binary.BigEndian.AppendUint32(nil, uint32(f.num[id])),
	})
}

func (f *fragile) done(id uint16) {
	for i, o := range f.open {
		if o == id {
			f.open = append(f.open[:i], f.open[i+1:]...)
			delete(f.rel, id)
			return
		}
	}
}
