package edge

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/gate"
	"tidegate/edge/session"
)

// pendingBytes is how much may wait for a slow peer before its session stops sending.
const pendingBytes = 64 << 10

// peer is one connection with what is known about its client. Its fields are set and used by the goroutine that reads
// the connection.
type peer struct {
	*gate.Conn
	b        *Broker
	listener *listener

	connect    connectInfo
	will       *will
	client     string // client identifier
	identity   access.Identity
	proof      proof
	counted    bool // in Broker.clients
	session    *session.Session
	present    bool            // the session was there before
	life       context.Context // ends with the connection or the gateway's stop; see patience
	aliases    map[uint16]string
	aliasBytes int              // of the names in it
	again      *access.Exchange // of a client that authenticates again; nil: none is going on

	orderly bool          // the client said goodbye: no will
	forced  bool          // we closed the connection for a reason of our own
	failed  atomic.Bool   // so did a session, because the disk failed
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
	shortened bool // keepAlive is less than the client asked for
	noID      bool
	user      string
	password  []byte
	method    string // of the enhanced authentication; empty: none
	data      []byte // its first message from the client, then the last one to it
}

// errRefused is why the loop ends where the client was not let in.
var errRefused = errors.New("client refused")

// open takes in the CONNECT packet: who the client is, whether it may come in, and its session. It answers with a CONNACK.
func (p *peer) open(first byte, body []byte) error {
	var pk packets.Packet
	if err := p.decode(&pk, first, body); err != nil {
		return err
	}
	code := p.readConnect(&pk)
	if code == codeSuccess {
		code = p.admit()
	}
	if code != codeSuccess {
		p.refuseConnect(code)
		return fmt.Errorf("%w: reason code %#02x", errRefused, code)
	}
	p.startKeepAlive()
	p.attach()
	if p.proof.rules != p.b.rules.Load() {
		p.b.judge(p.session) // they changed since it logged in
	}
	return p.accept()
}

// readConnect keeps what a CONNECT says and checks what the specification wants of it. It returns the reason code for one that it does
// not allow.
func (p *peer) readConnect(pk *packets.Packet) byte {
	c, props := &pk.Connect, &pk.Properties
	p.client = strings.Clone(c.ClientIdentifier) // outlives the packet that it is part of
	p.connect = connectInfo{
		version: pk.ProtocolVersion, clean: c.Clean, keepAlive: c.Keepalive,
		receive: props.ReceiveMaximum, aliases: props.TopicAliasMaximum, maxPacket: props.MaximumPacketSize,
		method: strings.Clone(props.AuthenticationMethod), data: props.AuthenticationData,
		noID: c.ClientIdentifier == "", user: string(c.Username), password: c.Password, expiry: props.SessionExpiryInterval,
	}
	if p.connect.noID {
		p.client = rand.Text() // [MQTT-3.1.3-6]
	}
	if pk.ProtocolVersion == 4 && !c.Clean {
		p.connect.expiry = math.MaxUint32
	}
	if pk.ProtocolVersion != 4 && pk.ProtocolVersion != 5 {
		return codeVersion // [MQTT-3.1.2-2]
	}
	w, code := readWill(pk)
	if code != codeSuccess {
		return code
	}
	p.will = w
	return validConnect(pk)
}

// validConnect lets the library check the rest, but for the will, of which it refuses an empty one, and an empty password, which is a
// password [MQTT-3.1.2-19].
func validConnect(pk *packets.Packet) byte {
	c := &pk.Connect
	c.WillFlag, c.WillRetain, c.WillQos, c.WillTopic, c.WillPayload = false, false, 0, "", nil
	c.PasswordFlag = c.PasswordFlag && len(c.Password) > 0
	return pk.ConnectValidate().Code
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
	if c.noID && b.own.Load() {
		p.client = id.User + "/" + p.client
		id.Client = p.client
	}
	p.identity, p.proof.by = id, how
	if how == byMethod { // CONNECT need not name the user
		p.proof.credential = b.o.ACL.Credential(id.User)
	}
	if !p.ownsIdentifier() {
		b.refuseLogin(p, &refusedLogin{label: "client_id", err: fmt.Errorf("user %q may have the client identifiers %[1]s and %[1]s/… only", id.User)})
		return codeIdentifier
	}
	if p.will != nil && !p.mayPublish(p.will.msg.Topic) {
		b.refuseLogin(p, &refusedLogin{label: "will", err: fmt.Errorf("may not publish its will message to %q", p.will.msg.Topic)})
		return codeNotAuthorized
	}
	if code := p.count(); code != codeSuccess {
		return code
	}
	p.auditLogin(how)
	return codeSuccess
}

// refuseConnect writes a CONNACK that ends the connection. A version 3.1.1 client whose CONNECT is none gets no answer [MQTT-3.1.4-1].
func (p *peer) refuseConnect(code byte) {
	p.will = nil // there was no session it could belong to
	switch {
	case p.connect.version == 5:
		_, _ = p.Write([]byte{packets.Connack << 4, 3, 0, code, 0})
	case code != codeProtocolError && code != codeMalformed:
		_, _ = p.Write([]byte{packets.Connack << 4, 2, 0, connackOf(code)})
	}
}

// startKeepAlive sets how long the client may be silent: one and a half times the keep alive [MQTT-3.1.2-22]. Version 5 clients are told
// when it is less than they asked for. A version 3.1.1 client cannot be told, so its own wish counts; TCP keep-alive notices when it
// is gone without a word.
func (p *peer) startKeepAlive() {
	c := &p.connect
	if limit := p.b.o.Broker.MaxKeepAlive.D(); c.version == 5 && limit > 0 {
		most := uint16(min(max(1, int64(limit/time.Second)), math.MaxUint16))
		if c.keepAlive == 0 || c.keepAlive > most {
			c.keepAlive, c.shortened = most, true // [MQTT-3.1.2-21]
		}
	}
	p.SetKeepAlive(time.Duration(c.keepAlive) * time.Second * 3 / 2)
}

// expiry returns how long the session lives without a connection.
func (p *peer) expiry(seconds uint32) time.Duration {
	return min(time.Duration(seconds)*time.Second, p.b.o.Broker.SessionExpiry.D())
}

// accept writes the CONNACK that lets the client in.
func (p *peer) accept() error {
	c := &p.connect
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connack}, ProtocolVersion: c.version,
		SessionPresent: p.present, // [MQTT-3.2.2-2]
	}
	if c.version == 5 {
		p.describe(&pk.Properties)
	}
	var b bytes.Buffer
	if err := pk.ConnackEncode(&b); err != nil {
		return fmt.Errorf("encode CONNACK: %w", err)
	}
	if c.maxPacket > 0 && b.Len() > int(c.maxPacket) { // [MQTT-3.1.2-24]
		return fmt.Errorf("%w: it takes packets of %d bytes, and its CONNACK has %d", errRefused, c.maxPacket, b.Len())
	}
	_, err := p.Write(b.Bytes())
	return err
}

// describe fills in what a version 5 client is told about its connection.
func (p *peer) describe(props *packets.Properties) {
	c := &p.connect
	if c.noID {
		props.AssignedClientID = p.client // [MQTT-3.2.2-16]
	}
	if c.method != "" {
		props.AuthenticationMethod, props.AuthenticationData = c.method, c.data // [MQTT-4.12.0-5]
		c.data = nil
	}
	props.ServerKeepAlive, props.ServerKeepAliveFlag = c.keepAlive, c.shortened
	props.ReceiveMaximum, props.TopicAliasMaximum = receiveMaximum, aliasMaximum
	props.MaximumPacketSize = uint32(p.b.o.Broker.MaxPacket)
	if granted := uint32(p.expiry(c.expiry) / time.Second); granted != c.expiry {
		props.SessionExpiryInterval, props.SessionExpiryIntervalFlag = granted, true
	}
}

// readDisconnect takes the client's goodbye.
func (p *peer) readDisconnect(pk *packets.Packet) {
	if pk.Properties.SessionExpiryIntervalFlag {
		if p.connect.expiry == 0 && pk.Properties.SessionExpiryInterval > 0 {
			p.disconnect(codeProtocolError) // [MQTT-3.1.2-11.2]
			return
		}
		p.session.SetExpiry(p, p.expiry(pk.Properties.SessionExpiryInterval))
	}
	p.orderly = pk.ReasonCode == codeSuccess // [MQTT-3.14.4-3]
}
