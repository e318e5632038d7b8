package session

import (
	"fmt"
	"testing"

	"tidegate/message"
)

// TestMemoryOfAll: many clients that take nothing, or acknowledge nothing, do not take all the memory together, and one that does as it
// should loses nothing meanwhile.
func TestMemoryOfAll(t *testing.T) {
	const most, clients, each = 4 << 20, 40, 2 << 20
	for _, size := range []int{300, 100 << 10} {
		for _, qos := range []message.QoS{0, 1, 2} {
			t.Run(fmt.Sprintf("QoS %d, %d bytes", qos, size), func(t *testing.T) {
				drops := map[string]int{}
				m := New(Options{QueueBytes: each, MemoryBytes: most, LiveBytes: each, Drop: func(why string, n int) { drops[why] += n }})
				conn := &null{}
				member := func(name string) *Session {
					s, _, _ := m.Attach(Connect{Conn: conn, Client: name, Version: 5, Allow: allowAll})
					s.Subscribe(conn, []*Subscription{{Filter: name, QoS: 2}}, nil)
					return s
				}
				good := member("good")
				var bad []*Session
				for i := range clients {
					bad = append(bad, member(fmt.Sprint("bad", i)))
				}
				taken, sent := 0, 0
				for range each / size {
					for i, s := range bad {
						m.Publish(&message.Message{Topic: fmt.Sprint("bad", i), QoS: qos, Payload: make([]byte, size)}, "")
						if i%2 == 0 && qos > 0 {
							s.encode(conn, nil) // it takes them, and acknowledges none
						}
					}
					n, _ := m.Publish(&message.Message{Topic: "good", QoS: 1, Payload: make([]byte, size)}, "")
					sent++
					taken += n
					good.encode(conn, nil)
					good.Puback(conn, uint16((sent-1)%65535+1))
				}
				if taken != sent {
					t.Errorf("the one that does as it should got %d of %d", taken, sent)
				}
				var all int64
				for _, s := range bad {
					all += s.inMemory()
				}
				if all > most*5/4+clients*(leastShare+countStep) || all < most/2 {
					t.Errorf("%d bytes in memory, %d allowed", all, most)
				}
				if drops[dropFull]+drops[dropSlow] == 0 {
					t.Error("nothing was counted")
				}
				for _, s := range bad {
					m.Detach(s, conn)
				}
				m.Detach(good, conn)
				if n := m.memory.Load(); n != 0 {
					t.Errorf("%d bytes counted of nothing", n)
				}
				if n := m.levels.Load(); n != 0 {
					t.Errorf("%d levels counted of nothing", n)
				}
			})
		}
	}
}
