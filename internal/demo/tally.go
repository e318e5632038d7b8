package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidegate/message"
)

// Count is what became of the messages of one protocol.
type Count struct {
	Sent  int `json:"sent"`
	Acked int `json:"acked"` // the device was told that they are safe
	// Delivered counts messages that arrived at the cloud, each once; Duplicates what arrived more than that.
	Delivered  int `json:"delivered"`
	Duplicates int `json:"duplicates"`
	Lost       int `json:"lost"` // acknowledged, and not delivered
}

// tally counts messages by topic and number. The topic is demo/PROTOCOL/DEVICE, the number is in the payload.
type tally struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every change
	series  map[string]*series
}

// series is what is known of the messages of one device.
type series struct {
	protocol         message.Protocol
	sent, unanswered int
	acked            map[int]bool
	arrived          map[int]int
}

func newTally() *tally { return &tally{changed: make(chan struct{}), series: map[string]*series{}} }

// topic names the messages of a device.
func topic(p message.Protocol, device string) string { return fmt.Sprintf("demo/%s/%s", p, device) }

// of returns the series of a topic; mu is held.
func (t *tally) of(topic string) *series {
	s := t.series[topic]
	if s == nil {
		levels := strings.Split(topic, "/")
		s = &series{protocol: message.Protocol(levels[min(1, len(levels)-1)]), acked: map[int]bool{}, arrived: map[int]int{}}
		t.series[topic] = s
	}
	return s
}

func (t *tally) note(topic string, f func(*series)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.of(topic))
	close(t.changed)
	t.changed = make(chan struct{})
}

// sent notes that a device hands over its next message, and returns the message's number.
func (t *tally) sent(topic string) (n int) {
	t.note(topic, func(s *series) {
		s.sent++
		s.unanswered++
		n = s.sent
	})
	return n
}

// answered notes how it ended: acknowledged, or not.
func (t *tally) answered(topic string, n int, acked bool) {
	t.note(topic, func(s *series) {
		s.unanswered--
		if acked {
			s.acked[n] = true
		}
	})
}

// arrived notes a message at the cloud. Numbers begin with 1: the gateway's own messages have none, and an OPC UA server tells
// the first value of a node, here 0, to whoever subscribes.
func (t *tally) arrived(topic string, payload []byte) {
	n, ok := numberIn(payload)
	if !strings.HasPrefix(topic, "demo/") || !ok || n < 1 {
		return
	}
	t.note(topic, func(s *series) { s.arrived[n]++ })
}

// numberIn finds the number of a message: the payload of a device, or the value in what the gateway makes of an OPC UA value.
func numberIn(payload []byte) (int, bool) {
	var value struct {
		V json.Number `json:"v"`
	}
	text := string(payload)
	if bytes.HasPrefix(payload, []byte("{")) {
		if err := json.Unmarshal(payload, &value); err != nil {
			return 0, false
		}
		text = value.V.String()
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

// settled reports whether every message has been answered.
func (t *tally) settled() bool { return t.all(func(s *series) bool { return s.unanswered == 0 }) }

// complete reports whether everything that was acknowledged has arrived.
func (t *tally) complete() bool { return t.all(func(s *series) bool { return s.lost() == 0 }) }

func (t *tally) all(f func(*series) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.series {
		if !f(s) {
			return false
		}
	}
	return true
}

func (s *series) lost() int {
	lost := 0
	for n := range s.acked {
		if s.arrived[n] == 0 {
			lost++
		}
	}
	return lost
}

// await waits until f holds, for most at the most.
func (t *tally) await(ctx context.Context, most time.Duration, f func() bool) {
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if f() {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// report adds up.
func (t *tally) report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Report{Protocols: map[message.Protocol]Count{message.MQTT: {}, message.CoAP: {}, message.OPCUA: {}}}
	for _, s := range t.series {
		c := r.Protocols[s.protocol]
		c.Sent += s.sent
		c.Acked += len(s.acked)
		c.Delivered += len(s.arrived)
		for _, times := range s.arrived {
			c.Duplicates += times - 1
		}
		c.Lost += s.lost()
		r.Protocols[s.protocol] = c
		r.Lost += s.lost()
	}
	return r
}

// settledFor is settled for one topic.
func (t *tally) settledFor(topic string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of(topic).unanswered == 0
}

// forgive takes back what was counted as lost.
func (r *Report) forgive() {
	for p, c := range r.Protocols {
		c.Lost = 0
		r.Protocols[p] = c
	}
	r.Lost = 0
}
