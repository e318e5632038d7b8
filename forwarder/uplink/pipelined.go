package uplink

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/config"
	"tidegate/message"
)

// pipelinedDriver speaks MQTT 5 and 3.1.1 itself. Messages are encoded into one buffer, which a writer sends in as few
// writes as the network allows, and a reader takes all acknowledgements that one read brings.
type pipelinedDriver struct{}

// readBuffer is the size of the read buffer of a connection: some thousand acknowledgements.
const readBuffer = 16 << 10

// pipelined is one connection of the pipelinedDriver.
type pipelined struct {
	version byte
	tcp     net.Conn // under the TLS, if any: closing it never waits
	box     *outbox
	granted grant
	hooks   hooks
	limits  config.Limits
	every   time.Duration // the keep alive interval, 0: none
	queue   chan command

	heard, said atomic.Bool // packets came, went since the last beat

	gone   chan struct{} // closed by fail: everybody stops
	closed chan struct{} // lost

	// mu guards what follows. box.mu may be taken while it is held; done is never called with it held.
	mu      sync.Mutex
	win     *window
	ending  bool  // stop was called: nothing more is taken
	failure error // why the connection ended
	recover recovery
	// subscribing is since when the answer to the subscription is missing; zero: none is.
	subscribing time.Time

	exactly  bool   // for info
	answered uint64 // for info
	taken    uint64 // for info
}

// recovery is the releasing of QoS 2 identifiers that an earlier connection of the session may have left at the broker: it
// would take a new message under such an identifier for a retransmission, acknowledge it and drop it ([MQTT-4.3.3-10]).
//
// It is not done on every connection, because a broker that knows no QoS 2 may end the connection over a PUBREL; and not
// only before the first QoS 2 message where one is to be expected, because the identifiers that a broker holds count
// against its Receive Maximum, and mosquitto ends the connection over the next message of any QoS.
type recovery struct {
	stage recoveryStage
	all   bool // nothing is sent until it is done
	since time.Time
	open  map[uint16]struct{} // PUBREL sent, PUBCOMP missing
}

type recoveryStage int

const (
	recovered  recoveryStage = iota // QoS 2 identifiers may be used
	recoverDue                      // before the first QoS 2 message they must be released
	recovering                      // PUBRELs are under way
)

func (pipelinedDriver) connect(ctx context.Context, s *settings, h hello) (conn, error) {
	nc, tcp, err := dial(ctx, s, h.server)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(nc, readBuffer)
	g, err := connect(ctx, s, nc, r, h)
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	g.limit(s.limits)
	p := &pipelined{
		limits: s.limits, every: cmp.Or(min(g.keepAlive, s.keepAlive), s.keepAlive), version: s.version, tcp: tcp, box: newOutbox(nc), granted: g, hooks: s.hooks,
		queue: make(chan command, commandWindow), gone: make(chan struct{}), closed: make(chan struct{}),
		win: newWindow(s.inFlight(g.receive), s.exactlyOnce()),
	}
	if g.present && g.maxQoS == 2 { // who takes no QoS 2 holds no identifiers, and may end the connection over a PUBREL
		p.recover.stage = recoverDue
		if h.release {
			p.startRecovery()
			p.recover.all = true
		}
	}
	if s.resumes() {
		p.subscribing = time.Now()
		_, _ = p.box.Write(subscribePacket(p.version, s.filters)) // an outbox never fails
	}
	go p.run(r) // ends when the connection does
	return p, nil
}

// run keeps the connection going until it ends, then completes what is in flight.
func (p *pipelined) run(r *bufio.Reader) {
	var parts sync.WaitGroup
	parts.Go(func() { p.write() })         // ends with gone, or a failed write
	parts.Go(func() { p.fail(p.read(r)) }) // ends when tcp is closed
	parts.Go(func() { p.beat() })          // ends with gone
	parts.Wait()
	p.mu.Lock()
	dones := p.win.drain()
	p.mu.Unlock()
	for _, done := range dones {
		done(ErrDisconnected)
	}
	close(p.closed)
}

// fail ends the connection; only the first reason counts.
func (p *pipelined) fail(reason error) {
	p.mu.Lock()
	first := p.failure == nil
	if first {
		p.failure = reason
		close(p.gone)
	}
	p.mu.Unlock()
	if first {
		_ = p.tcp.Close()
	}
}

func (p *pipelined) write() {
	if err := p.box.run(p.gone); err != nil {
		p.fail(ended(endNetwork, "write: %w", err))
		return
	}
	p.fail(ended(endStopped, "stopped"))
}

// beat sends PINGREQ where nothing was sent or heard for half the keep alive interval, and ends the connection when nothing
// was heard for one and a half of it ([MQTT-3.1.2-20], and 3.1.2.10 for the answer). A broker that wants it less often than
// configured, or not at all, is asked as configured: it is also for us to know.
func (p *pipelined) beat() {
	tick := time.NewTicker(max(p.every/2, time.Millisecond))
	defer tick.Stop()
	for quiet := 0; ; {
		select {
		case <-p.gone:
			return
		case <-tick.C:
		}
		heard, said := p.heard.Swap(false), p.said.Swap(false)
		quiet++
		if heard {
			quiet = 0
		}
		switch {
		case quiet >= 3:
			p.fail(ended(endKeepAlive, "nothing was heard for %s, not even an answer to pingreq", p.every*3/2))
			return
		case !heard || !said:
			_, _ = p.box.Write([]byte{packets.Pingreq << 4, 0}) // an outbox never fails
		}
	}
}

func (p *pipelined) send(ctx context.Context, m message.Message, id Identity, done func(error)) error {
	if err := p.fit(&m); err != nil {
		done(err)
		return nil
	}
	pub := publication{
		m: &m, identity: id, qos: min(max(byte(m.QoS), 1), 2, p.granted.maxQoS), retain: m.Retain && p.granted.retain,
	}
	if err := check(p.version, pub, p.granted.maxPacket); err != nil {
		done(err)
		return nil
	}
	p.tellStripped(pub)
	for waited := false; ; waited = true {
		if sent, err := p.try(pub, done); sent || err != nil {
			if waited {
				signal(p.box.room) // there may be room for another sender that waits
			}
			return err
		}
		select {
		case <-p.box.room:
		case <-p.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try sends pub if there is room for it; a false result with no error means: wait for room. A nil error and true mean
// that done will be called.
func (p *pipelined) try(pub publication, done func(error)) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure != nil || p.ending {
		return false, ErrDisconnected
	}
	if p.recover.stage != recovered && (pub.qos == 2 || p.recover.all) {
		if p.recover.stage == recoverDue {
			p.startRecovery()
		}
		return false, nil
	}
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	if len(p.box.buf) >= outboxHigh {
		return false, nil
	}
	id, ok := p.win.take(pub.qos, done)
	if !ok {
		return false, nil
	}
	pub.packetID = id
	p.exactly = p.exactly || pub.qos == 2
	p.box.buf = appendPublish(p.box.buf, p.version, pub)
	p.said.Store(true)
	signal(p.box.wake)
	return true, nil
}

// startRecovery asks the broker to release every identifier that a QoS 2 message can have had. The caller holds mu, or is
// the only one to know p.
func (p *pipelined) startRecovery() {
	p.recover = recovery{stage: recovering, since: time.Now(), open: map[uint16]struct{}{}}
	var b []byte
	for id := uint16(1); id <= exactlyOnceWindow; id++ {
		p.recover.open[id] = struct{}{}
		b = appendAck(b, packets.Pubrel, id, 0)
	}
	_, _ = p.box.Write(b) // an outbox never fails
}

func (p *pipelined) oldest() (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.recover.stage == recovering {
		return p.recover.since, true
	}
	return p.win.oldest()
}

func (p *pipelined) subscribes() (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subscribing, !p.subscribing.IsZero()
}

func (p *pipelined) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.win.busy
}

func (p *pipelined) info() connInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return connInfo{
		window: p.win.limit, granted: p.granted.receive, present: p.granted.present, exactly: p.exactly, answered: p.answered,
		taken: p.taken,
	}
}

func (p *pipelined) commands() <-chan command { return p.queue }

func (p *pipelined) acknowledge(c command, code byte) {
	if c.packetID == 0 {
		return
	}
	if p.version != version5 || p.limits.PlainAcks {
		code = 0
	}
	_, _ = p.box.Write(appendAck(nil, packets.Puback, c.packetID, code)) // an outbox never fails
	p.said.Store(true)
}

func (p *pipelined) stop() {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	_, _ = p.box.Write([]byte{packets.Disconnect << 4, 0}) // reason code 0: the broker drops the will
	p.box.finish()
}

func (p *pipelined) drop(reason error) { p.fail(reason) }

func (p *pipelined) lost() <-chan struct{} { return p.closed }

func (p *pipelined) cause() error {
	select {
	case <-p.closed:
		return p.failure
	default:
		return nil
	}
}
