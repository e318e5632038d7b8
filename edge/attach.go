package edge

import (
	"time"

	"tidegate/access"
	"tidegate/edge/gate"
	"tidegate/edge/session"
)

// A connection and its session: how it comes to one, and how it takes one over.

// attach gives the connection its session and ends the connection that had it [MQTT-3.1.4-3]. A session that is kept over a
// restart is on the disk before the client hears of it, and so is that its old will is void.
func (p *peer) attach() {
	p.b.finish(p.client)
	if !p.takeSession() {
		return
	}
	if err := p.session.Secure(); err != nil {
		p.b.log.Warn("a session cannot be stored", "client", p.client, "error", err)
		p.Fail(err)
	}
}

// takeSession reports whether the client is told something that has to be on the disk.
func (p *peer) takeSession() (news bool) {
	b, c := p.b, &p.connect
	acl, id := b.o.ACL, p.identity // outlive the connection
	turn := b.turn(p.client)
	turn.Lock()
	defer turn.Unlock()
	s, present, previous := b.sessions.Attach(session.Connect{
		Conn: p, Client: p.client, User: id.User, Version: c.version, Clean: c.clean, Expiry: p.expiry(c.expiry),
		ReceiveMaximum: c.receive, MaxPacket: c.maxPacket, TopicAliasMaximum: c.aliases,
		Allow:    func(topic string) bool { return acl.Allow(id, access.Deliver, topic) },
		TakeOver: takeOver, Will: p.will.kept(id),
	})
	p.session, p.present = s, present
	w, due := b.wills.returned(p.client, present)
	news = !present || w.will != nil
	if old, ok := previous.(*peer); ok {
		w, due = b.willOf(old, false, present)
		old.will = nil
	}
	if due {
		_ = b.publishWill(w, false)
	}
	return news
}

// finishWithin is how long the connection that a client had may take to be read to its end before another one of the same
// client is let in. It waits for the disk only when very much waits for it already.
const finishWithin = time.Second

// finish reads what has arrived on the connection that client has, if it has one, and ends it: what the client sent before it
// came by another connection comes before that, its goodbye above all.
func (b *Broker) finish(client string) {
	old, ok := b.sessions.Conn(client).(*peer)
	if !ok {
		return
	}
	old.Finish(codeTakenOver, takenOver)
	limit := time.NewTimer(finishWithin)
	defer limit.Stop()
	select {
	case <-old.read:
	case <-limit.C:
	case <-b.waits.Done():
	}
}

// takenOver is why a connection ends whose client has come by another one.
const takenOver gate.Reason = "taken_over"

// takeOver ends the connection of a client that has come by another one.
func takeOver(previous session.Conn) {
	if old, ok := previous.(*peer); ok {
		old.Disconnect(codeTakenOver, takenOver)
	}
}
