package edge

import (
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
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
	identity access.Identity
	due      time.Time
	forced   bool // the delay is ours, not the client's
}

// wills are the wills that wait for their delay, by client identifier.
type wills struct {
	// mu is held while a session gets or loses its connection, so that a will is scheduled before the client's return
	// cancels it, and not after. It is taken before the sessions' locks.
	mu      sync.Mutex
	pending map[string]pendingWill
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
	if message.ValidName(c.WillTopic) != nil {
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
		b.clients.Add(-1)
	}
	if p.session == nil {
		return
	}
	b.wills.mu.Lock()
	current, lives := b.sessions.Detach(p.session, p)
	w, now := b.willOf(p, current, lives)
	if w.will != nil && !now {
		b.wills.pending[p.client] = w
	}
	b.wills.mu.Unlock()
	if w.will != nil && now {
		b.publishWill(w)
	}
}

// willOf decides what becomes of p's will: now, at w.due, or nothing (w.will is nil). current says that no other
// connection took the session over, lives that the session goes on [MQTT-3.1.2-8] [MQTT-3.1.3-9].
func (b *Broker) willOf(p *peer, current, lives bool) (w pendingWill, now bool) {
	if p.will == nil || p.orderly || b.stopping.Load() {
		return pendingWill{}, false
	}
	w = pendingWill{will: p.will, identity: p.identity}
	delay := p.will.delay
	switch {
	case !current:
		// Taken over: with a delay the client has come back in time, unless its new connection began a new session.
		if lives && delay > 0 {
			return pendingWill{}, false
		}
		return w, true
	case p.forced:
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

// returned takes the pending will of a client that is back. Where its session went on the will is void; where it began a
// new one the old session has ended, and its will is due. The caller holds mu.
func (ws *wills) returned(client string, present bool) []pendingWill {
	w, ok := ws.pending[client]
	if !ok {
		return nil
	}
	delete(ws.pending, client)
	if present || w.forced {
		return nil
	}
	return []pendingWill{w}
}

// due takes the pending wills whose time has come.
func (ws *wills) due(now time.Time) []pendingWill {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var out []pendingWill
	for client, w := range ws.pending {
		if !now.Before(w.due) {
			out = append(out, w)
			delete(ws.pending, client)
		}
	}
	return out
}

// publishWill publishes w as if its client did. What is refused is counted and logged; nobody can be told.
func (b *Broker) publishWill(w pendingWill) {
	m := w.will.msg
	m.ID, m.Received = message.NewID(), time.Now()
	m.Source = message.Source{Protocol: message.MQTT, Client: w.identity.Client, User: w.identity.User}
	if w.will.expiry > 0 {
		m.Expires = m.Received.Add(w.will.expiry)
	}
	err := error(message.ErrNotAllowed)
	if !message.Reserved(m.Topic) && b.o.ACL.Allow(w.identity, access.Publish, m.Topic) {
		_, err = b.ingest(&m)
	}
	if err != nil {
		r := refusalOf(err)
		b.metrics.refuse(message.MQTT, r.label)
		b.log.Warn("will message refused", "client", w.identity.Client, "topic", m.Topic, "error", err)
		if !r.passes {
			return
		}
	}
	b.sessions.Publish(&m, w.identity.Client)
}
