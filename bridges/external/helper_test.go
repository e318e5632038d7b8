package external

import (
	"context"
	"sync"
	"testing"
	"time"

	"tidegate/bridges"
	"tidegate/config"
	"tidegate/internal/testpeer"
	"tidegate/message"
)

// soon bounds everything that happens at once on an idle machine.
const soon = 60 * time.Second

// disk is an Ingest whose tickets become durable when the test says so, and which refuses when it is told to.
type disk struct {
	mu      sync.Mutex
	refuse  error // of every offer
	taken   []message.Message
	local   []message.Message
	durable uint64 // up to this many
	broken  error
	waiting map[uint64][]func(error)
	offers  int
}

func newDisk() *disk { return &disk{waiting: map[uint64][]func(error){}} }

func (d *disk) Publish(m message.Message) (message.Ticket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.offers++
	if d.refuse != nil {
		return message.Ticket{}, d.refuse
	}
	d.taken = append(d.taken, m)
	return message.NewTicket(d, uint64(len(d.taken))), nil
}

func (d *disk) deliver(_ context.Context, m message.Message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.local = append(d.local, m)
	return message.ErrNoMatch
}

func (d *disk) Durable(pos uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return pos <= d.durable
}

func (d *disk) Notify(pos uint64, f func(error)) {
	d.mu.Lock()
	if pos > d.durable && d.broken == nil {
		d.waiting[pos] = append(d.waiting[pos], f)
		d.mu.Unlock()
		return
	}
	err := d.broken
	d.mu.Unlock()
	f(err)
}

func (d *disk) Wait(ctx context.Context, pos uint64) error {
	done := make(chan error, 1)
	d.Notify(pos, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sync makes n more messages durable.
func (d *disk) sync(n int) {
	d.mu.Lock()
	d.durable += uint64(n)
	var due []func(error)
	for pos, list := range d.waiting {
		if pos <= d.durable {
			due = append(due, list...)
			delete(d.waiting, pos)
		}
	}
	d.mu.Unlock()
	for _, f := range due {
		f(nil)
	}
}

// fail breaks the disk for what waits.
func (d *disk) fail(err error) {
	d.mu.Lock()
	waiting := d.waiting
	d.waiting = map[uint64][]func(error){}
	d.mu.Unlock()
	for _, list := range waiting {
		for _, f := range list {
			f(err)
		}
	}
}

func (d *disk) refuseWith(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

func (d *disk) count() (taken, offers int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.taken), d.offers
}

func (d *disk) all() []message.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]message.Message(nil), d.taken...)
}

// peer is a running Bridge with the broker and the disk it has.
type peer struct {
	*Bridge
	broker *testpeer.Cloud
	disk   *disk
	stop   func()

	mu       sync.Mutex
	statuses []bridges.Status
}

func section(urls ...string) config.External {
	return config.External{
		Servers: urls, ClientID: "gw-broker", Group: "tidegate", Subscribe: []string{"plant/#"}, QoS: 1, ReceiveMaximum: 8,
		SessionExpiry: config.Duration(time.Hour), KeepAlive: config.Duration(30 * time.Second),
	}
}

func listen(t testing.TB) *testpeer.Cloud {
	t.Helper()
	c, err := testpeer.Listen(testpeer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// start runs a bridge against a broker; change may change its section and options.
func start(t *testing.T, broker *testpeer.Cloud, change func(*config.External, *Options)) *peer {
	t.Helper()
	p := &peer{broker: broker, disk: newDisk()}
	c := section(broker.URL())
	o := Options{
		Bus: p.disk, Take: p.disk.Publish, Local: p.disk.deliver,
		State: func(s string) message.Message {
			return message.Message{Topic: "tidegate/gw/status", Payload: []byte(s), QoS: 1, Retain: true, Source: message.Source{Protocol: message.Self}}
		},
		OnStatus: func(s bridges.Status) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.statuses = append(p.statuses, s)
		},
	}
	if change != nil {
		change(&c, &o)
	}
	b, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	b.pace.base, b.pace.slow = 5*time.Millisecond, 20*time.Millisecond
	p.Bridge = b
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	p.stop = func() { cancel(); <-ended }
	t.Cleanup(p.stop)
	return p
}

// attached is start for a bridge that has to be up before the test goes on.
func attached(t *testing.T, change func(*config.External, *Options)) *peer {
	t.Helper()
	p := start(t, listen(t), change)
	wait(t, "the bridge to be up", func() bool { return p.Status().Up })
	return p
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", soon, what)
		}
	}
}

// send lets the broker send numbered messages with QoS 1.
func (p *peer) send(t testing.TB, from, to int, properties ...message.Property) {
	t.Helper()
	for i := from; i <= to; i++ {
		if n := p.broker.Send(testpeer.Command{Topic: "plant/a", Payload: []byte{byte(i)}, QoS: 1, Properties: properties}); n != 1 {
			t.Fatalf("message %d went to %d sessions", i, n)
		}
	}
}

// acks are the numbers that were acknowledged, in order, with the reason code of the last.
func (p *peer) acks() (numbers []int, code byte) {
	for _, a := range p.broker.CommandAcks() {
		numbers, code = append(numbers, int(a.Command.Payload[0])), a.Code
	}
	return numbers, code
}
