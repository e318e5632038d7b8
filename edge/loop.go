package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/edge/gate"
	"tidegate/message"
)

// A connection is served by one goroutine, which reads packet after packet to the end. While it waits it has only small frames on its
// stack: with thousands of silent clients it is the stacks that cost.

var (
	// errEnded is why the loop ends where the connection was closed here or taken over, or the client has said goodbye.
	errEnded = errors.New("connection ended")
	// errMalformed is about what cannot be decoded.
	errMalformed = errors.New("malformed packet")
)

// serve runs one connection to its end.
func (b *Broker) serve(l *listener, c *gate.Conn) {
	p := &peer{Conn: c, b: b, listener: l, read: make(chan struct{})}
	err := p.run()
	if errors.Is(err, errMalformed) {
		p.sayMalformed()
	}
	close(p.read)
	p.noteHandshake()
	p.noteTooLarge()
	if why, _ := p.Cause(); why == gate.ReasonTooMany {
		b.turnedAway(l.name, p.RemoteAddr(), why)
	}
	_ = c.Close()
	b.leave(p)
	b.log.Debug("connection ended", "listener", l.name, "client", p.client, "remote", c.RemoteAddr().String(), "cause", err)
}

// sayMalformed tells a version 5 client that it sent what cannot be decoded.
func (p *peer) sayMalformed() {
	if p.session == nil && p.Level() == 5 {
		_, _ = p.Write([]byte{packets.Connack << 4, 3, 0, codeMalformed, 0}) // [MQTT-3.1.4-1]
	}
	p.Disconnect(codeMalformed, gate.ReasonMalformed)
}

// run reads packets until nothing more is to be read and returns why. A packet that crashes the library's decoder ends its own
// connection only.
func (p *peer) run() (err error) {
	defer func() {
		if r := recover(); r != nil {
			p.b.metrics.panics.Inc()
			err = fmt.Errorf("%w: %v", errMalformed, r)
		}
	}()
	first, body, err := p.ReadPacket(0)
	if err != nil {
		return err
	}
	if err := p.open(first, body); err != nil {
		return err
	}
	p.b.conns.Go(func() { p.session.Send(p) }) // ends when the connection is closed or taken over
	for {
		first, body, err = p.ReadPacket(0)
		if err != nil {
			return err
		}
		if err := p.handle(first, body); err != nil {
			return err
		}
	}
}

// handle decodes a packet that came after the CONNECT and does what it asks for.
func (p *peer) handle(first byte, body []byte) error {
	var pk packets.Packet
	if err := p.decode(&pk, first, body); err != nil {
		return err
	}
	// More may have been read before the connection was closed here or taken over. Taking it would overtake what was
	// refused, or come after what the client sent by its new connection.
	if p.ended || !p.session.Enter(p) {
		return errEnded
	}
	defer p.session.Leave()
	switch pk.FixedHeader.Type {
	case packets.Publish:
		p.readPublish(&pk)
	case packets.Puback:
		p.session.Puback(p, pk.PacketID)
	case packets.Pubrec:
		p.readPubrec(&pk)
	case packets.Pubrel:
		p.readPubrel(pk.PacketID)
	case packets.Pubcomp:
		p.session.Pubcomp(p, pk.PacketID)
	case packets.Subscribe:
		p.readSubscribe(&pk)
	case packets.Unsubscribe:
		p.readUnsubscribe(&pk)
	case packets.Pingreq:
		_, _ = p.Write([]byte{packets.Pingresp << 4, 0}) // [MQTT-3.12.4-1]
	case packets.Auth:
		p.readAuth(&pk)
	case packets.Disconnect:
		p.readDisconnect(&pk)
		return errEnded
	default: // a second CONNECT [MQTT-3.1.0-2], or what only a server sends
		p.disconnect(codeProtocolError)
	}
	return nil
}

// decode reads a packet. Its strings and payload are in body.
func (p *peer) decode(pk *packets.Packet, first byte, body []byte) error {
	if err := pk.FixedHeader.Decode(first); err != nil {
		return fmt.Errorf("%w: fixed header %#02x: %w", errMalformed, first, err)
	}
	pk.FixedHeader.Remaining = len(body)
	pk.ProtocolVersion = p.connect.version
	err := wellFormed(pk.FixedHeader, p.connect.version, body)
	if err == nil {
		err = decodeBody(pk, body)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errMalformed, packets.PacketNames[pk.FixedHeader.Type], err)
	}
	return nil
}

func decodeBody(pk *packets.Packet, body []byte) error {
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return pk.ConnectDecode(body)
	case packets.Publish:
		return pk.PublishDecode(body)
	case packets.Puback:
		return pk.PubackDecode(body)
	case packets.Pubrec:
		return pk.PubrecDecode(body)
	case packets.Pubrel:
		return pk.PubrelDecode(body)
	case packets.Pubcomp:
		return pk.PubcompDecode(body)
	case packets.Subscribe:
		return pk.SubscribeDecode(body)
	case packets.Unsubscribe:
		return pk.UnsubscribeDecode(body)
	case packets.Disconnect:
		if pk.ProtocolVersion == 5 && len(body) == 1 {
			pk.ReasonCode = body[0] // a form that MQTT 5 allows (3.14.2.2.1), and that the library does not read
			return nil
		}
		return pk.DisconnectDecode(body)
	case packets.Auth:
		return pk.AuthDecode(body)
	}
	return nil // of the others nothing but the type is looked at
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

// WaitWritable waits until the peer has taken most of what was written.
func (p *peer) WaitWritable() error { return p.WaitBelow(context.Background(), pendingBytes) }

// disconnect ends the connection for what the client did; version 5 clients are told the reason code.
func (p *peer) disconnect(code byte) {
	p.ended = true
	p.Disconnect(code, "protocol")
}

// closeForOwn ends the connection for a reason that is ours; the client is expected to come back.
func (p *peer) closeForOwn() {
	p.forced = true
	p.ended = true
	_ = p.Close()
}

// Fail ends the connection because the disk failed.
func (p *peer) Fail(error) {
	p.failed.Store(true)
	p.Kill(gate.ReasonDisk)
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
