package uplink

import (
	"context"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	pahopackets "github.com/eclipse/paho.mqtt.golang/packets"

	"tidegate/message"
)

// pahoDriver is the oracle: MQTT 3.1.1 through paho.mqtt.golang, which shares no code with our driver, with everything switched off by which paho would keep or
// resend messages itself: one client for each connection, a clean session, a store that stores nothing. It takes no commands.
//
// Two habits of paho are worked around from outside, by the connection it is given (pahoWire): a Publish that meets the
// loss of the connection waits for its write timeout, so writes are gathered in an outbox, never block, and the timeout is
// short; and a connection that is closed under paho goes unnoticed, so a dropped one fails its reads in its own words.
type pahoDriver struct{}

const (
	// pahoHandover is how long paho.Publish may take to hand a message to its writer. It only takes long where the
	// connection is being lost.
	pahoHandover = time.Second
	// pahoGoodbye is how long the orderly end of a connection may take.
	pahoGoodbye = time.Second
)

// pahoConn is one connection of the pahoDriver.
type pahoConn struct {
	client paho.Client
	wire   *pahoWire

	places  chan struct{}     // a place for each message in flight
	exactly chan struct{}     // and another one for those with QoS 2
	queue   chan *pahoMessage // messages in flight in the order of sending; as large as places, so it never blocks
	born    time.Time
	waiting atomic.Int64 // since when the completer waits for the oldest message, nanoseconds after born; 0: for none

	answered atomic.Uint64 // messages acknowledged

	gone   chan struct{} // closed by end
	closed chan struct{} // lost

	mu      sync.Mutex
	failed  bool // end was called: nothing more is taken
	failure error
}

// pahoMessage is one message in flight.
type pahoMessage struct {
	done  func(error)
	qos   byte
	token chan paho.Token // capacity 1; filled when paho has the message
}

func (pahoDriver) connect(ctx context.Context, s *settings, h hello) (conn, error) {
	nc, tcp, err := dial(ctx, s, h.server)
	if err != nil {
		return nil, err
	}
	limit := s.inFlight(0)
	p := &pahoConn{
		wire: newPahoWire(nc, tcp), places: make(chan struct{}, limit),
		exactly: make(chan struct{}, s.exactlyOnce()), queue: make(chan *pahoMessage, limit),
		born: time.Now(), gone: make(chan struct{}), closed: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { p.wire.drop(context.Cause(ctx)) })
	defer stop()
	p.client = paho.NewClient(p.options(s, h))
	token := p.client.Connect()
	token.Wait() // bounded by ctx, which closes the connection
	if err := pahoConnectError(ctx, token); err != nil {
		p.wire.drop(err)
		p.wire.wait()
		return nil, err
	}
	go p.complete() // ends with gone
	return p, nil
}

func (p *pahoConn) options(s *settings, h hello) *paho.ClientOptions {
	o := paho.NewClientOptions()
	o.AddBroker("tcp://" + h.server.addr) // only a name here, the connection is opened already
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return p.wire, nil })
	o.SetProtocolVersion(version311)
	o.SetClientID(s.clientID)
	o.SetUsername(s.username)
	o.SetPassword(s.password.Reveal())
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetResumeSubs(false)
	o.SetStore(pahoNoStore{})
	o.SetOrderMatters(false)
	o.SetKeepAlive(max(s.keepAlive, time.Second))
	o.SetPingTimeout(max(s.keepAlive/2, time.Second))
	o.SetConnectTimeout(connectTimeout)
	o.SetWriteTimeout(pahoHandover)
	o.SetBinaryWill(h.will.Topic, h.will.Payload, 1, h.will.Retain)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { p.end(p.wire.reason(err)) })
	return o
}

func pahoConnectError(ctx context.Context, token paho.Token) error {
	err := token.Error()
	if err == nil {
		return nil
	}
	if t, ok := token.(*paho.ConnectToken); ok {
		if code := t.ReturnCode(); code != pahopackets.Accepted && code <= pahopackets.ErrRefusedNotAuthorised {
			return &endError{label: endRefused, err: &refusal{version: version311, code: code}}
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return ended(endNetwork, "connect: %w", err)
}

func (p *pahoConn) send(ctx context.Context, m message.Message, id Identity, done func(error)) error {
	qos := min(max(byte(m.QoS), 1), 2)
	if err := check(version311, publication{m: &m, identity: id, qos: qos}, 0); err != nil {
		done(err)
		return nil
	}
	if err := p.waitForPlace(ctx, qos); err != nil {
		return err
	}
	e := &pahoMessage{done: done, qos: qos, token: make(chan paho.Token, 1)}
	p.mu.Lock()
	if p.failed {
		p.mu.Unlock()
		return ErrDisconnected
	}
	p.queue <- e
	p.mu.Unlock()
	e.token <- p.client.Publish(m.Topic, qos, m.Retain, m.Payload)
	return nil
}

// waitForPlace takes a place in the window and waits until the network takes bytes.
func (p *pahoConn) waitForPlace(ctx context.Context, qos byte) error {
	if qos == 2 {
		if err := p.take(ctx, p.exactly); err != nil {
			return err
		}
	}
	err := p.take(ctx, p.places)
	if err == nil {
		if err = p.waitForRoom(ctx); err != nil {
			<-p.places
		}
	}
	if err != nil && qos == 2 {
		<-p.exactly
	}
	return err
}

// take takes a place.
func (p *pahoConn) take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-p.gone:
		return ErrDisconnected
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// waitForRoom waits until the network takes bytes.
func (p *pahoConn) waitForRoom(ctx context.Context) error {
	for p.wire.box.full() {
		select {
		case <-p.wire.box.room:
		case <-p.gone:
			return ErrDisconnected
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	signal(p.wire.box.room) // for another sender that waits
	return nil
}

// complete calls every done, in the order of sending, until the connection is gone; then the rest.
func (p *pahoConn) complete() {
	defer close(p.closed)
	for {
		select {
		case e := <-p.queue:
			p.waiting.Store(int64(time.Since(p.born)) + 1)
			err := p.result(e)
			p.waiting.Store(0)
			if err == nil {
				p.answered.Add(1)
				<-p.places
				if e.qos == 2 {
					<-p.exactly
				}
			}
			e.done(err)
		case <-p.gone:
			p.drain()
			p.wire.wait()
			return
		}
	}
}

// drain completes what is in flight when the connection is gone. Nothing is queued any more then.
func (p *pahoConn) drain() {
	for {
		select {
		case e := <-p.queue:
			e.done(p.result(e))
		default:
			return
		}
	}
}

// result waits for the acknowledgement of e or the end of the connection.
func (p *pahoConn) result(e *pahoMessage) error {
	var token paho.Token
	select {
	case token = <-e.token:
	case <-p.gone:
		return ErrDisconnected
	}
	select {
	case <-token.Done():
	case <-p.gone:
		select {
		case <-token.Done():
		default:
			return ErrDisconnected
		}
	}
	if err := token.Error(); err != nil {
		p.drop(ended(endNetwork, "publish: %w", err))
		return ErrDisconnected
	}
	return nil
}

// end marks the connection as gone; only the first reason counts.
func (p *pahoConn) end(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed {
		return
	}
	p.failed, p.failure = true, reason
	close(p.gone)
}

func (p *pahoConn) oldest() (time.Time, bool) {
	since := p.waiting.Load()
	return p.born.Add(time.Duration(since)), since != 0
}

func (p *pahoConn) subscribes() (time.Time, bool) { return time.Time{}, false }

func (p *pahoConn) inFlight() int { return len(p.places) }

func (p *pahoConn) info() connInfo {
	return connInfo{window: cap(p.places), answered: p.answered.Load(), taken: p.answered.Load()}
}

// commands is empty: the suite gives no commands to this driver.
func (p *pahoConn) commands() <-chan command { return nil }

func (p *pahoConn) acknowledge(command, byte) {}

func (p *pahoConn) stop() {
	reason := ended(endStopped, "stopped")
	p.end(reason)
	p.wire.flushOnClose.Store(true)
	p.client.Disconnect(uint(pahoGoodbye / time.Millisecond))
	p.wire.drop(reason)
}

// drop closes the connection under paho, which then reports its loss.
func (p *pahoConn) drop(reason error) { p.wire.drop(reason) }

func (p *pahoConn) lost() <-chan struct{} { return p.closed }

func (p *pahoConn) cause() error {
	select {
	case <-p.closed:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.failure
	default:
		return nil
	}
}

// pahoNoStore is the message store of paho without a store: messages live in the buffer on disk and nowhere else.
type pahoNoStore struct{}

func (pahoNoStore) Open()                                 {}
func (pahoNoStore) Put(string, pahopackets.ControlPacket) {}
func (pahoNoStore) Get(string) pahopackets.ControlPacket  { return nil }
func (pahoNoStore) All() []string                         { return nil }
func (pahoNoStore) Del(string)                            {}
func (pahoNoStore) Close()                                {}
func (pahoNoStore) Reset()                                {}
