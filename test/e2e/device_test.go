package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"
)

// device is a device that loses nothing: it keeps a number of messages in flight, remembers which ones were acknowledged,
// and after every reconnect sends the others again, in their order. Its messages are "NAME 1", "NAME 2" and so on.
type device struct {
	name    string
	topic   string
	version string
	qos     byte          // 1 or 2
	window  int           // messages in flight, at most
	pause   time.Duration // between two new messages; paces the stream
	pad     int           // bytes of filling behind the number

	// addr says where to connect; it is asked again for every connection.
	addr func() string

	mu       sync.Mutex
	last     int   // the newest number
	limit    int   // no number above it; 0: no limit
	open     []int // not acknowledged, in order
	acked    int   // how many were acknowledged
	refused  int   // acknowledgements with a reason code of 0x80 and above
	connects int

	cancel context.CancelFunc
	ended  chan struct{}
}

// start lets the device work until stop, or until the test ends.
func (d *device) start(t testing.TB) *device {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.ended = cancel, make(chan struct{})
	t.Cleanup(d.stop)
	go func() { // ends with ctx
		defer close(d.ended)
		for ctx.Err() == nil {
			d.connection(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return d
}

func (d *device) stop() {
	d.cancel()
	<-d.ended
}

// halt lets no device of a fleet begin a new message.
func halt(fleet []*device) {
	for _, d := range fleet {
		d.mu.Lock()
		d.limit = max(d.last, 1)
		d.mu.Unlock()
	}
}

// finish lets the device send up to number n (0: no more than it has begun), waits until everything is acknowledged, and
// returns the last number.
func (d *device) finish(t testing.TB, n int, limit time.Duration) int {
	t.Helper()
	d.mu.Lock()
	d.limit = max(n, d.last, 1)
	n = d.limit
	d.mu.Unlock()
	waitFor(t, limit, d.name+" to have every message acknowledged", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.last == n && len(d.open) == 0
	}, d.String)
	return n
}

func (d *device) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("%s: %d begun, %d acknowledged, %d open, %d refused, %d connections",
		d.name, d.last, d.acked, len(d.open), d.refused, d.connects)
}

func (d *device) ackedCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acked
}

func (d *device) payload(n int) []byte {
	b := fmt.Appendf(nil, "%s %d", d.name, n)
	if d.pad > 0 {
		b = append(b, ' ')
		for range d.pad {
			b = append(b, 'x')
		}
	}
	return b
}

// flight is what one connection has in flight.
type flight struct {
	mu     sync.Mutex
	number map[uint16]int // by packet identifier
	free   chan struct{}  // one token for each message that may still be sent
	nextID uint16
	broken chan struct{} // closed when reading ended
}

// connection works on one connection until it breaks or ctx ends.
func (d *device) connection(ctx context.Context) {
	w, err := dial(d.addr(), d.version, login{client: d.name})
	if err != nil {
		return
	}
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()

	f := &flight{number: map[uint16]int{}, broken: make(chan struct{})}
	f.free = make(chan struct{}, min(d.window, w.receiveMax))
	for range cap(f.free) {
		f.free <- struct{}{}
	}
	go d.readAcks(w, f) // ends when the connection is closed
	defer func() { w.close(); <-f.broken }()

	d.mu.Lock()
	d.connects++
	again := append([]int(nil), d.open...)
	d.mu.Unlock()
	for _, n := range again {
		if !d.sendOne(ctx, w, f, n) {
			return
		}
	}
	for {
		n, ok := d.next()
		if !ok {
			select {
			case <-f.broken:
				return
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		if !d.sendOne(ctx, w, f, n) {
			return
		}
		if d.pause > 0 {
			select {
			case <-f.broken:
				return
			case <-time.After(d.pause):
			}
		}
	}
}

// next begins a new message.
func (d *device) next() (int, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if (d.limit > 0 && d.last >= d.limit) || len(d.open) >= d.window {
		return 0, false
	}
	d.last++
	d.open = append(d.open, d.last)
	return d.last, true
}

func (d *device) sendOne(ctx context.Context, w *wire, f *flight, n int) bool {
	select {
	case <-f.free:
	case <-f.broken:
		return false
	case <-ctx.Done():
		return false
	}
	f.mu.Lock()
	for {
		f.nextID++
		if _, used := f.number[f.nextID]; f.nextID != 0 && !used {
			break
		}
	}
	id := f.nextID
	f.number[id] = n
	f.mu.Unlock()
	return w.publish(d.topic, d.qos, id, d.payload(n)) == nil
}

func (d *device) readAcks(w *wire, f *flight) {
	defer close(f.broken)
	for {
		p, err := w.read()
		if err != nil {
			return
		}
		switch p.kind {
		case typePuback, typePubcomp:
			if n, ok := f.take(p.id(), true); ok && p.kind == typePuback && !d.done(n, p.reason()) {
				return
			}
		case typePubrec:
			if n, ok := f.take(p.id(), p.reason() >= 0x80); ok && !d.done(n, p.reason()) {
				return
			}
			if p.reason() < 0x80 {
				_ = w.send(typePubrel, binary.BigEndian.AppendUint16(nil, p.id()))
			}
		case typeDisconnect & 0xf0:
			return
		}
	}
}

// take looks up the message of an identifier and, at the end of its flow, frees the identifier.
func (f *flight) take(id uint16, release bool) (int, bool) {
	f.mu.Lock()
	n, ok := f.number[id]
	if ok && release {
		delete(f.number, id)
	}
	f.mu.Unlock()
	if ok && release {
		f.free <- struct{}{}
	}
	return n, ok
}

// done notes the acknowledgement of a message. It returns false when that is a refusal: the device then leaves the
// connection and begins again with the oldest open message, so that its order is kept.
func (d *device) done(n int, reason byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if reason >= 0x80 {
		d.refused++
		return false
	}
	for i, o := range d.open {
		if o == n {
			d.open = append(d.open[:i], d.open[i+1:]...)
			d.acked++
			break
		}
	}
	return true
}
