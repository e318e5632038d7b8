package edge

import (
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/session"
	"tidegate/message"
)

// forcedDelay is how long a will waits at least when it was the gateway that closed the connection (it could not take a
// message just then): the client is expected back at once, and its will would be a lie.
const forcedDelay = 10 * time.Second

// will is the will message of one connection. Wills pass the same checks and the same Ingest as anything a client
// publishes, at CONNECT and again when they are published. An orderly stop of the gateway publishes none, as the
// specification permits (MQTT 5, 3.1.2.5): the clients did not fail, and they come back with the gateway.
type will struct {
	msg    message.Message // without ID, Received and Expires, which it gets when it is published
	delay  time.Duration
	expiry time.Duration // message expiry interval; 0: none
}

// pendingWill is a will whose connection has ended.
type pendingWill struct {
	will     *will
	session  *session.Session // keeps it; nil: nothing does
	identity access.Identity
	due      time.Time
	forced   bool // the delay is ours, not the client's
	late     bool // it was due, and too much waited for the disk
}

// wills are the wills that wait for their delay, by client identifier.
type wills struct {
	mu      sync.Mutex
	pending map[string]pendingWill
}

// turns are locks by which what begins and what ends a connection of one client identifier come one after the other, the
// publication of a will included: a client that is back and says so must not be contradicted by its old will afterwards.
// They are taken before all other locks.
type turns struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

func (b *Broker) turn(client string) *sync.Mutex {
	return &b.turns.locks[maphash.String(b.turns.seed, client)%uint64(len(b.turns.locks))]
}

// readWill returns the will of a CONNECT packet, nil when there is none, or the reason code for one that is invalid.
func readWill(pk *packets.Packet) (*will, byte) {
	c := &pk.Connect
	if !c.WillFlag {
		if c.WillRetain || c.WillQos != 0 { // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
			return nil, codeProtocolError
		}
		return nil, codeSuccess
	}
	if c.WillQos > 2 { // [MQTT-3.1.2-12]
		return nil, codeProtocolError
	}
	if validName(c.WillTopic) != nil {
		return nil, codeTopicInvalid
	}
	w := &will{
		msg: message.Message{
			Topic: c.WillTopic, Payload: c.WillPayload, QoS: message.QoS(c.WillQos), Retain: c.WillRetain,
		},
		delay:  time.Duration(c.WillProperties.WillDelayInterval) * time.Second,
		expiry: time.Duration(c.WillProperties.MessageExpiryInterval) * time.Second,
	}
	props := c.WillProperties
	props.MessageExpiryInterval = 0 // counts from publication, not from CONNECT
	setProperties(&w.msg, &props)
	return w, codeSuccess
}

// leave ends what the connection had: its place, its session or the connection of it, and its will.
func (b *Broker) leave(p *peer) {
	if p.counted {
		b.sources.leave(addrOf(p.RemoteAddr()))
		b.clients.Add(-1)
	}
	if p.session == nil {
		return
	}
	turn := b.turn(p.client)
	turn.Lock()
	defer turn.Unlock()
	current, lives := b.sessions.Detach(p.session, p)
	w, now := b.willOf(p, current, lives)
	waits := w.will != nil
	if now {
		waits = !b.publishOrKeep(p.client, w)
	} else if waits {
		b.wills.keep(p.client, w)
	}
	if !current {
		return
	}
	if waits {
		p.session.Left(w.kept())
	} else {
		p.session.Left(nil)
	}
}

// kept is what the session keeps of w while it waits.
func (w *pendingWill) kept() *session.Will {
	k := w.will.kept(w.identity)
	k.Pending, k.Forced = true, w.forced
	k.Due = max(time.Until(w.due), 0)
	return k
}

// kept is what the session keeps of w, which may be nil.
func (w *will) kept(id access.Identity) *session.Will {
	if w == nil {
		return nil
	}
	return &session.Will{Msg: w.msg, Delay: w.delay, Expiry: w.expiry, User: id.User}
}

// restoreWills makes the wills wait that were kept over a restart. A client that was connected when the gateway ended did not
// fail for certain: it has some time to come back.
func (b *Broker) restoreWills() {
	for _, r := range b.sessions.Wills() {
		w := pendingWill{
			will: &will{msg: r.Msg, delay: r.Delay, expiry: r.Expiry}, session: r.Session, forced: r.Forced,
			identity: access.Identity{User: r.User, Client: r.Client}, due: time.Now().Add(r.Due),
		}
		if !r.Pending {
			w.forced = r.Delay < forcedDelay
			w.due = time.Now().Add(max(r.Delay, forcedDelay))
			r.Session.Left(w.kept())
		}
		b.wills.keep(r.Client, w)
	}
}

// keep makes w wait until it is due.
func (ws *wills) keep(client string, w pendingWill) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.pending[client] = w
}

// count returns how many wills wait.
func (ws *wills) count() int {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.pending)
}

// hasten makes the pending will of client due.
func (ws *wills) hasten(client string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w, ok := ws.pending[client]; ok {
		w.due = time.Time{}
		ws.pending[client] = w
	}
}

// willOf decides what becomes of p's will: now, at w.due, or nothing (w.will is nil). current says that no other
// connection took the session over, lives that the session goes on [MQTT-3.1.2-8] [MQTT-3.1.3-9].
func (b *Broker) willOf(p *peer, current, lives bool) (w pendingWill, now bool) {
	if p.will == nil || p.orderly || b.stopping.Load() {
		return pendingWill{}, false
	}
	w = pendingWill{will: p.will, identity: p.identity}
	if current && lives {
		w.session = p.session
	}
	delay := p.will.delay
	switch {
	case !current:
		// Taken over: with a delay the client has come back in time, unless its new connection began a new session.
		if lives && delay > 0 {
			return pendingWill{}, false
		}
		return w, true
	case p.forced || p.failed.Load() || p.comesBack():
		w.forced = delay < forcedDelay
		delay = max(delay, forcedDelay)
	case !lives:
		return w, true // the end of the session ends the delay
	default:
		delay = min(delay, p.expiry(p.connect.expiry))
	}
	w.due = time.Now().Add(delay)
	return w, delay <= 0
}

// returned takes the pending will of a client that is back, and reports whether it is due: where its session went on the
// will is void, unless it was due before; where it began a new one the old session has ended, and with it the delay.
func (ws *wills) returned(client string, present bool) (w pendingWill, due bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w, ok := ws.pending[client]
	delete(ws.pending, client)
	return w, ok && (w.late || !present && !w.forced)
}

// clients returns who has a pending will whose time has come.
func (ws *wills) clients(now time.Time) (due []string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for client, w := range ws.pending {
		if !now.Before(w.due) {
			due = append(due, client)
		}
	}
	return due
}

// publishDue publishes the pending wills whose time has come.
func (b *Broker) publishDue(now time.Time) {
	for _, client := range b.wills.clients(now) {
		b.publishPending(client)
	}
}

// publishPending publishes the will of client, unless the client has come back meanwhile.
func (b *Broker) publishPending(client string) {
	turn := b.turn(client)
	turn.Lock()
	defer turn.Unlock()
	b.wills.mu.Lock()
	w, ok := b.wills.pending[client]
	delete(b.wills.pending, client)
	b.wills.mu.Unlock()
	if ok {
		b.publishOrKeep(client, w)
	}
}

// publishOrKeep publishes w; while too much waits for the disk it keeps w for another try, as a client's own messages wait
// then. Not where very many are kept already: that is their bound. A client that comes back meanwhile has its will
// published before it is let in, with one try.
func (b *Broker) publishOrKeep(client string, w pendingWill) (published bool) {
	err := b.publishWill(w, b.wills.count() < 2*b.o.Broker.MaxClients)
	if late := behind(nil); errors.As(err, &late) {
		w.late, w.due = true, time.Time{} // the next sweep tries again
		b.wills.keep(client, w)
		return false
	}
	return true
}

// publishWill publishes w as if its client did. What is refused is counted and logged; nobody can be told. With again, an
// error that passes with a commit is returned without any of that: there will be another try.
func (b *Broker) publishWill(w pendingWill, again bool) error {
	m := w.will.msg
	m.ID, m.Received = message.NewID(), time.Now()
	m.Source = message.Source{Protocol: message.MQTT, Client: w.identity.Client, User: w.identity.User}
	if w.will.expiry > 0 {
		m.Expires = m.Received.Add(w.will.expiry)
	}
	err := error(message.ErrNotAllowed)
	if !message.Reserved(m.Topic) && b.o.ACL.Allow(w.identity, access.Publish, m.Topic) {
		_, err = b.sessions.Route(session.Publication{Msg: &m, Client: w.identity.Client, Take: b.take, Will: w.session})
	}
	if err == nil {
		return nil
	}
	if late := behind(nil); again && errors.As(err, &late) {
		return err
	}
	r := refusalOf(err)
	b.metrics.refuse(message.MQTT, r.label)
	b.refusals.log(b.log, "will message refused", r.label, w.identity.Client, "client", w.identity.Client, "topic", m.Topic, "error", err)
	if r.passes {
		b.sessions.Publish(&m, w.identity.Client)
	}
	return nil
}
