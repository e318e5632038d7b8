package edge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"tidegate/access"
	"tidegate/buffer"
	"tidegate/config"
	"tidegate/edge/session"
	"tidegate/message"
)

// testBroker is a running Broker with what it was given.
type testBroker struct {
	*Broker
	addr string
	disk *fakeDisk
	reg  *prometheus.Registry
	stop func() error // ends Run and returns what it returned
}

// startBroker runs a broker with one listener; change may change its options. Ingest goes to the disk, which is durable at
// once unless a test holds it.
func startBroker(t testing.TB, change func(*Options)) *testBroker {
	t.Helper()
	disk := &fakeDisk{}
	reg := prometheus.NewRegistry()
	acl, err := access.New(config.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	o := Options{
		Listeners: map[string]config.Listener{"test": {Listen: "mqtt://127.0.0.1:0", Anonymous: &yes}},
		Broker: config.Broker{
			MaxClients: 1000, MaxPacket: 1 << 20, SessionExpiry: config.Duration(7 * 24 * time.Hour),
			SessionQueue: 64 << 20, MaxKeepAlive: config.Duration(5 * time.Minute), RetainedLimit: 1000,
		},
		Ingest: disk.ingest, ACL: acl, Log: slog.New(slog.DiscardHandler), Metrics: reg,
	}
	if change != nil {
		change(&o)
	}
	if os.Getenv(storeEnv) != "" && o.Store == nil {
		storeSessions(t, &o, t.TempDir())
	}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- b.Run(ctx) }()
	var once sync.Once
	var runErr error
	tb := &testBroker{Broker: b, disk: disk, reg: reg, addr: b.Addrs()["test"].String()}
	tb.stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case runErr = <-result:
			case <-time.After(60 * time.Second):
				runErr = errors.New("run did not end")
			}
		})
		return runErr
	}
	t.Cleanup(func() {
		if err := tb.stop(); err != nil {
			t.Errorf("stop broker: %v", err)
		}
	})
	return tb
}

// storeSessions makes a broker keep its sessions in a log in dir, which is closed with the test.
func storeSessions(t testing.TB, o *Options, dir string) *buffer.Log {
	t.Helper()
	log, err := buffer.Open(dir, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	if o.Store, err = session.OpenStore(log, 64<<20, o.Log); err != nil {
		t.Fatal(err)
	}
	ingest := o.Ingest
	o.IngestWith = func(m message.Message, with session.Riders) (message.Ticket, error) {
		ticket, err := ingest(m)
		if with.Message {
			data, err := m.AppendBinary(slices.Clone(with.May[0].Data))
			if err != nil {
				return ticket, err
			}
			with.May[0].Data = data
		}
		all := append(slices.Clone(with.Must), with.May...)
		if err != nil || len(all) == 0 {
			return ticket, err
		}
		pos, err := log.Append(all...)
		if err != nil {
			return ticket, err
		}
		copy(with.Must, all)
		copy(with.May, all[len(with.Must):])
		if ticket == (message.Ticket{}) {
			ticket = message.NewTicket(log, pos)
		}
		return ticket, nil
	}
	return log
}

// fakeDisk is an Ingest whose tickets become durable when the test says so.
type fakeDisk struct {
	mu      sync.Mutex
	manual  bool
	fail    func(m message.Message) error
	taken   []message.Message
	durable uint64
	broken  error
	waiting []fakeWait
	n       atomic.Int64
}

type fakeWait struct {
	pos uint64
	f   func(error)
}

func (d *fakeDisk) ingest(m message.Message) (message.Ticket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		if err := d.fail(m); err != nil {
			return message.Ticket{}, err
		}
	}
	d.taken = append(d.taken, m)
	d.n.Add(1)
	if !d.manual {
		return message.Ticket{}, nil
	}
	return message.NewTicket(d, uint64(len(d.taken))), nil
}

func (d *fakeDisk) Durable(pos uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return pos <= d.durable
}

func (d *fakeDisk) Notify(pos uint64, f func(error)) {
	d.mu.Lock()
	if pos > d.durable && d.broken == nil {
		d.waiting = append(d.waiting, fakeWait{pos, f})
		d.mu.Unlock()
		return
	}
	var err error
	if pos > d.durable {
		err = d.broken
	}
	d.mu.Unlock()
	f(err)
}

func (d *fakeDisk) Wait(ctx context.Context, pos uint64) error {
	done := make(chan error, 1)
	d.Notify(pos, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hold makes tickets wait for sync.
func (d *fakeDisk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.manual = true
}

// sync makes everything up to pos durable.
func (d *fakeDisk) sync(pos uint64) { d.settle(pos, nil) }

// breakDown fails everything that is not durable.
func (d *fakeDisk) breakDown() { d.settle(0, errors.New("disk failed")) }

func (d *fakeDisk) settle(pos uint64, broken error) {
	d.mu.Lock()
	d.durable = max(d.durable, pos)
	d.broken = broken
	var due, rest []fakeWait
	for _, w := range d.waiting {
		if w.pos <= d.durable || broken != nil {
			due = append(due, w)
		} else {
			rest = append(rest, w)
		}
	}
	d.waiting = rest
	d.mu.Unlock()
	for _, w := range due {
		w.f(broken)
	}
}

func (d *fakeDisk) messages() []message.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]message.Message(nil), d.taken...)
}

// refuseWith makes Ingest fail; nil ends that.
func (d *fakeDisk) refuseWith(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = nil
	if err != nil {
		d.fail = func(message.Message) error { return fmt.Errorf("ingest: %w", err) }
	}
}

// rules returns an ACL with these rules.
func rules(t testing.TB, rs ...config.Rule) ACL {
	t.Helper()
	k, err := access.New(config.Auth{Rules: rs})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// connect dials with o, or fails the test.
func connect(t testing.TB, addr string, o rawOptions) *rawClient {
	t.Helper()
	c, err := rawDial(addr, o)
	if err != nil {
		t.Fatalf("connect %q: %v", o.ID, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// subscribe subscribes and returns the reason code.
func subscribe(t testing.TB, c *rawClient, filter string, qos byte) byte {
	t.Helper()
	return subscribeWith(t, c, packets.Subscription{Filter: filter, Qos: qos})
}

func subscribeWith(t testing.TB, c *rawClient, s packets.Subscription) byte {
	t.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1,
		Filters: packets.Subscriptions{s},
	}
	if s.Identifier > 0 {
		pk.Properties.SubscriptionIdentifier = []int{s.Identifier}
	}
	if err := c.Send(pk); err != nil {
		t.Fatal(err)
	}
	ack := expect(t, c, packets.Suback)
	if len(ack.ReasonCodes) != 1 || ack.PacketID != 1 {
		t.Fatalf("suback: identifier %d, codes %v", ack.PacketID, ack.ReasonCodes)
	}
	return ack.ReasonCodes[0]
}

// expect reads the next packet, which must be of that type.
func expect(t testing.TB, c *rawClient, typ byte) packets.Packet {
	t.Helper()
	pk, err := c.Recv(5 * time.Second)
	if err != nil {
		t.Fatalf("want %s: %v", packets.PacketNames[typ], err)
	}
	if pk.FixedHeader.Type != typ {
		t.Fatalf("want %s, got %s (code %#x)", packets.PacketNames[typ], packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode)
	}
	return pk
}

// silent fails the test when a packet comes within d.
func silent(t testing.TB, c *rawClient, d time.Duration) {
	t.Helper()
	pk, err := c.Recv(d)
	if err == nil {
		t.Fatalf("got %s %q, want nothing", packets.PacketNames[pk.FixedHeader.Type], pk.TopicName)
	}
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("want silence, got %v", err)
	}
}

// closed fails the test when the server does not close within some seconds; packets before that are returned.
func closed(t testing.TB, c *rawClient) (before []packets.Packet) {
	t.Helper()
	for {
		pk, err := c.Recv(5 * time.Second)
		if err == nil {
			before = append(before, pk)
			continue
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			t.Fatal("connection stays open")
		}
		return before
	}
}

// eventually waits for ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// metric returns the value of a counter or gauge.
func (b *testBroker) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue next
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

func number(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }

func numberOf(pk packets.Packet) int { return int(binary.BigEndian.Uint32(pk.Payload)) }
