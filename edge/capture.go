package edge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"tidegate/access"
	"tidegate/edge/session"
	"tidegate/message"
)

// maxAliasBytes bounds the topic names that one connection's aliases stand for, all together. They are kept before it is known whether
// the client may publish there.
const maxAliasBytes = 64 << 10

// readPublish takes in a PUBLISH: check, ingest, give to subscribers, acknowledge behind the gate.
func (p *peer) readPublish(pk *packets.Packet) {
	if code := p.resolve(pk); code != codeSuccess {
		p.disconnect(code)
		return
	}
	qos, id := pk.FixedHeader.Qos, pk.PacketID
	if qos == 2 {
		if t, known := p.session.Receive(id); known {
			// A repetition of what was taken already: acknowledged like the first one, when that is on disk
			// [MQTT-4.3.3-10].
			p.Hold(t)
			p.ack(qos, id, codeSuccess)
			return
		}
		// A version 3.1.1 client knows of no such bound; its identifiers are one.
		if p.connect.version == 5 && p.session.Open() >= receiveMaximum {
			p.disconnect(codeReceiveMaximum)
			return
		}
	}
	m := p.capture(pk)
	// Who learns of the acknowledgement finds the message retained and queued.
	t, err := p.take(&m, id)
	if err != nil {
		p.refuse(&m, id, err)
		return
	}
	if qos == 2 {
		p.received(id, t)
	}
	if qos > 0 {
		p.Hold(t)
		p.ack(qos, id, codeSuccess)
	}
}

// received follows when a QoS 2 message was taken, which the session knows until its PUBREL. Should its record not reach the
// disk, the client gets no PUBREC and sends it again; that is then not a repetition but the message itself.
func (p *peer) received(id uint16, t message.Ticket) {
	s := p.session
	if !t.Durable() {
		t.Done(func(err error) {
			if err != nil {
				s.Forget(id, t)
			}
		})
	}
}

// resolve checks what the decoder does not and puts the topic name in the place of a topic alias. It returns the reason code for
// a protocol error.
func (p *peer) resolve(pk *packets.Packet) byte {
	props := &pk.Properties
	switch {
	case pk.FixedHeader.Qos > 0 && pk.PacketID == 0: // [MQTT-2.2.1-3]
		return codeProtocolError
	case len(props.SubscriptionIdentifier) > 0: // [MQTT-3.3.4-6]
		return codeProtocolError
	case strings.ContainsAny(props.ResponseTopic, "+#"): // [MQTT-3.3.2-14]
		return codeProtocolError
	case !props.TopicAliasFlag:
		if pk.TopicName == "" {
			return codeProtocolError // [MQTT-4.7.3-1]
		}
		return codeSuccess
	case props.TopicAlias == 0 || props.TopicAlias > aliasMaximum: // [MQTT-3.3.2-8] [MQTT-3.3.2-9]
		return codeTopicAlias
	case pk.TopicName == "":
		pk.TopicName = p.aliases[props.TopicAlias]
		if pk.TopicName == "" {
			return codeProtocolError // MQTT 5, 3.3.4
		}
		return codeSuccess
	}
	if p.aliasBytes += len(pk.TopicName) - len(p.aliases[props.TopicAlias]); p.aliasBytes > maxAliasBytes {
		return codeQuota
	}
	if p.aliases == nil {
		p.aliases = make(map[uint16]string)
	}
	p.aliases[props.TopicAlias] = strings.Clone(pk.TopicName)
	return codeSuccess
}

// capture makes the message of a PUBLISH. It shares the packet's memory, of which each packet has its own.
func (p *peer) capture(pk *packets.Packet) message.Message {
	now := time.Now()
	m := message.Message{
		ID: message.NewIDAt(now), Topic: pk.TopicName, Payload: pk.Payload,
		QoS: message.QoS(pk.FixedHeader.Qos), Retain: pk.FixedHeader.Retain,
		Source:   message.Source{Protocol: message.MQTT, Client: p.client, User: p.identity.User},
		Received: now,
	}
	setProperties(&m, &pk.Properties)
	return m
}

// setProperties copies the MQTT 5 properties that travel with a message. The expiry counts from m.Received.
func setProperties(m *message.Message, props *packets.Properties) {
	m.ContentType, m.ResponseTopic, m.CorrelationData = props.ContentType, props.ResponseTopic, props.CorrelationData
	m.PayloadUTF8 = props.PayloadFormatFlag && props.PayloadFormat == 1
	if len(props.User) > 0 {
		m.Properties = make([]message.Property, len(props.User))
		for i, u := range props.User {
			m.Properties[i] = message.Property{Key: u.Key, Value: u.Val}
		}
	}
	if props.MessageExpiryInterval > 0 {
		m.Expires = m.Received.Add(time.Duration(props.MessageExpiryInterval) * time.Second)
	}
}

// mayPublish reports whether the client may publish topic.
func (p *peer) mayPublish(topic string) bool {
	return !message.Reserved(topic) && p.b.o.ACL.Allow(p.identity, access.Publish, topic)
}

// take checks m, which came with the packet identifier id, hands it to Ingest and gives it to subscribers.
func (p *peer) take(m *message.Message, id uint16) (message.Ticket, error) {
	if err := validName(m.Topic); err != nil {
		return message.Ticket{}, err
	}
	if !p.mayPublish(m.Topic) {
		return message.Ticket{}, fmt.Errorf("publish %q: %w", m.Topic, message.ErrNotAllowed)
	}
	pub := session.Publication{Msg: m, Client: p.client, Take: p.b.take}
	if m.QoS == 2 {
		pub.Session, pub.ID = p.session, id
	}
	return p.route(pub)
}

// behind is an error of Ingest that passes with a commit: nothing is full, but too much waits for the disk.
type behind interface{ After() message.Ticket }

// route hands a message over. While too much waits for the disk it waits too, and with it the reading from this client, so that a
// slow disk slows devices down instead of refusing them. The keep alive begins anew after it. The wait
// ends with the connection: by a take-over, or by the stop.
func (p *peer) route(pub session.Publication) (message.Ticket, error) {
	for {
		r, err := p.b.sessions.Route(pub)
		var late behind
		if err == nil || !errors.As(err, &late) || await(p.patience(), late.After()) != nil {
			return r.Ticket, err
		}
	}
}

// behindPause is how long to wait where there is no commit to wait for and Ingest is behind all the same.
const behindPause = 20 * time.Millisecond

// await waits until t is durable, or for a moment when it is so already or never will be. It returns an error when ctx ended before.
func await(ctx context.Context, t message.Ticket) error {
	if !t.Durable() {
		if err := t.Wait(ctx); err == nil || ctx.Err() != nil {
			return err
		} // the disk failed, and may be well again
	}
	pause := time.NewTimer(behindPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ingest hands m over, with what sessions store in the same step, and counts it.
func (b *Broker) ingest(m *message.Message, with session.Riders) (message.Ticket, error) {
	if b.stopping.Load() {
		return message.Ticket{}, fmt.Errorf("gateway is stopping: %w", message.ErrBusy)
	}
	var t message.Ticket
	var err error
	if b.o.IngestWith != nil {
		t, err = b.o.IngestWith(*m, with)
	} else {
		t, err = b.o.Ingest(*m)
	}
	if err == nil {
		b.metrics.taken(m.Source.Protocol)
	}
	return t, err
}

// refuse answers a message that was not taken.
func (p *peer) refuse(m *message.Message, id uint16, err error) {
	r := refusalOf(err)
	p.b.metrics.refuse(message.MQTT, r.label)
	args := []any{"client", p.client, "user", p.identity.User, "topic", m.Topic, "error", err}
	if errors.Is(err, message.ErrNotAllowed) {
		p.b.audit.refused(&p.b.refusals, "message refused", r.label, p.client, args...)
	} else {
		p.b.refusals.log(p.b.log, "message refused", r.label, p.client, args...)
	}
	switch {
	case r.fatal:
		p.disconnect(r.code)
	case m.QoS == 0:
		// Nobody can be told. What could not be kept for the cloud is still worth something to local subscribers.
		if r.passes {
			p.b.sessions.Publish(m, p.client)
		}
	case p.connect.version == 5:
		if r.code == codeNotAuthorized {
			r.code = p.b.notAuthorized()
		}
		p.ack(byte(m.QoS), id, r.code)
	case r.passes:
		p.closeForOwn()
	default:
		p.ack(byte(m.QoS), id, codeSuccess) // [MQTT-3.3.5-2] of 3.1.1: the acknowledgement is due all the same
	}
}

// ack writes the PUBACK or PUBREC; nothing for QoS 0.
func (p *peer) ack(qos byte, id uint16, code byte) {
	switch qos {
	case 1:
		p.answer(packets.Puback<<4, id, code)
	case 2:
		p.answer(packets.Pubrec<<4, id, code)
	}
}

// answer writes a packet of the acknowledging kind. A failed write needs no handling: the connection is closed then, and
// the reader will see it.
func (p *peer) answer(head byte, id uint16, code byte) {
	b := [5]byte{head, 2, byte(id >> 8), byte(id), code}
	n := 4
	if code != codeSuccess && p.connect.version == 5 {
		b[1], n = 3, 5
	}
	_, _ = p.Write(b[:n])
}

// readPubrel ends a QoS 2 receive.
func (p *peer) readPubrel(id uint16) {
	code := byte(codeSuccess)
	t, known := p.session.Release(p, id)
	if !known {
		code = codeUnknownPacketID
	}
	p.Hold(t)
	p.answer(packets.Pubcomp<<4, id, code)
}

// readPubrec goes on with a QoS 2 delivery.
func (p *peer) readPubrec(pk *packets.Packet) {
	failed := pk.ReasonCode >= codeUnspecified
	known := p.session.Pubrec(p, pk.PacketID, !failed)
	switch {
	case known:
		p.session.Answer(p, []byte{packets.Pubrel<<4 | 2, 2, byte(pk.PacketID >> 8), byte(pk.PacketID)})
	case !failed:
		p.answer(packets.Pubrel<<4|2, pk.PacketID, codeUnknownPacketID)
	}
}
