package external

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/bridges"
	"tidegate/message"
)

const (
	// readBuffer is the size of the read buffer of a connection.
	readBuffer = 32 << 10
	// writeHigh is how many unwritten bytes keep messages from being added. Acknowledgements are added all the same: their
	// number is bounded by the Receive Maximum.
	writeHigh = 256 << 10
	// writeTimeout bounds one write to a broker that takes no bytes.
	writeTimeout = 20 * time.Second
	// ackTimeout: no answer from the broker to the oldest message, or to a subscription, for that long ends the connection.
	ackTimeout = 30 * time.Second
	// settleTimeout is how long an orderly end waits for the disk, goodbyeTimeout for the broker.
	settleTimeout  = 2 * time.Second
	goodbyeTimeout = time.Second
	// liveQueue is how many messages with QoS 0 may wait beside those that the Receive Maximum bounds.
	liveQueue = 256
)

// link is one connection after a successful CONNACK.
type link struct {
	b     *Bridge
	nc    net.Conn
	tcp   *net.TCPConn // below nc: its closing never waits
	r     *bufio.Reader
	grant grant

	in       *inbox // from the reader to take
	receipts receipts
	subs     subscriptions

	heard, said atomic.Bool // packets came, went since the last beat
	waits       atomic.Bool // the reader reads nothing: see pause
	paused      bool        // it did so once; only the reader uses it

	gone chan struct{} // closed by fail: everybody stops
	wake chan struct{} // capacity 1: there is something to write
	mu   sync.Mutex    // guards what follows
	buf  []byte        // gathered, not yet written
	last bool          // the writer ends the sending direction once everything is written
	why  error         // why the connection ended
}

func (b *Bridge) newLink(nc net.Conn, tcp *net.TCPConn, r *bufio.Reader, g grant) *link {
	l := &link{
		b: b, nc: nc, tcp: tcp, r: r, grant: g, in: newInbox(b.c.ReceiveMaximum + liveQueue),
		gone: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	l.receipts = receipts{open: map[uint16]struct{}{}, answer: l.add, idle: make(chan struct{}, 1), failed: make(chan struct{}, 1)}
	return l
}

var errStopped = errors.New("stopped")

// serve works with a connection until it ends, and ends it in order when ctx does. It returns why it ended.
func (b *Bridge) serve(ctx context.Context, l *link) error {
	if !l.grant.present {
		b.held.forget()
	}
	taking, stopTaking := context.WithCancel(context.Background())
	took := make(chan struct{})
	var parts sync.WaitGroup
	parts.Go(func() { l.fail(l.write()) }) // ends with gone, or a failed write
	parts.Go(func() { l.fail(l.read()) })  // ends when tcp is closed
	parts.Go(func() { l.beat() })          // ends with gone
	parts.Go(func() { b.send(l) })         // ends with gone
	parts.Go(func() {                      // ends with taking
		defer close(took)
		l.take(taking)
	})
	l.subscribe()
	select {
	case <-ctx.Done():
		stopTaking()
		<-took
		l.goodbye()
	case <-l.gone:
	}
	l.fail(errStopped)
	stopTaking()
	parts.Wait()
	b.out.lost()
	return l.why
}

// goodbye acknowledges what reaches the disk in time, says that the gateway is offline, and disconnects.
func (l *link) goodbye() {
	l.receipts.settled(settleTimeout)
	l.b.setStatus(bridges.Status{LastError: l.b.Status().LastError}) // who hears of it may still Tell
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
	defer cancel()
	if l.b.o.State != nil {
		_ = l.b.deliver(ctx, l.b.o.State("offline"))
	}
	l.add([]byte{packets.Disconnect << 4, 0}) // reason code 0: the broker drops the will
	l.mu.Lock()
	l.last = true
	l.mu.Unlock()
	signal(l.wake)
	select {
	case <-l.gone: // the broker closed
	case <-ctx.Done():
	}
}

// fail ends the connection; only the first reason counts.
func (l *link) fail(reason error) {
	l.mu.Lock()
	first := l.why == nil
	if first {
		l.why = reason
		close(l.gone)
	}
	l.mu.Unlock()
	if first {
		_ = l.tcp.Close()
	}
}

// add appends bytes for the writer; it never blocks.
func (l *link) add(p []byte) {
	l.mu.Lock()
	l.buf = append(l.buf, p...)
	l.mu.Unlock()
	l.said.Store(true)
	signal(l.wake)
}

// room reports whether messages may be added.
func (l *link) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buf) < writeHigh
}

// write sends what has gathered, all of it in one write.
func (l *link) write() error {
	var spare []byte
	for {
		l.mu.Lock()
		b, last := l.buf, l.last
		l.buf, spare = spare[:0], nil
		l.mu.Unlock()
		if len(b) > 0 {
			_ = l.tcp.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := l.nc.Write(b); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			if cap(b) <= 4*writeHigh {
				spare = b
			}
			l.b.out.more() // there is room again
			continue
		}
		spare = b
		if last {
			if half, ok := l.nc.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
			<-l.gone
			return errStopped
		}
		select {
		case <-l.wake:
		case <-l.gone:
			return errStopped
		}
	}
}

// read handles what the broker sends until the connection ends, and says why it ended.
func (l *link) read() error {
	for {
		h, err := readHead(l.r)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		l.heard.Store(true)
		if h.first>>4 == packets.Publish {
			err = l.readPublish(h)
		} else {
			err = l.readOther(h)
		}
		if err != nil {
			return err
		}
	}
}

func (l *link) readPublish(h head) error {
	now := time.Now()
	var a arrival
	var err error
	if h.length > l.b.o.MaxPacket {
		a, err = skipPublish(l.r, h, l.b.o.MaxPacket, now)
	} else {
		body := make([]byte, h.length) // owned by what is made of it
		if _, err = io.ReadFull(l.r, body); err != nil {
			return fmt.Errorf("read: %w", cutShort(err))
		}
		a, err = parsePublish(h.first, body, now)
	}
	if err != nil {
		return fmt.Errorf("read %w", err)
	}
	switch {
	case a.id == 0:
		if !l.in.push(a) { // QoS 0 may be lost, and nobody can be told
			l.b.refused(&a.m, message.ErrBusy)
		}
	case !l.receipts.begin(a.id): // a repetition of what has no answer yet gets that one
	case !l.in.push(a):
		l.pause(a)
	}
	return nil
}

// pause waits until there is room for a, and reads nothing meanwhile. It happens where a broker sends far more than the Receive
// Maximum allows [MQTT-3.3.4-9], as Mosquitto 2.0.11 does to a client that was slow for a moment: to end the connection over it,
// as one may, would only begin the same again.
func (l *link) pause(a arrival) {
	if !l.paused {
		l.paused = true
		const text = "the broker sends more messages than receive_maximum allows; the rest is left unread until the gateway takes them"
		l.b.log.Warn(text, "receive_maximum", l.b.c.ReceiveMaximum)
		if !l.b.Status().Up { // the answer to the subscription is left unread, too
			l.b.setStatus(bridges.Status{LastError: text})
		}
	}
	l.waits.Store(true)
	defer l.waits.Store(false)
	for !l.in.push(a) {
		select {
		case <-l.in.room:
		case <-l.gone:
			return
		}
	}
}

// readOther handles one packet that is no PUBLISH.
func (l *link) readOther(h head) error {
	if h.length > maxCold {
		return fmt.Errorf("a packet of type %d and %d bytes from the broker", h.first>>4, h.length)
	}
	body := make([]byte, h.length)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return fmt.Errorf("read: %w", cutShort(err))
	}
	switch kind := h.first >> 4; kind {
	case packets.Puback:
		id, code, err := readAck(body)
		if err != nil {
			return fmt.Errorf("read puback: %w", err)
		}
		l.b.out.acked(id, code)
	case packets.Pubrel:
		id, _, err := readAck(body)
		if err != nil {
			return fmt.Errorf("read pubrel: %w", err)
		}
		l.b.held.release(id)
		l.receipts.end(id)
		l.add(appendAck(nil, packets.Pubcomp, id, 0))
	case packets.Suback:
		id, codes, err := suback(body)
		if err != nil {
			return fmt.Errorf("read %w", err)
		}
		l.subscribed(id, codes)
	case packets.Unsuback:
		l.unsubscribed()
	case packets.Pingresp:
	case packets.Disconnect:
		return disconnectError(body)
	default:
		return fmt.Errorf("unexpected packet of type %d", kind)
	}
	return nil
}

// beat sends PINGREQ where nothing was sent or heard for half the keep alive interval, and ends the connection when nothing
// was heard for one and a half of it, or when an answer is overdue: a connection is worth what moves over it.
func (l *link) beat() {
	tick := time.NewTicker(max(l.grant.keepAlive/2, time.Millisecond))
	defer tick.Stop()
	for quiet := 0; ; {
		select {
		case <-l.gone:
			return
		case <-tick.C:
		}
		heard, said := l.heard.Swap(false), l.said.Swap(false)
		quiet++
		waits := l.waits.Load()
		if heard || waits {
			quiet = 0
		}
		switch {
		case waits: // answers lie unread
			l.add([]byte{packets.Pingreq << 4, 0})
			continue
		case quiet >= 3:
			l.fail(fmt.Errorf("nothing was heard for %s, not even an answer to pingreq", l.grant.keepAlive*3/2))
			return
		case l.b.out.overdue(ackTimeout):
			l.fail(fmt.Errorf("no acknowledgement for the oldest message for %s", ackTimeout))
			return
		case l.subs.overdue(ackTimeout):
			l.fail(fmt.Errorf("no answer to the subscription for %s", ackTimeout))
			return
		case !heard || !said:
			l.add([]byte{packets.Pingreq << 4, 0})
		}
		if l.subs.retry(ackTimeout) {
			l.subscribe()
		}
	}
}

// signal marks a channel of capacity 1; a mark that is there already stands for this one too.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
