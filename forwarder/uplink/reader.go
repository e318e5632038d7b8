package uplink

import (
	"bufio"
	"io"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// ackBatch is how many acknowledgements are settled under one lock.
const ackBatch = 512

// read handles what the broker sends until the connection ends, and says why it ended.
func (p *pipelined) read(r *bufio.Reader) error {
	acks := make([]ack, 0, ackBatch)
	dones := make([]completion, 0, ackBatch)
	for {
		// Acknowledgements that arrived together are settled together, before anything that may wait.
		if len(acks) > 0 && (r.Buffered() == 0 || len(acks) == ackBatch) {
			if err := p.settle(acks, &dones); err != nil {
				return err
			}
			acks = acks[:0]
		}
		if r.Buffered() == 0 {
			p.heard.Store(true) // for what was handled; a connection that was just made has heard the CONNACK
		}
		first, n, err := readHeader(r)
		if err != nil {
			return ended(endNetwork, "read: %w", err)
		}
		if n > maxIncoming {
			return ended(endProtocol, "a packet of %d bytes from the broker", n)
		}
		kind := first >> 4
		if kind >= packets.Puback && kind <= packets.Pubcomp {
			body, err := peek(r, n)
			if err != nil {
				return err
			}
			a, err := parseAck(kind, p.version, body)
			if err != nil {
				return ended(endProtocol, "read %w", err)
			}
			_, _ = r.Discard(min(n, r.Buffered())) // what was peeked is there
			acks = append(acks, a)
			continue
		}
		if len(acks) > 0 { // keep the order of what the broker said
			if err := p.settle(acks, &dones); err != nil {
				return err
			}
			acks = acks[:0]
		}
		body := make([]byte, n) // owned by what is made of it
		if _, err := io.ReadFull(r, body); err != nil {
			return ended(endNetwork, "read: %w", unexpected(err))
		}
		if err := p.handle(first, body); err != nil {
			return err
		}
	}
}

// peek returns the next n bytes without taking them out of r. An acknowledgement that does not fit into the buffer
// would be one with a reason of more than 16 KiB.
func peek(r *bufio.Reader, n int) ([]byte, error) {
	if n > r.Size() {
		return nil, ended(endProtocol, "an acknowledgement of %d bytes from the broker", n)
	}
	body, err := r.Peek(n)
	if err != nil {
		return nil, ended(endNetwork, "read: %w", unexpected(err))
	}
	return body, nil
}

// handle deals with one packet that is no acknowledgement of ours.
func (p *pipelined) handle(first byte, body []byte) error {
	switch kind := first >> 4; kind {
	case packets.Publish:
		c, err := parseCommand(p.version, first, body, time.Now())
		if err != nil {
			return ended(endProtocol, "read %w", err)
		}
		p.enqueue(c)
	case packets.Suback:
		codes, err := parseSuback(p.version, body)
		if err != nil {
			return ended(endProtocol, "read %w", err)
		}
		p.mu.Lock()
		p.subscribing = time.Time{}
		p.mu.Unlock()
		p.hooks.subscribed(codes)
	case packets.Pingresp:
	case packets.Disconnect:
		if p.version != version5 {
			return ended(endProtocol, "disconnect from the broker, which MQTT 3.1.1 does not know")
		}
		return parseDisconnect(body)
	default:
		return ended(endProtocol, "unexpected packet of type %d", kind)
	}
	return nil
}

// enqueue hands a command to whoever reads commands. Where the queue is full, one with QoS 0 is lost, as QoS 0 may be. One
// with QoS 1 stops the reader: on MQTT 5 the broker keeps to the Receive Maximum it was told, so that is a 3.1.1 broker
// without a window of its own, and the acknowledgements that are held up meanwhile run into ack_timeout at worst.
func (p *pipelined) enqueue(c command) {
	if c.packetID == 0 {
		select {
		case p.queue <- c:
		default:
			p.hooks.overflow()
		}
		return
	}
	select {
	case p.queue <- c:
	case <-p.gone:
	}
}

// settle applies acknowledgements to the messages in flight and calls their done. dones is space for it to use.
func (p *pipelined) settle(acks []ack, dones *[]completion) error {
	now := time.Now()
	var out []byte
	var broken error
	*dones = (*dones)[:0]
	p.mu.Lock()
	for _, a := range acks {
		if out, broken = p.settleOne(a, now, out, dones); broken != nil {
			break
		}
	}
	p.mu.Unlock()
	if len(out) > 0 {
		_, _ = p.box.Write(out) // an outbox never fails
	}
	signal(p.box.room)
	for i, d := range *dones {
		d.done(d.err)
		(*dones)[i] = completion{}
	}
	return broken
}

// settleOne applies one acknowledgement; the caller holds mu. What has to be answered is appended to out. An
// acknowledgement that does not fit the message in flight ends the connection: completing a message wrongly would lose it,
// sending it again does not. One for an identifier that is not in flight is a stray and changes nothing.
func (p *pipelined) settleOne(a ack, now time.Time, out []byte, dones *[]completion) ([]byte, error) {
	s := p.win.find(a.id)
	if s == nil {
		return p.settleStray(a, out), nil
	}
	if a.code == codeIdentifierInUse {
		return out, ended(endProtocol, "the broker holds packet identifier %d for another message (0x91)", a.id)
	}
	switch {
	case a.kind == packets.Puback && s.qos == 1:
	case a.kind == packets.Pubrec && s.qos == 2 && a.code >= 0x80 && !s.released:
	case a.kind == packets.Pubrec && s.qos == 2 && a.code < 0x80:
		s.released = true
		return appendAck(out, packets.Pubrel, a.id, 0), nil
	case a.kind == packets.Pubcomp && s.qos == 2 && s.released && a.code < 0x80:
	default:
		return out, ended(endProtocol, "%s (%#x) does not fit the message in flight under its packet identifier",
			packets.PacketNames[a.kind], a.code)
	}
	p.answered++
	if a.code < 0x80 {
		p.taken++
	}
	*dones = append(*dones, completion{done: p.win.release(s, now), err: ackError(a.code, a.reason)})
	return out, nil
}

// settleStray handles an acknowledgement for an identifier that is not in flight.
func (p *pipelined) settleStray(a ack, out []byte) []byte {
	switch a.kind {
	case packets.Pubrec: // the broker waits for a PUBREL, whatever we know
		code := byte(0)
		if p.version == version5 {
			code = codeIdentifierUnknown
		}
		if a.code < 0x80 {
			return appendAck(out, packets.Pubrel, a.id, code)
		}
	case packets.Pubcomp:
		if p.recover.stage == recovering {
			delete(p.recover.open, a.id)
			if len(p.recover.open) == 0 {
				p.recover.stage = recovered
			}
		}
	}
	return out
}
