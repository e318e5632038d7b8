package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"tidegate/message/envelope"
)

// tally counts arrivals at the far end: what is missing, what came twice, what came out of order. Payloads are those of
// devices: a name and a number. Order is a matter of each topic.
type tally struct {
	mu      sync.Mutex
	streams map[string]*stream
	ids     map[string]string            // tg-id -> what it stands for: topic, payload and tg-seq
	seqs    map[string]map[uint64]bool   // EPOCH-LANE of tg-seq -> numbers
	faults  []string                     // broken promises about identity
	extra   func(arrival) (fault string) // may look at each arrival
}

// stream is one topic.
type stream struct {
	count   map[int]int // arrivals by number
	newest  int         // of the first arrivals so far
	ordered bool
	faults  []string
	resent  int // arrivals that repeat a tg-id
}

// arrival is one message at the far end.
type arrival struct {
	topic, payload string
	id, seq, src   string // user properties tg-id, tg-seq and tg-src, or fields in a batch; empty when absent
	up             string // tg-up
	properties     map[string]string
}

func newTally() *tally {
	return &tally{streams: map[string]*stream{}, ids: map[string]string{}, seqs: map[string]map[uint64]bool{}}
}

func (c *tally) add(a arrival) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := numberOf(a.payload)
	if err != nil {
		c.fault("payload %q on %s", a.payload, a.topic)
		return
	}
	s := c.streams[a.topic]
	if s == nil {
		s = &stream{count: map[int]int{}, ordered: true}
		c.streams[a.topic] = s
	}
	s.count[n]++
	if s.count[n] == 1 {
		if n < s.newest {
			s.ordered = false
			s.faults = append(s.faults, fmt.Sprintf("%d after %d", n, s.newest))
		}
		s.newest = max(s.newest, n)
	}
	c.identity(s, a)
	if c.extra != nil {
		if text := c.extra(a); text != "" {
			c.fault("%s", text)
		}
	}
}

// numberOf finds the number in a payload: that of a device is a name and a number, that of an OPC UA counter, which begins with
// 0, {"v":NUMBER-1,…}.
func numberOf(payload string) (int, error) {
	if rest, ok := strings.CutPrefix(payload, `{"v":`); ok {
		value, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(value)
		return n + 1, err
	}
	fields := strings.Fields(payload)
	if len(fields) < 2 {
		return 0, errors.New("no name and number")
	}
	return strconv.Atoi(fields[1])
}

// identity checks that a tg-id always stands for the same record.
func (c *tally) identity(s *stream, a arrival) {
	if a.id == "" {
		return
	}
	what := a.topic + " " + a.payload + " " + a.seq
	if before, ok := c.ids[a.id]; !ok {
		c.ids[a.id] = what
	} else {
		s.resent++
		if before != what {
			c.fault("tg-id %s stands for %q and for %q", a.id, before, what)
		}
	}
	lane, number, ok := cutLast(a.seq, "-")
	lane = a.up + " " + lane
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || strings.Count(a.seq, "-") < 2 {
		c.fault("tg-seq %q is not EPOCH-LANE-N", a.seq)
		return
	}
	if c.seqs[lane] == nil {
		c.seqs[lane] = map[uint64]bool{}
	}
	c.seqs[lane][n] = true
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (c *tally) fault(format string, args ...any) {
	if len(c.faults) < 10 {
		c.faults = append(c.faults, fmt.Sprintf(format, args...))
	}
}

// verdict is the account of one topic against the numbers 1 to want.
type verdict struct {
	lost       []int
	duplicates int // arrivals beyond the first of their number
	resent     int // arrivals that repeat a tg-id
	disorder   []string
}

func (v verdict) String() string {
	return fmt.Sprintf("lost %d %v, duplicates %d (repeating a tg-id: %d), reordered %d %v",
		len(v.lost), v.lost[:min(5, len(v.lost))], v.duplicates, v.resent, len(v.disorder), v.disorder[:min(5, len(v.disorder))])
}

func (c *tally) verdict(topic string, want int) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[topic]
	if s == nil {
		s = &stream{}
	}
	v := verdict{resent: s.resent, disorder: append([]string(nil), s.faults...)}
	for n := 1; n <= want; n++ {
		if s.count[n] == 0 {
			v.lost = append(v.lost, n)
		}
	}
	for _, k := range s.count {
		v.duplicates += k - 1
	}
	return v
}

// distinct returns how many different numbers arrived on a topic.
func (c *tally) distinct(topic string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[topic]; s != nil {
		return len(s.count)
	}
	return 0
}

// requireAll waits for the numbers 1 to want on a topic and wants them in order.
func (c *tally) requireAll(t testing.TB, topic string, want int, limit time.Duration) verdict {
	t.Helper()
	deadline := time.Now().Add(limit)
	for c.distinct(topic) < want && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	v := c.verdict(topic, want)
	t.Logf("%s: %d messages, %v", topic, want, v)
	if len(v.lost) > 0 || len(v.disorder) > 0 {
		t.Errorf("%s: of %d messages: %v", topic, want, v)
	}
	return v
}

// requireSound wants every tg-id and tg-seq to have been what it promises; gaps in the sequence are faults where nothing was
// evicted.
func (c *tally) requireSound(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.faults {
		t.Error(f)
	}
	for lane, numbers := range c.seqs {
		var list []uint64
		for n := range numbers {
			list = append(list, n)
		}
		sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
		if first, last := list[0], list[len(list)-1]; last-first+1 != uint64(len(list)) {
			t.Errorf("tg-seq %s: %d numbers between %d and %d: not contiguous", lane, len(list), first, last)
		}
	}
}

// identities returns how many different tg-id arrived.
func (c *tally) identities() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ids)
}

// saw reports whether a tg-id arrived.
func (c *tally) saw(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.ids[id]
	return ok
}

// consumer is an application behind the cloud broker, over MQTT 5 with a session that the broker keeps. It reconnects for
// ever.
type consumer struct {
	*tally
	addr    string
	id      string
	filters []string
	batches atomic.Int64 // how many came

	mu      sync.Mutex
	expects bool // subscribed at least once
	up      chan struct{}
}

// consume subscribes at a cloud broker, with QoS 1, and returns when the subscription is there.
func consume(t testing.TB, addr, id string, filters ...string) *consumer {
	t.Helper()
	c := &consumer{tally: newTally(), addr: addr, id: id, filters: filters, up: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	go func() { // ends with ctx
		defer close(ended)
		for ctx.Err() == nil {
			c.connection(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	select {
	case <-c.up:
	case <-time.After(soon):
		t.Fatalf("consumer %s could not subscribe", id)
	}
	return c
}

// connection works on one connection until it breaks or ctx ends.
func (c *consumer) connection(ctx context.Context) {
	conn, err := net.DialTimeout("tcp", c.addr, time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	client := paho.NewClient(paho.ClientConfig{
		Conn:          conn,
		PacketTimeout: 10 * time.Second,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			if strings.HasSuffix(p.Packet.Topic, "/batch") {
				c.addBatch(p.Packet)
			} else {
				c.add(arrivalOf(p.Packet))
			}
			return true, nil
		}},
		OnClientError: func(error) {},
	})
	expiry := uint32(3600)
	ack, err := client.Connect(ctx, &paho.Connect{
		ClientID: c.id, KeepAlive: 30, CleanStart: false,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	})
	if err != nil || ack.ReasonCode != 0 {
		return
	}
	if !ack.SessionPresent && c.seen() {
		c.tally.mu.Lock()
		c.fault("the cloud broker forgot the session of %s", c.id)
		c.tally.mu.Unlock()
	}
	s := &paho.Subscribe{}
	for _, f := range c.filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	if !ack.SessionPresent {
		if _, err := client.Subscribe(ctx, s); err != nil {
			return
		}
	}
	c.subscribed()
	select {
	case <-ctx.Done():
	case <-client.Done():
	}
}

func (c *consumer) seen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expects
}

func (c *consumer) subscribed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.expects {
		c.expects = true
		close(c.up)
	}
}

// addBatch adds the messages of a batch.
func (c *consumer) addBatch(p *paho.Publish) {
	c.batches.Add(1)
	b, err := envelope.Open(p.Payload)
	if err != nil || p.QoS == 0 || p.Retain {
		c.tally.mu.Lock()
		c.fault("batch on %s with QoS %d: %v", p.Topic, p.QoS, err)
		c.tally.mu.Unlock()
		return
	}
	for _, r := range b.Records {
		c.add(arrival{topic: r.Topic, payload: string(r.Payload), id: r.ID, seq: r.Seq, src: r.Source, up: b.Gateway + "/" + b.Uplink})
	}
}

func arrivalOf(p *paho.Publish) arrival {
	a := arrival{topic: p.Topic, payload: string(p.Payload), properties: map[string]string{}}
	for _, u := range p.Properties.User {
		a.properties[u.Key] = u.Value
	}
	a.id, a.seq, a.src, a.up = a.properties["tg-id"], a.properties["tg-seq"], a.properties["tg-src"], a.properties["tg-up"]
	return a
}
