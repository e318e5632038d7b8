package edge

import (
	"time"

	"tidegate/access"
	"tidegate/edge/gate"
	"tidegate/edge/session"
)

// Users and rules change while clients are connected. What a client publishes and is sent is asked for each time, so that a
// change holds for the next message. This file is about the rest: whether it may still be connected, and what it has subscribed
// to. A client that loses a subscription is disconnected, as MQTT has no other way to tell it: it comes back, subscribes again,
// and the SUBACK says which filter is not allowed. Left connected it would wait for messages that never come.

// Why a connection ends after such a change.
const (
	userGone         gate.Reason = "user_gone"         // its user is not there any more
	passwordChanged  gate.Reason = "password_changed"  // it logged in with an earlier one
	anonymousEnded   gate.Reason = "anonymous_ended"   // the listener admits no clients without a name any more
	subscriptionLost gate.Reason = "subscription_lost" // the rules do not allow one of its filters any more
	identifierLost   gate.Reason = "client_id"         // its client identifier may not be that of its user any more
	listenerClosed   gate.Reason = "listener_closed"   // its listener is not there any more, or is another one
)

// proof is by what a client was let in.
type proof struct {
	by         string // byCertificate, byPassword or byNobody
	credential uint64 // of its user
	rules      uint64 // Broker.rules of that time
}

// proofOf notes the state of users and rules before a login is looked at: one that changes meanwhile is looked at again.
func (b *Broker) proofOf(user string) proof {
	rules := b.rules.Load()
	return proof{rules: rules, credential: b.o.ACL.Credential(user)}
}

// Rejudge applies users and rules that have changed to the clients that are connected and the sessions that are kept. hide and own are
// Options.HideReasons and OwnIdentifiers from now on, anonymous says for each listener whether it admits clients without a user name; one that
// it does not name stays as it is. It returns how many clients it disconnected.
func (b *Broker) Rejudge(hide, own bool, anonymous map[string]bool) (disconnected int) {
	b.hide.Store(hide)
	b.own.Store(own)
	for _, l := range b.every() {
		if admits, ok := anonymous[l.name]; ok {
			l.anonymous.Store(admits)
			l.config.Anonymous = &admits // only changes of listeners look at it, of which this is one
		}
	}
	return b.RejudgeUsers()
}

// RulesChanged says at once that the ACL answers in another way; Rejudge is to follow, which takes longer.
func (b *Broker) RulesChanged() { b.sessions.RulesChanged() }

// RejudgeUsers is Rejudge where nothing but what the ACL says has changed.
func (b *Broker) RejudgeUsers() (disconnected int) {
	b.RulesChanged()
	b.rules.Add(1) // before looking: who is let in from here on is judged by what is true now, or looks itself
	for _, s := range b.sessions.All() {
		if b.judge(s) {
			disconnected++
		}
	}
	return disconnected
}

// judge ends the subscriptions of a session that are not allowed any more, and its connection where that may not be. It
// reports whether it ended one. It may be called by any goroutine.
func (b *Broker) judge(s *session.Session) bool {
	id := access.Identity{User: s.User(), Client: s.Client()}
	lost := s.Revoke(func(filter string) bool { return b.o.ACL.Allow(id, access.Subscribe, filter) })
	p, ok := b.sessions.Conn(s.Client()).(*peer)
	if !ok {
		return false
	}
	if ended, _ := p.Cause(); ended != "" {
		return false // it is about to leave
	}
	code, why := p.unwelcome()
	if why == "" && len(lost) > 0 {
		code, why = b.notAuthorized(), subscriptionLost
	}
	if why == "" {
		return false
	}
	args := []any{
		"reason", string(why), "listener", p.listener.name, "client", brief(p.client), "user", p.identity.User, "remote", p.RemoteAddr().String(),
	}
	if len(lost) > 0 {
		args = append(args, "filter", brief(lost[0]), "filters", len(lost))
	}
	b.audit.ended(args...)
	p.Disconnect(code, why)
	return true
}

// unwelcome returns why the client may not be connected any more, and the reason code for it; empty: it may.
func (p *peer) unwelcome() (code byte, why gate.Reason) {
	if !p.ownsIdentifier() {
		return codeNotAuthorized, identifierLost
	}
	switch p.proof.by {
	case byPassword, byMethod:
		now := p.b.o.ACL.Credential(p.identity.User)
		switch {
		case now == 0:
			return codeNotAuthorized, userGone
		case now != p.proof.credential:
			return codeAdministrative, passwordChanged
		}
	case byNobody:
		if !p.listener.anonymous.Load() {
			return codeNotAuthorized, anonymousEnded
		}
	}
	return 0, ""
}

// comesBack reports whether the connection was ended here for a reason after which the client is expected to come back at once.
func (p *peer) comesBack() bool {
	why, _ := p.Cause()
	return why == subscriptionLost || why == passwordChanged || why == listenerClosed
}

// ended writes that a client was disconnected for a change of users or rules.
func (a *audit) ended(args ...any) {
	if silent, ok := a.admitted.take(time.Now(), 0); ok {
		a.log.Warn("client disconnected", withSilent(args, silent)...)
	}
}
