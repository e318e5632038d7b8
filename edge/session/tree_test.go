package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/message"
)

// sink is a target that keeps what it gets.
type sink struct {
	name string
	off  bool
	full bool
	got  []Entry
}

func (s *sink) client() string      { return s.name }
func (s *sink) online() bool        { return !s.off }
func (s *sink) several() bool       { return true }
func (s *sink) takes(Entry) outcome { return queued }
func (s *sink) deliver(e Entry) outcome {
	if s.full {
		return refused
	}
	s.got = append(s.got, e)
	return queued
}

// FuzzTree compares the tree with matching each filter by itself.
func FuzzTree(f *testing.F) {
	f.Add("a/+ # +/b a//b $SYS/# +", "a/b a $SYS/x a//b /", "a/+ #")
	f.Add("+/# a/# a $share/g/# $share/g/+/#", "a $x $x/a", "a/#")
	f.Fuzz(func(t *testing.T, filters, topics, removed string) {
		var tr tree
		var r retainedStore
		r.limit, r.maxBytes = 1000, 64<<20
		all := map[string]*sink{}
		for _, filter := range strings.Fields(filters) {
			if message.ValidFilter(filter) != nil || all[filter] != nil {
				continue
			}
			s := &sink{name: filter}
			all[filter] = s
			tr.add(s, &Subscription{Filter: filter, QoS: 1})
		}
		for _, filter := range strings.Fields(removed) {
			if s := all[filter]; s != nil {
				tr.remove(s, filter)
				delete(all, filter)
			}
		}
		var names []string
		for _, topic := range strings.Fields(topics) {
			if message.ValidName(topic) != nil {
				continue
			}
			if !slices.Contains(names, topic) {
				names = append(names, topic)
			}
			r.set(&message.Message{Topic: topic, Payload: []byte("x")}, 0)
			got := map[string]int{}
			for _, m := range tr.match(topic, nil) {
				if m.share != nil {
					for _, member := range m.share.members {
						got[member.sub.Filter]++
					}
					continue
				}
				got[m.sub.Filter]++
			}
			for filter := range all {
				want := 0
				if message.Match(filter, topic) {
					want = 1
				}
				if got[filter] != want {
					t.Errorf("%q selects %q %d times, want %d", filter, topic, got[filter], want)
				}
			}
		}
		if r.len() != len(names) {
			t.Errorf("%d retained, want %d", r.len(), len(names))
		}
		for filter, s := range all {
			got := map[string]int{}
			_, plain := splitShared(filter)
			r.match(plain, time.Now(), func(m *message.Message) { got[m.Topic]++ })
			for _, topic := range names {
				if want := message.Match(filter, topic); (got[topic] == 1) != want {
					t.Errorf("retained: %q selects %q %d times, want %v", filter, topic, got[topic], want)
				}
			}
			tr.remove(s, filter)
		}
		if n := &tr.root; !n.children.none() || n.plus != nil || n.hash != nil || len(n.subs) > 0 || len(n.shares) > 0 {
			t.Error("the tree is not empty after all were removed")
		}
		for _, topic := range names {
			r.set(&message.Message{Topic: topic}, 0)
		}
		if r.len() != 0 || !r.root.children.none() {
			t.Error("the retained store is not empty after all were removed")
		}
	})
}

func TestShareTurns(t *testing.T) {
	var tr tree
	sub := &Subscription{Filter: "$share/g/a", QoS: 1}
	a, b, off := &sink{name: "a"}, &sink{name: "b"}, &sink{name: "off", off: true}
	for _, s := range []*sink{a, off, b} {
		tr.add(s, sub)
	}
	deliver := func(qos message.QoS, n int) (taken int) {
		for i := range n {
			m := tr.match("a", nil)
			if len(m) != 1 {
				t.Fatal("want one match")
			}
			if m[0].share.deliver(Entry{Msg: &message.Message{Topic: "a", Payload: []byte(fmt.Sprint(i))}, QoS: qos}) {
				taken++
			}
		}
		return taken
	}
	if n := deliver(2, 100); n != 100 || len(a.got) != 50 || len(b.got) != 50 || len(off.got) != 0 {
		t.Errorf("%d taken: %d %d %d", n, len(a.got), len(b.got), len(off.got))
	}
	if a.got[0].QoS != 1 {
		t.Errorf("QoS %d, want the subscription's", a.got[0].QoS)
	}
	a.full = true
	if n := deliver(1, 10); n != 10 || len(b.got) != 60 {
		t.Errorf("%d taken, b has %d", n, len(b.got))
	}
	b.off = true
	if n := deliver(1, 10); n != 10 || len(off.got)+len(b.got) != 70 {
		t.Errorf("%d taken by those who are away", n)
	}
	if n := deliver(0, 10); n != 0 {
		t.Errorf("%d QoS 0 taken by those who are away", n)
	}
}
