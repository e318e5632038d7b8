package opcua

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tidegate/bridges/opcua/link"
	"tidegate/message"
)

// writeTimeout bounds one write; a message that expires sooner, sooner.
const writeTimeout = 5 * time.Second

// write is a [[opcua.NAME.write]]: a topic whose messages go to a node.
type write struct {
	b     *Bridge
	topic string
	ref   link.Ref

	// What the server said about the node, in the session that it said it in: a type may change between two. It belongs to
	// handle, which the bus calls for one message after the other.
	session *link.Session
	node    link.NodeID
	typ     link.NodeType
}

func (b *Bridge) parseWrites() error {
	b.writes = make([]write, len(b.c.Writes))
	for i, w := range b.c.Writes {
		ref, err := link.ParseRef(w.ID)
		if err != nil {
			return fmt.Errorf("opcua: %s: write: %w", b.name, err)
		}
		b.writes[i] = write{b: b, topic: w.Topic, ref: ref}
	}
	return nil
}

// Why a message was not written.
var (
	errExpired = errors.New("the message has expired")
	errRefused = errors.New("refused")
)

// handle writes one message. A message that cannot be written now fails now: it does not wait for the server, so that no
// command runs later than whoever sent it would expect. Its sender hears of it by the response topic.
func (w *write) handle(ctx context.Context, m message.Message) error {
	err := w.write(ctx, m)
	result := "written"
	switch {
	case err == nil:
	case errors.Is(err, errExpired):
		result = "expired"
	case errors.Is(err, errRefused):
		result = "refused"
	default:
		result = "failed"
	}
	w.b.figures.wrote(result)
	w.reply(m, err)
	if err != nil {
		return fmt.Errorf("opcua: %s: write %s: %w", w.b.name, w.ref, err)
	}
	return nil
}

func (w *write) write(ctx context.Context, m message.Message) error {
	ctx, cancel := context.WithTimeoutCause(ctx, writeTimeout, fmt.Errorf("no answer within %s; it may be written all the same", writeTimeout))
	defer cancel()
	if !m.Expires.IsZero() {
		if !time.Now().Before(m.Expires) {
			return errExpired
		}
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, m.Expires, errExpired)
		defer stop()
	}
	session, err := w.b.link.Session()
	if err != nil {
		return fmt.Errorf("%w; it is not written later", err)
	}
	node, typ, err := w.describe(ctx, session)
	if err != nil {
		return err
	}
	value, err := coerce(m.Payload, typ)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	var status link.StatusCode
	if err := session.Write(ctx, node, value); errors.As(err, &status) {
		return fmt.Errorf("%w: %w", errRefused, err)
	} else if err != nil {
		return err
	}
	return nil
}

// describe finds the node and what it can hold, once per session.
func (w *write) describe(ctx context.Context, s *link.Session) (link.NodeID, link.NodeType, error) {
	if w.session == s {
		return w.node, w.typ, nil
	}
	node, err := w.ref.Resolve(s.Namespaces())
	if err != nil {
		return link.NodeID{}, link.NodeType{}, err
	}
	typ, err := s.TypeOf(ctx, node)
	if err != nil {
		return link.NodeID{}, link.NodeType{}, err
	}
	w.session, w.node, w.typ = s, node, typ
	return node, typ, nil
}

// outcome is what the sender of a message hears.
type outcome struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// reply publishes the outcome where the message asks for it.
func (w *write) reply(m message.Message, err error) {
	if m.ResponseTopic == "" {
		return
	}
	if may := w.b.o.MayReply; may != nil && !may(m.Source, m.ResponseTopic) {
		// Else a client could speak by us where it may not speak itself.
		w.b.log.Warn("the outcome of a write is not published: its sender may not publish under the response topic",
			"topic", m.ResponseTopic, "client", m.Source.Client, "user", m.Source.User)
		return
	}
	out := outcome{OK: err == nil}
	if err != nil {
		out.Error = err.Error()
	}
	payload, encodeErr := json.Marshal(out)
	if encodeErr != nil {
		return // of a bool and a string: it cannot fail
	}
	now := time.Now()
	_, publishErr := w.b.o.Bus.Publish(message.Message{
		ID: message.NewIDAt(now), Topic: m.ResponseTopic, Payload: payload, QoS: 1, ContentType: "application/json",
		PayloadUTF8: true, CorrelationData: m.CorrelationData, Received: now,
		Source: message.Source{Protocol: message.OPCUA, Client: w.b.name},
	})
	if publishErr != nil {
		w.b.log.Warn("the outcome of a write cannot be published", "topic", m.ResponseTopic, "error", publishErr)
	}
}
