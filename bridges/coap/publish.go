package coap

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	option "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"tidegate/bridges/coap/wire"
	"tidegate/message"
)

// publish hands a POST, PUT or DELETE to the bus and answers it when its record is on disk, which may be at once.
func (b *Bridge) publish(r *wire.Request, a *ask) {
	m, no := b.messageOf(r, a)
	if no != nil {
		b.refuse(r, *no)
		return
	}
	if r.Busy() {
		b.refuse(r, refusalOf(message.ErrBusy, 0))
		return
	}
	done := wire.Response{Code: b.success(r.Code, m.Topic)}
	if a.block1.given {
		done.Options = option.Options{uintOption(option.Block1, a.block1.value())} // taken, as one block (RFC 7959, 2.3)
	}
	ticket, err := b.o.Bus.Publish(m)
	switch {
	case err != nil:
		b.reply(r, refusalOf(err, b.o.MaxPayload).response()) // the bus counts what it refuses
	case ticket.Durable():
		b.reply(r, done)
	default:
		b.replyWhenDurable(r.Park(), ticket, done)
	}
}

// replyWhenDurable answers a parked request when its record is on disk, or cannot be.
func (b *Bridge) replyWhenDurable(x *wire.Exchange, ticket message.Ticket, done wire.Response) {
	ticket.Done(func(err error) {
		if err != nil {
			done = wire.Response{Code: codes.InternalServerError} // it was taken, and the disk did not keep it
		}
		b.replyLater(x, done)
	})
}

// success is the code of a request that is done. A PUT tells whether there was a retained message before.
func (b *Bridge) success(method codes.Code, topic string) codes.Code {
	switch {
	case method == codes.DELETE:
		return codes.Deleted
	case method == codes.PUT && len(b.o.Bus.Retained(topic)) == 0:
		return codes.Created
	}
	return codes.Changed
}

// messageOf makes the message of a request.
func (b *Bridge) messageOf(r *wire.Request, a *ask) (message.Message, *refusal) {
	id := identity(r)
	m := message.Message{
		Topic: a.topic, QoS: defaultQoS(r.Confirmable()), Retain: r.Code != codes.POST, Received: r.Received(),
		ContentType: b.formats.contentType(a.format),
		Source:      message.Source{Protocol: message.CoAP, Client: id.Client, User: id.User},
	}
	if err := message.ValidName(a.topic); err != nil {
		no := refusalOf(err, 0)
		return m, &no
	}
	if no := b.readQueries(&m, a.queries, r.Code); no != nil {
		return m, no
	}
	if r.Code == codes.DELETE {
		m.ContentType = ""
		return m, nil // a retained message without a payload takes the retained one away [MQTT-3.3.1-6]
	}
	if no := b.checkBody(r, a, m.Retain); no != nil {
		return m, no
	}
	m.Payload = bytes.Clone(r.Payload)
	return m, nil
}

// checkBody refuses what is no whole body, and what is too large.
func (b *Bridge) checkBody(r *wire.Request, a *ask, retain bool) *refusal {
	const noBlocks = "bodies in blocks are not taken"
	switch {
	case a.block1.given && a.block1.num > 0:
		return &refusal{code: codes.RequestEntityIncomplete, why: noBlocks}
	case a.block1.given && a.block1.more:
		no := refusalOf(message.ErrTooLarge, b.o.MaxPayload)
		no.why = noBlocks
		return &no
	case len(r.Payload) > b.o.MaxPayload:
		no := refusalOf(message.ErrTooLarge, b.o.MaxPayload)
		return &no
	case retain && len(r.Payload) == 0:
		return &refusal{code: codes.BadRequest, why: "a retained message without payload: use DELETE"}
	}
	return nil
}

func defaultQoS(confirmable bool) message.QoS {
	if confirmable {
		return 1
	}
	return 0
}

// maxExpiry is the longest message expiry interval of MQTT, in seconds [MQTT-3.3.2.3.3].
const maxExpiry = math.MaxUint32

// readQueries reads KEY=VALUE queries into m. A key that is not known, or given twice, is an error: a message that is not
// what its device meant would be worse than none.
func (b *Bridge) readQueries(m *message.Message, queries []string, method codes.Code) *refusal {
	for i, q := range queries {
		key, value, _ := strings.Cut(q, "=")
		for _, other := range queries[:i] {
			if k, _, _ := strings.Cut(other, "="); k == key {
				return badQuery(q, "is given twice")
			}
		}
		switch {
		case key == "qos":
			n, err := strconv.ParseUint(value, 10, 8)
			if err != nil || n > 2 {
				return badQuery(q, "is not 0, 1 or 2")
			}
			m.QoS = message.QoS(n)
		case method == codes.DELETE:
			return badQuery(q, "is not known for DELETE")
		case key == "retain":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return badQuery(q, "is not true or false")
			}
			if !on && method == codes.PUT {
				return badQuery(q, "contradicts PUT: use POST")
			}
			m.Retain = on
		case key == "expiry":
			seconds, err := strconv.ParseUint(value, 10, 64)
			if err != nil || seconds == 0 || seconds > maxExpiry {
				return badQuery(q, "is no number of seconds")
			}
			m.Expires = m.Received.Add(time.Duration(seconds) * time.Second)
		case key == "ct":
			if !b.readContentType(m, value) {
				return badQuery(q, "is no content type")
			}
		default:
			return badQuery(q, "is not known")
		}
	}
	return nil
}

func badQuery(q, why string) *refusal {
	return &refusal{code: codes.BadRequest, why: diagnostic(fmt.Errorf("query %q %s", q, why))}
}

// readContentType reads the query ct: a content type as text, or the number of a Content-Format.
func (b *Bridge) readContentType(m *message.Message, text string) bool {
	if n, err := strconv.ParseUint(text, 10, 16); err == nil {
		m.ContentType = b.formats.contentType(number{uint32(n), true})
		return true
	}
	if text == "" || !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		return false // [MQTT-1.5.4-1] [MQTT-1.5.4-2]
	}
	m.ContentType = text
	return true
}
