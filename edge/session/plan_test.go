package session

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tidegate/message"
)

// TestPlans: who gets a message is always what the subscriptions and the rules say at that moment, however often the topic came before.
func TestPlans(t *testing.T) {
	for seed := range uint64(10) {
		x := newStored(t, newDisk(), Options{}, 1<<30)
		rnd := rand.New(rand.NewPCG(seed, 5))
		filters := []string{"#", "a/#", "a/+", "a/1", "+/1", "b/1"}
		topics := []string{"a/1", "a/2", "b/1", "b/2"}
		denied := map[string]bool{} // client and topic
		type client struct {
			s    *Session
			conn Conn
			subs map[string]*Subscription
		}
		clients := map[string]*client{}
		for i := range 4 {
			name := fmt.Sprint("c", i)
			c := &client{conn: &wire{}, subs: map[string]*Subscription{}}
			c.s, _, _ = x.Attach(Connect{
				Conn: c.conn, Client: name, Version: 5, Expiry: time.Hour, ReceiveMaximum: 10,
				Allow: func(topic string) bool { return !denied[name+topic] },
			})
			if err := c.s.Secure(); err != nil {
				t.Fatal(err)
			}
			clients[name] = c
		}
		hits := 0
		for range 3000 {
			name := fmt.Sprint("c", rnd.IntN(4))
			c, filter := clients[name], filters[rnd.IntN(len(filters))]
			switch rnd.IntN(60) {
			case 0, 1:
				sub := &Subscription{Filter: filter, QoS: message.QoS(1 + rnd.IntN(2)), NoLocal: rnd.IntN(12) == 0, RetainHandling: 2}
				c.s.Subscribe(c.conn, []*Subscription{sub}, nil)
				c.subs[filter] = sub
			case 2:
				c.s.Unsubscribe(c.conn, filter)
				delete(c.subs, filter)
			case 3:
				k := name + topics[rnd.IntN(len(topics))]
				denied[k] = !denied[k]
				x.RulesChanged()
			}
			topic, origin := topics[rnd.IntN(len(topics))], fmt.Sprint("c", rnd.IntN(5))
			want := 0
			for name, c := range clients {
				any := false
				for filter, sub := range c.subs {
					any = any || message.Match(filter, topic) && !(sub.NoLocal && name == origin)
				}
				if any && !denied[name+topic] {
					want++
				}
			}
			r, err := x.Route(Publication{Msg: &message.Message{ID: message.NewID(), Topic: topic, QoS: 1, Payload: []byte("x")}, Client: origin})
			if err != nil || r.Matched != want {
				t.Fatalf("seed %d: %d got %s of %s, want %d: %v", seed, r.Matched, topic, origin, want, err)
			}
			for i := range x.plans.places {
				if p := x.plans.places[i].plan.Load(); p != nil && p.topic == topic && p.version == x.tree.version.Load() {
					hits++
				}
			}
			for _, c := range clients { // nothing is to wait for long
				c.s.mu.Lock()
				for c.s.queue.Len() > 0 {
					e := c.s.queue.Pop()
					c.s.done(&e)
				}
				c.s.mu.Unlock()
			}
		}
		if hits < 300 {
			t.Errorf("a plan was there for %d of 3000: the test proves too little", hits)
		}
		x.Sweep(time.Now())
		x.RulesChanged()
		x.Sweep(time.Now())
		for i := range x.plans.places {
			if x.plans.places[i].plan.Load() != nil || x.plans.last.Load() != nil {
				t.Fatal("a plan of an earlier version is kept")
			}
		}
	}
}
