package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"tidegate/access"
	"tidegate/certs"
	"tidegate/message"
)

// How a client proved who it is.
const (
	byCertificate = "certificate"
	byPassword    = "password"
	byNobody      = "anonymous"
)

// refusedLogin is why a client is not let in.
type refusedLogin struct {
	code  byte   // of the CONNACK
	label string // of the metric and the log
	err   error
}

// login finds out who the client is. With a certificate it is the user that this stands for, whatever the password: the
// certificate was proved in the handshake, and a user name in the CONNECT must be the same one. Everybody else logs in by the
// enhanced authentication, with name and password, or without a name where the listener admits that.
func (p *peer) login() (access.Identity, string, *refusedLogin) {
	name, how := p.connect.user, byPassword
	if p.connect.method != "" {
		user, no := p.exchange()
		if no != nil {
			return access.Identity{}, "", no
		}
		if name != "" && name != user {
			return access.Identity{}, "", &refusedLogin{codeBadLogin, "credentials", fmt.Errorf("logged in as %q, and CONNECT has another user name", user)}
		}
		name, how = user, byMethod
	}
	if cs, ok := p.ConnectionState(); ok && p.listener.certs != nil {
		user, err := p.certified(cs)
		switch {
		case err != nil:
			return access.Identity{}, "", &refusedLogin{codeNotAuthorized, "certificate", err}
		case user != "" && name != "" && name != user:
			return access.Identity{}, "", &refusedLogin{codeBadLogin, "certificate", fmt.Errorf("the certificate is that of %q", user)}
		case user != "":
			return access.Identity{User: user, Client: p.client}, byCertificate, nil
		}
	}
	if how == byMethod {
		return access.Identity{User: name, Client: p.client}, how, nil
	}
	id, err := p.b.o.ACL.Authenticate(access.Login{
		User: p.connect.user, Password: p.connect.password, Client: p.client,
		From: addrOf(p.RemoteAddr()), Anonymous: p.listener.anonymous.Load(),
	})
	switch {
	case errors.Is(err, access.ErrLocked):
		return id, "", &refusedLogin{codeConnectRate, "locked", err}
	case errors.Is(err, message.ErrBusy):
		return id, "", &refusedLogin{codeBusy, "busy", err}
	case err != nil:
		return id, "", &refusedLogin{codeBadLogin, "credentials", err}
	case id.User == "":
		return id, byNobody, nil
	}
	return id, how, nil
}

// ownsIdentifier reports whether the client identifier may be that of its user. A session belongs to both, and who comes with
// somebody else's identifier ends that session and takes its connection.
func (p *peer) ownsIdentifier() bool {
	if !p.b.own.Load() {
		return true
	}
	rest, ok := strings.CutPrefix(p.client, p.identity.User)
	return ok && p.identity.User != "" && (rest == "" || rest[0] == '/')
}

// certified returns the user of the client's certificate; empty when it showed none and need not. A list may have revoked the
// certificate since the handshake.
func (p *peer) certified(cs tls.ConnectionState) (string, error) {
	l := p.listener
	if l.required && len(cs.PeerCertificates) == 0 {
		return "", errors.New("the client showed no certificate")
	}
	if err := l.certs.Check(cs); err != nil {
		return "", err
	}
	return certs.User(cs, l.identity)
}

// auditLogin writes who came in.
func (p *peer) auditLogin(how string) {
	args := []any{
		"listener", p.listener.name, "client", p.client, "user", p.identity.User, "remote", p.RemoteAddr().String(),
		"by", how, "mqtt", mqttVersion(p.connect.version),
	}
	if cs, ok := p.ConnectionState(); ok {
		args = append(args, "tls", tls.VersionName(cs.Version))
	}
	p.b.audit.login(args...)
}

func mqttVersion(level byte) string {
	if level == 4 {
		return "3.1.1"
	}
	return fmt.Sprint(level)
}

// refuseLogin counts and logs a client that is not let in. User names are logged, passwords never.
func (b *Broker) refuseLogin(p *peer, no *refusedLogin) {
	b.metrics.logins.WithLabelValues(no.label).Inc()
	b.audit.refused(&b.refusals, "client refused", no.label, p.client, "listener", p.listener.name, "client", p.client,
		"user", p.connect.user, "remote", p.RemoteAddr().String(), "error", no.err)
}

// count counts the client in, which happens once it is known, and returns success where it is not one too many. A client that
// comes back by another connection is none.
func (p *peer) count() byte {
	b := p.b
	p.counted = true
	all, here := b.clients.Add(1), b.sources.enter(addrOf(p.RemoteAddr()))
	most, perSource := int64(b.o.Broker.MaxClients), b.o.Broker.MaxClientsPerSource
	why := ""
	switch {
	case b.sessions.Connected(p.client):
	case all > most:
		why = "max_clients"
	case perSource > 0 && here > perSource:
		why = "max_clients_per_source"
	}
	if why == "" {
		return codeSuccess
	}
	b.metrics.refusedConns.Inc()
	b.audit.refused(&b.refusals, "client refused", why, "", "listener", p.listener.name, "client", p.client, "user", p.identity.User,
		"remote", p.RemoteAddr().String())
	return codeBusy
}
