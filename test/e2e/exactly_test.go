package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// exactDevice publishes with QoS 2 as the standard wants it: it keeps the packet identifiers of what is not finished over
// its connections, and goes on with each where it was.
type exactDevice struct {
	name, topic, version string
	window               int
	addr                 func() string

	mu       sync.Mutex
	last     int
	limit    int
	nextID   uint16
	open     []exactMessage // in order
	fault    string
	finished int
}

type exactMessage struct {
	id       uint16
	n        int
	received bool // PUBREC came
}

// run works until ctx ends.
func (d *exactDevice) run(ctx context.Context) {
	for first := true; ctx.Err() == nil; {
		w, err := dial(d.addr(), d.version, login{client: d.name, keep: true})
		if err != nil {
			pauseFor(ctx, 30*time.Millisecond)
			continue
		}
		if !first && !w.present {
			d.fail("the session is gone")
		}
		first = false
		d.connection(ctx, w)
		w.close()
	}
}

func (d *exactDevice) connection(ctx context.Context, w *wire) {
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	broken := make(chan struct{})
	go func() { // ends when the connection is closed
		defer close(broken)
		for {
			p, err := w.read()
			if err != nil {
				return
			}
			d.answer(w, p)
		}
	}()
	defer func() { w.close(); <-broken }()
	d.mu.Lock()
	for _, m := range d.open {
		if m.received {
			_ = w.send(typePubrel, binary.BigEndian.AppendUint16(nil, m.id))
			continue
		}
		b := publishPacket(d.version, d.topic, 2, m.id, fmt.Appendf(nil, "%s %d", d.name, m.n))
		b[0] |= 8 // DUP
		_ = w.write(b)
	}
	d.mu.Unlock()
	for {
		if !d.sendNew(w) {
			select {
			case <-broken:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
		select {
		case <-broken:
			return
		default:
		}
	}
}

func (d *exactDevice) sendNew(w *wire) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit > 0 && d.last >= d.limit || len(d.open) >= d.window {
		return false
	}
	d.last++
	if d.nextID++; d.nextID == 0 {
		d.nextID = 1
	}
	d.open = append(d.open, exactMessage{id: d.nextID, n: d.last})
	return w.publish(d.topic, 2, d.nextID, fmt.Appendf(nil, "%s %d", d.name, d.last)) == nil
}

func (d *exactDevice) answer(w *wire, p incoming) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.kind != typePubrec && p.kind != typePubcomp {
		return
	}
	for i := range d.open {
		if d.open[i].id != p.id() {
			continue
		}
		switch {
		case p.kind == typePubcomp:
			d.open = append(d.open[:i], d.open[i+1:]...)
			d.finished++
		case p.reason() >= 0x80:
			d.fault = fmt.Sprintf("PUBREC with reason code %#x", p.reason())
		default:
			d.open[i].received = true
			_ = w.send(typePubrel, binary.BigEndian.AppendUint16(nil, p.id()))
		}
		return
	}
}

func (d *exactDevice) fail(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = text
}

func (d *exactDevice) progress() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.finished
}

// exactReader subscribes with QoS 2 and keeps its half of the state over its connections, too.
type exactReader struct {
	name, filter, version string
	addr                  func() string

	mu    sync.Mutex
	ready bool // SUBACK came
	got   []string
	held  map[uint16]bool // received and not released
	fault string
}

func (r *exactReader) run(ctx context.Context) {
	for first := true; ctx.Err() == nil; {
		w, err := dial(r.addr(), r.version, login{client: r.name, keep: true})
		if err != nil {
			pauseFor(ctx, 30*time.Millisecond)
			continue
		}
		if !first && !w.present {
			r.mu.Lock()
			r.fault = "the session is gone"
			r.mu.Unlock()
		}
		if first {
			if _, err := w.subscribe(r.filter, 2); err != nil {
				w.close()
				continue
			}
			r.mu.Lock()
			r.ready = true
			r.mu.Unlock()
		}
		first = false
		stop := context.AfterFunc(ctx, w.close)
		for {
			p, err := w.read()
			if err != nil {
				break
			}
			r.answer(w, p)
		}
		stop()
		w.close()
	}
}

func (r *exactReader) answer(w *wire, p incoming) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch p.kind {
	case typePublish:
		n := int(binary.BigEndian.Uint16(p.body))
		rest := p.body[2+n:]
		id := binary.BigEndian.Uint16(rest)
		rest = rest[2:]
		if r.version == "5" {
			size, used := binary.Uvarint(rest)
			rest = rest[used+int(size):]
		}
		switch {
		case p.flags&6 != 4:
			r.fault = fmt.Sprintf("flags %#x", p.flags)
		case r.held[id] && p.flags&8 == 0:
			r.fault = fmt.Sprintf("identifier %d is used while it is open", id)
		case !r.held[id]:
			r.got = append(r.got, string(rest))
			r.held[id] = true
		}
		_ = w.send(typePubrec, binary.BigEndian.AppendUint16(nil, id))
	case typePubrel & 0xf0:
		delete(r.held, p.id())
		_ = w.send(typePubcomp, binary.BigEndian.AppendUint16(nil, p.id()))
	}
}

func (r *exactReader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// TestExactlyOnce kills the gateway again and again while devices publish with QoS 2: each message is taken in once, as the
// identities at the cloud show, and reaches local QoS 2 subscribers that keep their sessions once and in order.
func TestExactlyOnce(t *testing.T) {
	const kills = 14
	c := startCloud(t)
	g := newGateway(t, "[route.up]\n  from = [\"plant/#\"]\n", uplinkTo("cloud", c.url(), "5"))
	far := consume(t, c.addr(), "application", "plant/#")
	g.start()
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	var fleet []*exactDevice
	var readers []*exactReader
	for _, version := range []string{"3.1.1", "5"} {
		r := &exactReader{name: "reader" + version, filter: "plant/#", version: version, addr: g.here, held: map[uint16]bool{}}
		readers = append(readers, r)
		work.Go(func() { r.run(ctx) })
		waitFor(t, soon, "the subscription", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.ready
		})
	}
	for _, version := range []string{"3.1.1", "5"} {
		d := &exactDevice{name: "dev" + version, topic: "plant/" + version, version: version, window: 20, addr: g.here}
		fleet = append(fleet, d)
		work.Go(func() { d.run(ctx) })
	}
	total := func() (n int) {
		for _, d := range fleet {
			n += d.progress()
		}
		return n
	}
	for i := range kills {
		begin, more := total(), 20+rand.IntN(200)
		waitFor(t, 60*time.Second, "the stream to go on", func() bool { return total() >= begin+more })
		g.kill()
		if i%4 == 0 {
			g.startInVain(time.Duration(rand.IntN(40)) * time.Millisecond)
		}
		g.start()
	}
	sent := 0
	for _, d := range fleet {
		d.mu.Lock()
		d.limit = d.last
		sent += d.last
		d.mu.Unlock()
	}
	for _, d := range fleet {
		waitFor(t, 60*time.Second, "every message to be finished", func() bool { return d.progress() == d.limit })
		far.requireAll(t, d.topic, d.limit, 60*time.Second)
		if d.fault != "" {
			t.Errorf("%s: %s", d.name, d.fault)
		}
	}
	for _, r := range readers {
		waitFor(t, 60*time.Second, "the local subscriber to have all", func() bool { return r.count() >= sent })
	}
	time.Sleep(500 * time.Millisecond) // for what comes twice
	if n := far.identities(); n != sent {
		t.Errorf("%d messages were taken in as %d", sent, n)
	}
	for _, r := range readers {
		if r.fault != "" {
			t.Errorf("%s: %s", r.name, r.fault)
		}
		next := map[string]int{}
		for _, text := range r.got {
			name, number, _ := strings.Cut(text, " ")
			if next[name]++; number != fmt.Sprint(next[name]) {
				t.Fatalf("%s got %q, want number %d", r.name, text, next[name])
			}
		}
		if len(r.got) != sent {
			t.Errorf("%s got %d of %d", r.name, len(r.got), sent)
		}
	}
	t.Logf("%d kills, %d messages, each once at the cloud and at %d local subscribers", kills, sent, len(readers))
	g.stop()
}
