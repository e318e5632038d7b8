package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/gate"
	"tidegate/edge/session"
	"tidegate/message"
)

const (
	// pendingBytes is how much may wait for a slow peer before its session stops sending.
	pendingBytes = 64 << 10
	// maxAliveSeconds is the longest keep alive the library can count: it multiplies by 1.5 in 16 bits.
	maxAliveSeconds = math.MaxUint16 / 3 * 2
)

// peer is one connection with what is known about its client. Its fields are set and used by the goroutine that reads
// the connection.
type peer struct {
	*gate.Conn
	b        *Broker
	listener *listener

	connect  connectInfo
	will     *will
	client   string // client identifier
	name     string // what the library calls the connection; empty until it has a session
	identity access.Identity
	proof    proof
	admitted bool
	counted  bool // in Broker.clients
	session  *session.Session
	present  bool            // the session was there before
	life     context.Context // ends with the connection or the gateway's stop; see patience
	aliases  map[uint16]string
	again    *access.Exchange // of a client that authenticates again; nil: none is going on

	orderly bool          // the client said goodbye: no will
	forced  bool          // we closed the connection for a reason of our own
	failed  atomic.Bool   // so did a session, because the disk failed
	goodbye atomic.Bool   // the client sent a DISCONNECT; read by Close, which others may call
	ended   bool          // the connection was closed here: what was read already is not looked at any more
	read    chan struct{} // closed when nothing more is read from the connection
}

// connectInfo is what the CONNECT packet said.
type connectInfo struct {
	version   byte
	clean     bool
	keepAlive uint16
	expiry    uint32 // seconds; for version 3.1.1 what its clean session flag amounts to
	receive   uint16
	aliases   uint16
	maxPacket uint32
	noID      bool
	user      string
	password  []byte
	method    string // of the enhanced authentication; empty: none
	data      []byte // its first message from the client, then the last one to it
}

// WaitWritable waits until the peer has taken most of what was written.
func (p *peer) WaitWritable() error { return p.WaitBelow(context.Background(), pendingBytes) }

// serve runs one connection to its end.
func (b *Broker) serve(l *listener, c *gate.Conn) {
	p := &peer{Conn: c, b: b, listener: l, read: make(chan struct{})}
	err := c.AwaitConnect()
	if err == nil {
		err = b.establish(p)
	}
	close(p.read)
	p.noteHandshake()
	p.noteTooLarge()
	_ = c.Close()
	b.leave(p)
	b.log.Debug("connection ended", "listener", l.name, "client", p.client, "remote", c.RemoteAddr().String(), "cause", err)
}

// noteTooLarge counts the packet that ended the connection because it is larger than any may be. It was never read, so
// nobody else has counted it.
func (p *peer) noteTooLarge() {
	if why, _ := p.Cause(); why != gate.ReasonPacketTooLarge || p.session == nil {
		return
	}
	label := refusalOf(message.ErrTooLarge).label
	p.b.metrics.refuse(message.MQTT, label)
	p.b.refusals.log(p.b.log, "packet refused", label, p.client, "client", p.client, "user", p.identity.User,
		"max_packet", int64(p.b.o.Broker.MaxPacket))
}

// noteHandshake counts and logs that TLS or WebSocket could not be opened. Whoever only looks whether somebody listens here is
// not worth a line.
func (p *peer) noteHandshake() {
	why, err := p.Cause()
	if why != gate.ReasonHandshake {
		return
	}
	p.b.metrics.handshakes.Inc()
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		p.b.audit.refused(&p.b.refusals, "connection refused", string(why), addrOf(p.RemoteAddr()).String(), "listener", p.listener.name,
			"remote", p.RemoteAddr().String(), "error", err)
	}
}

// establish hands the connection to the library, on this goroutine. A packet that crashes the library's decoder ends its
// own connection only.
func (b *Broker) establish(p *peer) (err error) {
	defer func() {
		if r := recover(); r != nil {
			b.metrics.panics.Inc()
			err = fmt.Errorf("decode packet: %v", r)
			b.server.Clients.Delete(p.name) // the library did not come to it
		}
	}()
	return b.server.EstablishConnection(p.listener.name, p)
}

// readConnect keeps what a CONNECT says and hides from the library what is not its business: the will, so that it neither
// refuses an empty one nor ever publishes one, and how long the session lives, so that it keeps none.
func (p *peer) readConnect(pk packets.Packet) (packets.Packet, error) {
	if pk.ProtocolVersion != 4 && pk.ProtocolVersion != 5 {
		_, _ = p.Write([]byte{packets.Connack << 4, 2, 0, oldVersion}) // [MQTT-3.1.2-2]
		return pk, packets.ErrRejectPacket
	}
	c := &pk.Connect
	p.connect = connectInfo{
		version: pk.ProtocolVersion, clean: c.Clean, keepAlive: c.Keepalive,
		receive: pk.Properties.ReceiveMaximum, aliases: pk.Properties.TopicAliasMaximum,
		maxPacket: pk.Properties.MaximumPacketSize, method: pk.Properties.AuthenticationMethod,
		noID: c.ClientIdentifier == "", user: string(c.Username), password: c.Password,
		expiry: pk.Properties.SessionExpiryInterval, data: pk.Properties.AuthenticationData,
	}
	if pk.ProtocolVersion == 4 && !c.Clean {
		p.connect.expiry = math.MaxUint32
	}
	w, code := readWill(&pk)
	if code != codeSuccess {
		p.refuseConnect(code)
		return pk, packets.ErrRejectPacket
	}
	p.will = w

	c.WillFlag, c.WillRetain, c.WillQos, c.WillTopic, c.WillPayload = false, false, 0, "", nil
	c.WillProperties = packets.Properties{}
	c.Clean = true
	if len(c.Password) == 0 {
		c.PasswordFlag = false // an empty password is a password [MQTT-3.1.2-19]
	}
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 0, false
	pk.Properties.ReceiveMaximum, pk.Properties.TopicAliasMaximum = 0, 0
	return pk, nil
}

// admit decides whether the client may connect and returns the reason code of the CONNACK.
func (p *peer) admit() byte {
	b, c := p.b, &p.connect
	switch {
	case b.stopping.Load():
		return codeShuttingDown
	case c.noID && c.version == 4 && !c.clean:
		return codeIdentifier // [MQTT-3.1.3-8]
	case c.method != "" && c.method != methodSCRAM:
		return codeBadAuthMethod // [MQTT-4.12.0-1]
	}
	p.proof = b.proofOf(c.user)
	id, how, no := p.login()
	c.password = nil
	if no != nil {
		b.refuseLogin(p, no)
		return no.code
	}
	p.identity, p.proof.by = id, how
	if how == byMethod { // CONNECT need not name the user
		p.proof.credential = b.o.ACL.Credential(id.User)
	}
	if p.will != nil && !p.mayPublish(p.will.msg.Topic) {
		b.refuseLogin(p, &refusedLogin{label: "will", err: fmt.Errorf("may not publish its will message to %q", p.will.msg.Topic)})
		return codeNotAuthorized
	}
	if code := p.count(); code != codeSuccess {
		return code
	}
	p.auditLogin(how)
	p.admitted = true
	return codeSuccess
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

// refuseConnect writes a CONNACK that ends the connection.
func (p *peer) refuseConnect(code byte) {
	p.will = nil // there was no session it could belong to
	if p.connect.version == 5 {
		_, _ = p.Write([]byte{packets.Connack << 4, 3, 0, code, 0})
		return
	}
	_, _ = p.Write([]byte{packets.Connack << 4, 2, 0, connackOf(code)})
}

// keepAlive sets how long the client may be silent. Version 5 clients are told when it is less than they asked for. A
// version 3.1.1 client cannot be told, so its own wish counts; TCP keep-alive notices when it is gone without a word.
func (p *peer) keepAlive(cl *mqtt.Client) {
	k := min(p.connect.keepAlive, maxAliveSeconds)
	if limit := p.b.o.Broker.MaxKeepAlive.D(); p.connect.version == 5 && limit > 0 {
		most := uint16(min(max(1, int64(limit/time.Second)), maxAliveSeconds))
		if k == 0 || k > most {
			k = most
			cl.State.ServerKeepalive = true // [MQTT-3.1.2-21]
		}
	}
	cl.State.Keepalive = k
}

// expiry returns how long the session lives without a connection.
func (p *peer) expiry(seconds uint32) time.Duration {
	return min(time.Duration(seconds)*time.Second, p.b.o.Broker.SessionExpiry.D())
}

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

// Fail ends the connection because the disk failed.
func (p *peer) Fail(error) {
	p.failed.Store(true)
	p.Kill(gate.ReasonDisk)
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

// patience returns the context of what this connection's packets wait for. It is made when it is needed first.
func (p *peer) patience() context.Context {
	if p.life == nil {
		life, end := context.WithCancel(p.b.waits)
		p.life = life
		p.OnEnd(end)
	}
	return p.life
}

// completeConnack fills in what the library does not know.
func (p *peer) completeConnack(pk *packets.Packet) {
	pk.SessionPresent = p.present // [MQTT-3.2.2-2]
	if p.connect.version < 5 {
		return
	}
	if p.connect.method != "" {
		pk.Properties.AuthenticationMethod, pk.Properties.AuthenticationData = p.connect.method, p.connect.data // [MQTT-4.12.0-5]
		p.connect.data = nil
	}
	pk.Properties.TopicAliasMaximum = aliasMaximum
	pk.Properties.MaximumPacketSize = uint32(p.b.o.Broker.MaxPacket)
	if granted := uint32(p.expiry(p.connect.expiry) / time.Second); granted != p.connect.expiry {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = granted, true
	}
}

// readDisconnect takes the client's goodbye.
func (p *peer) readDisconnect(pk packets.Packet) packets.Packet {
	if pk.Properties.SessionExpiryIntervalFlag {
		if p.connect.expiry == 0 && pk.Properties.SessionExpiryInterval > 0 {
			p.disconnect(codeProtocolError) // [MQTT-3.1.2-11.2]
			return inert()
		}
		p.session.SetExpiry(p, p.expiry(pk.Properties.SessionExpiryInterval))
		pk.Properties.SessionExpiryIntervalFlag = false
	}
	p.goodbye.Store(true)
	code := pk.ReasonCode
	if p.connect.version == 5 && pk.FixedHeader.Remaining == 1 {
		code = p.ShortDisconnect()
	}
	p.orderly = code == codeSuccess // [MQTT-3.14.4-3]
	return pk
}

// Close is called by the library when it is done with the connection, on any goroutine. Where nothing else ended it, the
// client sent what cannot be decoded: a version 5 client is told so.
func (p *peer) Close() error {
	if why, _ := p.Cause(); why == "" && p.session != nil && !p.goodbye.Load() {
		p.Disconnect(codeMalformed, gate.ReasonMalformed)
		return nil
	}
	return p.Conn.Close()
}

// disconnect ends the connection for what the client did; version 5 clients are told the reason code.
func (p *peer) disconnect(code byte) {
	p.ended = true
	p.Disconnect(code, "protocol")
}

// closeForOwn ends the connection for a reason that is ours; the client is expected to come back.
func (p *peer) closeForOwn() {
	p.forced = true
	p.ended = true
	_ = p.Conn.Close()
}
